"""Out of memory is one line: which function, how much, which keys help; and what was saved is kept."""

import dataclasses
import functools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import make_setup
from fakes import make_decoder
from running import says

import prl_jax
from prl_jax.checkpoint import Checkpoints
from prl_jax.commands import run as module
from prl_jax.commands import shortage
from prl_jax.commands.shortage import shortage_told
from prl_jax.errors import UserError
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.stages import KINDS, online_samples, online_step
from prl_jax.stages import config as c
from prl_jax.training.policy import Updates, run_updates
from prl_jax.training.state import PolicyState, TrainState

ROOT = Path(prl_jax.__file__).parent


def fail(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")


def told(call, keys=lambda called: [f"keys of {called}"]):
    with pytest.raises(UserError) as caught, shortage_told("sft", keys, "what was saved before is kept"):
        call()
    return str(caught.value)


def test_the_function_is_the_innermost_that_plan_names(monkeypatch):
    config, tokens = SamplingConfig(2, (1,), 0), jnp.ones((1, 3), jnp.int32)
    model, keys, decode = make_decoder(layers=1), row_keys(jax.random.key(0), 0, 1), sys.modules[generate.__module__]
    call = functools.partial(generate, model, tokens, tokens > 0, keys, config=config)
    monkeypatch.setattr(decode, "prefill", fail)
    line = told(call)
    expected = "sft/prefill: out of device memory (asked for 16 GiB); what was saved before is kept; what helps: "
    assert line == expected + "keys of prefill"
    monkeypatch.setattr(decode, "prefill", lambda *_, **__: (None, None))
    monkeypatch.setattr(decode, "decode", fail)
    assert told(call).startswith("sft/decode: ")
    assert told(fail).startswith("sft: out of device memory")


@pytest.mark.usefixtures("unchecked")  # stand-ins for a state and what was sampled
def test_each_part_of_a_step_is_told_by_its_name(monkeypatch):
    setup, rollout = make_setup(None), SimpleNamespace(mask=jnp.ones((4, 2), bool))
    state, pieces = PolicyState(TrainState(None, None, None), None, None), (setup.method, setup.schedule)
    update = functools.partial(run_updates, Updates(fail, fail), state, rollout, jax.random.key(0), *pieces)
    assert told(functools.partial(update, train_policy=True)).startswith("sft/update: ")
    assert told(functools.partial(update, train_policy=False)).startswith("sft/warm_up: ")
    step = functools.partial(online_step.iteration, setup, None, state, np.arange(4), 1, train_policy=True)
    monkeypatch.setattr(online_samples, "generate", fail)
    assert told(step).startswith("sft/generate: ")
    done = SimpleNamespace(reward=np.zeros(8, np.float32), rollout=None, greedy=None)
    monkeypatch.setattr(online_step, "roll_out", lambda *_: done)
    monkeypatch.setattr(online_step, "critic_context", lambda *_: None)
    monkeypatch.setattr(online_step, "prepare", fail)
    assert told(step).startswith("sft/prepare: ")


def test_every_call_that_is_looked_for_is_there():
    """A function that gets another name would no longer be told."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if path.name != "shortage.py")
    assert [call for call in shortage._CALLS if not re.search(rf"^(?!\s*def ).*{call}", sources, re.MULTILINE)] == []
    assert [name for name in shortage._INSIDE if not re.search(rf"^\s*def {name}\(", sources, re.MULTILINE)] == []


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), shortage_told("sft", lambda called: [], ""):
        raise ZeroDivisionError


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_damaged(tmp_path, monkeypatch):
    model, extra = {"w": jnp.ones(3)}, {"n": jnp.zeros((), jnp.int32)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, model=model, train=extra, data={})
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints, "_read", fail)
        with pytest.raises(jax.errors.JaxRuntimeError):
            checkpoints.restore(model=model, train=extra)
        with pytest.raises(jax.errors.JaxRuntimeError):
            checkpoints.restore_model(model)
    assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {"1", "2"}


def test_a_run_ends_with_one_line(tmp_path, monkeypatch):
    """It names the stage and its keys; what it had finished is skipped by the next one."""

    def run(context):
        fail()

    monkeypatch.setitem(KINDS, "anchors", dataclasses.replace(KINDS["anchors"], run=run))
    config = c.build({"anchors": c.anchors(prompts=c.source(limit=8), choice="reference")})
    with pytest.raises(UserError) as caught:
        module.run_stages(config, tmp_path / "run")
    assert says(str(caught.value), "anchors: out of device memory (asked for 16 GiB)", "anchors.batch_size down")
