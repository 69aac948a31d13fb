"""Out of memory is one line: which function, how much, which keys help; and what was saved is kept."""

import dataclasses
import functools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from fakes import make_decoder
from running import says

import prl_jax
from prl_jax.checkpoint import Checkpoints
from prl_jax.commands import run as module
from prl_jax.commands import shortage
from prl_jax.commands.shortage import shortage_told
from prl_jax.errors import UserError
from prl_jax.sampling.decode import SamplingConfig, generate, row_keys
from prl_jax.stages import KINDS
from prl_jax.stages import config as c

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
