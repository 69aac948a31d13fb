"""What a stage that trains a policy holds, in a run, in its checkpoints and in a plan."""

import dataclasses

import pytest
from fakes import one_device, with_pieces

from prl_jax.costs.models import AbstractModels, bytes_per_device
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.methods import Group, NoOpponent, scores
from prl_jax.models import split
from prl_jax.stages import KINDS, online_costs, online_models
from prl_jax.stages import config as c
from prl_jax.stages.kind import Checking
from prl_jax.stages.online import parts, whole


def models(**section) -> AbstractModels:
    stages = dict(sft=c.sft(max_prompt=4, max_response=4), policy=c.online("spo", judge="gold", **section))
    config = c.build(stages, model=dict(width=8, layers=1))
    return AbstractModels(config, one_device(), Checking(config, KINDS).card)


def learner(models: AbstractModels) -> online_models.Learner:
    return online_models.construct(models, "policy", 100)


def held(built: online_models.Learner) -> float:
    return bytes_per_device(online_costs._holding(built))


@dataclasses.dataclass(frozen=True)
class Remembering(Group):
    remembers: int = 3


@pytest.mark.parametrize("lora", [{}, dict(rank=2)])
def test_earlier_policies_are_held_and_saved(monkeypatch, lora):
    """With adapters only these are kept: all stand on the same frozen base."""
    before, read = learner(models(lora=lora)), online_models.method_in
    monkeypatch.setattr(online_models, "method_in", lambda section: with_pieces(read(section), opponents=Remembering()))
    built = learner(models(lora=lora))
    assert held(built) - held(before) == 3 * bytes_per_device(split(built.state.policy.model)[0]) > 0
    model, beside = parts(built.state)
    assert len(beside["past"]) == 3 and whole(before.state, model, beside).past == built.state.past


def test_what_decides_about_updates_is_saved_where_there_is_any():
    off, on = (learner(models(**section)).state for section in ({}, dict(skip_updates=1)))
    saved = parts(on)[1]
    assert saved.keys() - parts(off)[1].keys() == {"guard"} and off.guard is None
    assert whole(off, *parts(on)).guard == on.guard is not None


def test_moments_of_scores_are_saved_where_a_reward_normalises_by_them(monkeypatch):
    off, read = learner(models()).state, online_models.method_in
    running = dict(opponents=NoOpponent(), reward=scores.RunningNorm())
    monkeypatch.setattr(online_models, "method_in", lambda section: with_pieces(read(section), **running))
    on = learner(models()).state
    saved = parts(on)[1]
    assert saved.keys() - parts(off)[1].keys() == {"scores"} and whole(off, *parts(on)).scores == on.scores is not None


@pytest.mark.parametrize("section", [dict(reference_every="5 steps"), dict(reference_ema=0.1)])
def test_a_reference_that_follows_is_held_beside_the_start(section):
    built, before = learner(models(**section)), learner(models())
    assert (
        held(built) - held(before) == bytes_per_device(built.state.policy.model) > 0 and before.state.reference is None
    )
    assert whole(before.state, *parts(built.state)).reference is built.state.reference


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(reference_every="5 steps", reference_ema=0.1), "policy.reference_ema=0.1 with reference_every"),
        (dict(reference_every="10%", lora=dict(rank=2)), "policy.reference_every='10%': with adapters"),
        (dict(reference_ema=0.1, lora=dict(rank=2)), "policy.reference_ema=0.1: with adapters"),
        (dict(reference_ema=1.0), "policy.reference_ema=1.0, expected at least 0 and below 1"),
        (dict(overlong=(5, 1.0)), "policy.overlong=.*longer than the room of a response, 4 tokens"),
        (dict(stop_kl=0.1, epochs=1, minibatches=1), "policy.stop_kl=0.1: a step has one update"),
    ],
)
def test_switches_that_cannot_work_are_refused_with_their_stage(section, message):
    with pytest.raises(UserError, match=message):
        check_config(models(**section).config)


@pytest.mark.parametrize(
    ("start", "section", "message"),
    [
        ("judge", dict(judge="genrm"), "policy.critic.init_from='judge': the judge 'genrm' is no model that scores"),
        ("judge", dict(judge="gold"), "policy.critic.init_from='judge': the judge 'gold' is no model"),
        ("first", {}, "policy.critic.init_from='first': expected one of 'policy', 'judge'; "),
        ("sft", {}, "policy.critic.init_from='sft': expected one of 'policy', 'judge'; "),
        ("judge", dict(lora=dict(rank=2)), "policy.critic.init_from='judge': with adapters"),
    ],
)
def test_a_critic_cannot_start_as_any_model(start, section, message):
    values = dict(judge="bt", opponents=dict(kind="group"), group_size=2) | section
    lengths = dict(max_prompt=4, max_response=4)
    stages = dict(
        sft=c.sft(**lengths),
        bt=c.bradley_terry(init_from="sft", **lengths),
        genrm=c.generative(init_from="sft", max_length=32),
        policy=c.online("pairwise_rl", critic=dict(init_from=start), **values),
        first=c.online("ppo", judge="bt"),
    )
    with pytest.raises(UserError, match=message):
        check_config(c.build(stages, model=dict(width=8, layers=1)))
