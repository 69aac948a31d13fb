"""Rows 26 and 27 of the correctness list: what a stage makes of its section."""

import jax
import numpy as np
import pytest
from correctness.world import make_setup, policy_state
from fakes import LetterTokenizer, one_device

from prl_jax.costs.models import AbstractModels
from prl_jax.optim import learning_rate_schedule
from prl_jax.runs import models as stage_models
from prl_jax.stages import KINDS
from prl_jax.stages import config as c
from prl_jax.stages.kind import Checking
from prl_jax.stages.online_models import construct
from prl_jax.stages.online_samples import roll_out
from prl_jax.stages.online_step import critic_context

STEPS, WARMUP, EPOCHS, MINIBATCHES = 12, 4, 3, 2


@pytest.fixture
def optimizers(monkeypatch):
    """What the optimizers of policy and critic are made with, by a stage's own construction."""
    made, make = [], stage_models.make_optimizer

    def remember(**values):
        made.append(values)
        return make(**values)

    monkeypatch.setattr(stage_models, "make_optimizer", remember)
    rate = dict(schedule="linear", learning_rate=1.0)
    stage = c.online(
        "ppo", judge="gold", duration=f"{STEPS} steps", epochs=EPOCHS, minibatches=MINIBATCHES,
        optimizer=rate | dict(warmup="2 steps"),
        critic=dict(warmup=f"{WARMUP} steps", optimizer=rate | dict(warmup="25%")),
    )  # fmt: skip
    config = c.build(dict(sft=c.sft(max_prompt=4, max_response=4), policy=stage), model=dict(width=8, layers=1))
    construct(AbstractModels(config, one_device(), Checking(config, KINDS).card), "policy", 1000)
    return made


def test_row_26_the_schedule_covers_the_updates_that_the_policy_takes(optimizers):
    """It takes none while the critic warms up, and the critic takes all; a warm-up in steps counts those of the
    section, each of which is several updates."""
    policy, critic = optimizers
    a_step = EPOCHS * MINIBATCHES
    assert (policy["total_steps"], policy["warmup_steps"]) == ((STEPS - WARMUP) * a_step, 2 * a_step)
    assert (critic["total_steps"], critic["warmup_steps"]) == (STEPS * a_step, 3 * a_step)


def test_row_26_a_schedule_ends_at_the_last_update():
    for schedule in ("linear", "cosine"):
        rate = learning_rate_schedule(1.0, schedule=schedule, warmup_steps=3, total_steps=20)
        np.testing.assert_allclose([rate(19), rate(18) > 0.1], [0.1, True], rtol=1e-5)


def test_row_27_a_privileged_critic_sees_the_opponent_that_the_response_has_met(models):
    """One of four anchors is drawn for each prompt and step."""
    tokenizer, anchors = LetterTokenizer(pad_is_eos=True), [["a", "bb", "ccc", "dddd"]] * 4
    setup = make_setup(
        models.policy, opponents=dict(kind="pool", stage="anchors"), baseline=dict(sees_opponent=True), group_size=2
    )._replace(anchors=anchors)
    seen = set()
    for n in range(3):
        done = roll_out(setup, policy_state(models.policy), np.arange(4), n)
        tokens, mask = jax.device_get(critic_context(setup, done))
        for i, met in enumerate(np.asarray(done.judged[0].mask)):
            assert met.sum() == 1
            text = anchors[0][int(met.argmax())]
            row = tokens[i][mask[i]].tolist()
            assert row[0] == tokenizer.special("reference")
            opening = tokenizer.special("user")
            assert row[1 : row.index(opening)] == tokenizer.encode(text)
            seen.add(text)
    assert len(seen) > 1
