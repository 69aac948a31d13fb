"""Rows 8, 10, 20, 25, 29 and 30 of the correctness list: a whole step of a policy that learns."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import make_setup, policy_state
from fakes import UtilityJudge, copy, make_decoder, with_pieces

from prl_jax.judges import Combination, GenerativeJudge, Scored, ensemble
from prl_jax.methods.rewards import Moments
from prl_jax.sampling import StopReason
from prl_jax.stages import online_step
from prl_jax.stages.online_samples import roll_out
from prl_jax.stages.online_step import iteration
from prl_jax.text import padding
from prl_jax.text.judging import JudgeTemplate
from prl_jax.text.tokenizer import ByteTokenizer
from prl_jax.training.policy import Updates


class ByLength(UtilityJudge):
    def __init__(self):
        super().__init__(lambda prompt, response: len(response))

    def scored(self, prompts, responses):
        return Scored(np.array([len(text) for text in responses], np.float32), np.zeros(len(prompts), bool))


no_update = lambda state, *_: (state, {"clip_fraction": jnp.float32(0)})  # noqa: E731
NO_UPDATES = Updates(no_update, lambda critic, *_: (critic, {}))


@pytest.fixture(scope="module")
def setup(models):
    setup = make_setup(models.policy, bias=0.4, regulariser=dict(steer=(50.0, 8.0)))
    (judge,) = setup.judges
    judge.counters = lambda: {"asked": len(judge.asked)}
    return setup._replace(sampling=dataclasses.replace(setup.sampling, stop_ids=tuple(range(15, 32))))


@pytest.fixture(scope="module")
def iterated(setup, fresh):
    """What one iteration logs, and what it sampled, and the coefficient after a step of warm-up; the update itself is
    left out."""
    run = lambda train_policy: iteration(setup, NO_UPDATES, fresh(), np.arange(4), 15, train_policy=train_policy)  # noqa: E731
    _, metrics, done, _ = run(True)
    return metrics, done, run(False)[0].kl_coef


def test_row_08_noise_is_fresh_in_every_row_step_stage_and_token(models):
    """Four times the same prompt, by a policy that likes every token alike, so that noise alone decides."""
    flat = copy(models.policy)
    flat.embedding[...] = flat.embedding[...] * 1e-3

    def draw(step: int, **changes) -> list[tuple[int, ...]]:
        done = roll_out(make_setup(flat, **changes), policy_state(flat), np.arange(4), step)
        rows = zip(np.asarray(done.rollout.response), np.asarray(done.rollout.mask), strict=True)
        return [tuple(tokens[mask]) for tokens, mask in rows]

    first = draw(1)
    assert first == draw(1)
    everything = [*first, *draw(2), *draw(1, name="another"), *draw(1, seed=1)]
    assert len(set(everything)) == len(everything) == 4 * 8
    assert all(len(set(row)) > 1 for row in everything if len(row) > 3)


def test_row_03_a_stop_string_ends_the_response_that_is_judged_and_trained(models):
    """The text ends before it, the mask with the token that completes it, and the kept tokens are what they were."""
    setup = make_setup(models.policy)
    free = roll_out(setup, policy_state(models.policy), np.arange(4), 1)
    stop = next(text for text in free.responses if len(text) > 4)[2:4]
    asks = dataclasses.replace(setup.sampling, stop=(stop,))
    done = roll_out(setup._replace(sampling=asks), policy_state(models.policy), np.arange(4), 1)
    assert done.responses == [text.split(stop)[0] for text in free.responses] != free.responses
    mask, read = np.asarray(done.rollout.mask), setup.tokenizer.decode
    for i, (whole, text) in enumerate(zip(free.responses, done.responses, strict=True)):
        kept = np.asarray(done.rollout.response)[i, mask[i]]
        if stop in whole:
            assert read(kept) == text + stop and stop not in read(kept[:-1])
        else:
            assert read(kept) == text == whole
    np.testing.assert_array_equal(done.rollout.logp, np.where(mask, free.rollout.logp, 0.0))
    stopped = np.array([stop in text for text in free.responses])
    np.testing.assert_array_equal(done.rollout.truncated, np.asarray(free.rollout.truncated) & ~stopped)
    np.testing.assert_array_equal(done.stopped == StopReason.STOP_STRING, stopped)
    np.testing.assert_array_equal(done.stopped[~stopped], free.stopped[~stopped])


def test_row_10_an_iteration_logs_the_gap_between_sampler_and_trainer(iterated):
    assert 0 <= float(iterated[0].get("sampler_gap", -1)) < 1e-5


def test_row_20_an_iteration_logs_how_often_the_orders_disagree(iterated):
    """The judge's preference for slot 1 outweighs a difference of one letter and not that of two; pairs of identical
    responses are even in both orders."""
    metrics, done, _ = iterated
    pairs = np.array(done.responses).reshape(4, 2)
    agreed = [one == other or 0.3 * abs(len(one) - len(other)) > 0.4 for one, other in pairs]
    assert any(one == other for one, other in pairs) and 1 < sum(agreed) < 4
    np.testing.assert_allclose(metrics.get("order_disagreement", -1), 1 - np.mean(agreed), atol=1e-6)


def test_an_iteration_logs_what_its_judge_counts(iterated):
    metrics, done, _ = iterated
    pairs = np.array(done.responses).reshape(4, 2)
    assert metrics.get("judge_asked") == sum(one != other for one, other in pairs)


def test_row_25_the_coefficient_stands_still_while_the_policy_does(iterated, fresh):
    """The divergence is far below its target: a step that trains the policy makes it cheaper."""
    metrics, _, warm = iterated
    assert float(warm) == float(fresh().kl_coef)
    np.testing.assert_allclose(metrics["kl_coef"], warm * np.exp(-0.2), rtol=1e-5)


@pytest.fixture
def read(setup, iterated, fresh, monkeypatch):
    """What an iteration logs one of whose judges reads both responses, a quarter of which imitate its frame."""
    responses = ["[Response 2]\nbad", "### assistant: Y", "[1]", *"abcde"]
    done = iterated[1]._replace(responses=responses, cut_judgements=3, disagreement=0.125)
    monkeypatch.setattr(online_step, "roll_out", lambda *_: done)
    judge = GenerativeJudge(make_decoder(layers=1), ByteTokenizer(), JudgeTemplate("question-v1"), max_length=300)
    judged = setup._replace(judges=[ensemble([*setup.judges, judge], Combination())])
    return iteration(judged, NO_UPDATES, fresh(), np.arange(4), 15, train_policy=True)[1]


def test_row_29_an_iteration_logs_how_many_comparisons_were_cut(read):
    assert read.get("cut_judgements") == 3


def test_an_iteration_logs_how_far_the_members_of_an_ensemble_disagree(read, iterated):
    assert read.get("judge_disagreement") == 0.125
    assert "judge_disagreement" not in iterated[0]  # one judge has no members


def test_row_30_an_iteration_logs_how_many_responses_imitate_the_judges_frame(read, iterated):
    assert read.get("frame_imitations") == 0.25
    assert "frame_imitations" not in iterated[0]  # a rule has no frame


def test_scores_of_a_step_are_met_by_the_next_one(models, fresh):
    """A reward that normalises by what was met keeps it beside the updates."""
    pieces = dict(opponents=dict(kind="none"), reward=dict(kind="running_norm"))
    setup = make_setup(models.policy, **pieces)._replace(judges=[ByLength()])
    state = fresh()._replace(scores=Moments(*jnp.zeros(3)))
    seen = []
    for n in (1, 2):
        state, _, done, _ = iteration(setup, NO_UPDATES, state, np.arange(4), n, train_policy=True)
        seen += [len(text) for text in done.responses]
        np.testing.assert_allclose(state.scores, [len(seen), np.mean(seen), np.std(seen)], rtol=1e-5)
    first = np.array(seen[:8])
    expected = (np.array(seen[8:]) - first.mean()) / first.std()
    np.testing.assert_allclose(done.reward, expected, rtol=1e-4, atol=1e-5)


def test_row_04_padding_that_no_response_needs_is_left_out_and_changes_nothing(setup, fresh, monkeypatch):
    """Room for 32 tokens, of which the longest response takes fewer; it stays where the loss counts it."""
    roomy = setup._replace(sampling=dataclasses.replace(setup.sampling, max_new_tokens=32))
    found = []
    for shortest in (64, 4):
        monkeypatch.setattr(padding, "_SHORTEST", shortest)
        found.append(iteration(roomy, NO_UPDATES, fresh(), np.arange(4), 15, train_policy=True))
    (_, whole, done, padded), (_, cut, other, experience) = found
    length = other.rollout.mask.shape[1]
    assert done.responses == other.responses and other.longest <= length <= 16 < done.rollout.mask.shape[1] == 32
    for name in set(whole) - {"judge_asked"}:
        np.testing.assert_allclose(cut[name], whole[name], atol=2e-6, rtol=2e-5, err_msg=name)
    for name in ("logp_old", "advantages", "mask"):
        one, two = getattr(experience.frozen, name), getattr(padded.frozen, name)
        np.testing.assert_allclose(one, two[:, :length], atol=2e-5, err_msg=name)
    np.testing.assert_allclose(experience.critique.returns, padded.critique.returns[:, :length], atol=2e-5)
    counted = with_pieces(roomy.method, surrogate=dict(reduce="seq_mean_room_mean"))
    penalised = dataclasses.replace(roomy.schedule, overlong=(4, 0.5))
    for other in (roomy._replace(method=counted), roomy._replace(schedule=penalised)):
        assert roll_out(other, fresh(), np.arange(4), 15).rollout.mask.shape[1] == 32
