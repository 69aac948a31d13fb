"""Direct preference learning on whole models: what is counted of a row, what is frozen, what a batch is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, make_decoder, user

from prl_jax.data.rows import encode_responses, stack_rows
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.methods.direct import BCO, IPO, KTO, SPPO, Sigmoid, Squared
from prl_jax.training.direct import direct_objective
from prl_jax.training.step import gradients, make_validation
from prl_jax.types import DirectPairs

pytestmark = pytest.mark.long
TOKENIZER = LetterTokenizer()
ROOM = dict(max_prompt=5, max_response=4)
PAIRS = [("ab", "cd", "e"), ("c", "", "abc"), ("dd", "ef", "ghijk"), ("b", "a", "k")]
OTHERS = ["e", "fg", "h", "i"]


@pytest.fixture(scope="module")
def model():
    return make_decoder(0, layers=1)


def batch(reference=0.0, label=1.0, target=(0.0, 0.0), gap=0.0, weight=1.0) -> DirectPairs:
    rows = []
    for (prompt, one, two), other in zip(PAIRS, OTHERS, strict=True):
        encoded, _ = encode_responses(TOKENIZER, user(prompt), (one, two, other), **ROOM)
        said = [np.float32(x) for x in (label, target, gap, weight)]
        rows.append(DirectPairs(*encoded[:2], np.float32([reference] * 2), *said, encoded[2], np.float32(reference)))
    return stack_rows(rows)


def by_hand(model, prompt: str, response: str) -> tuple[float, int]:
    """Log-probability of a response, one token after the other, and how many tokens it has."""
    (row,), _ = encode_responses(TOKENIZER, user(prompt), (response,), **ROOM)
    ids = np.asarray(row.rows.tokens)[np.asarray(row.rows.segments) > 0]
    content = TOKENIZER.encode(response)[: ROOM["max_response"]]
    own = [*content, TOKENIZER.eos_id][: ROOM["max_response"]]
    assert list(ids[len(ids) - len(own) :]) == own
    hidden = model.hidden(jnp.asarray(ids)[None], jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), jnp.int32))
    logp = jax.nn.log_softmax(model.logits(hidden)[0].astype(jnp.float32))
    places = range(len(ids) - len(own), len(ids))
    return float(sum(logp[i - 1, ids[i]] for i in places)), len(own)


def test_a_response_counts_from_its_first_token_to_the_one_that_ends_it(model):
    """No token of the prompt counts; a response that is cut has no end."""
    given = batch()
    for rows, index in ((given.response_1, 1), (given.response_2, 2)):
        found = frozen_log_probs(model, rows)
        expected = [by_hand(model, pair[0], pair[index]) for pair in PAIRS]
        np.testing.assert_allclose(found, [logp for logp, _ in expected], rtol=2e-5)
        np.testing.assert_array_equal(rows.mask.sum(-1), [count for _, count in expected])


def gradient(model, loss, given, **options):
    grads, metrics = jax.jit(lambda m, b: gradients(direct_objective(loss, **options), m, b))(model, given)
    flat = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(grads)])
    return flat, {name: float(value) for name, value in metrics.items()}


def log_probs(model, given, length="sum"):
    pairs = zip((given.response_1, given.response_2), (1, 2), strict=True)
    sums = [np.asarray(frozen_log_probs(model, rows), np.float64) for rows, _ in pairs]
    counts = [rows.mask.sum(-1) if length == "mean" else 1.0 for rows in (given.response_1, given.response_2)]
    return [x / n for x, n in zip(sums, counts, strict=True)]


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_the_loss_is_that_of_log_ratios_of_this_length(model, length):
    given = batch(reference=-3.0)
    one, two = log_probs(model, given, length)
    counts = [rows.mask.sum(-1) if length == "mean" else 1.0 for rows in (given.response_1, given.response_2)]
    gap = (one + 3.0 / counts[0]) - (two + 3.0 / counts[1])
    _, metrics = gradient(model, Sigmoid(beta=0.7), given, length=length)
    assert metrics["direct"] == pytest.approx(np.log1p(np.exp(-0.7 * gap)).mean(), rel=1e-5)
    assert metrics["accuracy"] == np.mean(gap > 0) and metrics["chosen_ratio"] == pytest.approx(
        (one + 3.0 / counts[0]).mean(), rel=1e-5
    )


def test_terms_are_added_with_their_weights(model):
    given = batch(reference=-3.0)
    one, _ = log_probs(model, given)
    mean, _ = log_probs(model, given, "mean")
    _, plain = gradient(model, Sigmoid(), given)
    _, added = gradient(model, Sigmoid(), given, sft_weight=0.5, sft_length="sum", value_weight=-0.2)
    assert added["sft"] == pytest.approx(-one.mean(), rel=1e-5)
    assert added["value"] == pytest.approx(0.1 * (one + 3.0).mean(), rel=1e-5)
    assert added["loss"] == pytest.approx(plain["loss"] + 0.5 * added["sft"] - 0.2 * added["value"], rel=1e-5)
    assert gradient(model, Sigmoid(), given, sft_weight=1.0)[1]["sft"] == pytest.approx(-mean.mean(), rel=1e-5)


def test_a_reference_is_data(model):
    """Whatever moved it, the gradient is the same as long as its numbers are."""
    given = batch(reference=-3.0)
    ours, _ = gradient(model, Sigmoid(), given)
    shifted, _ = gradient(model, IPO(), batch(reference=-50.0))
    unshifted, _ = gradient(model, IPO(), batch(reference=-3.0))
    assert np.linalg.norm(ours) > 0
    np.testing.assert_allclose(shifted, unshifted, rtol=1e-3, atol=1e-4)  # both responses are shifted alike


def test_what_a_loss_needs_of_the_whole_batch(model):
    """KTO's divergence of mismatched completions, at least 0; BCO's mean implicit reward."""
    given = batch(reference=-30.0)
    mismatched = np.asarray(frozen_log_probs(model, given.mismatched), np.float64) + 30.0
    one, two = (x + 30.0 for x in log_probs(model, given))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    z0 = 0.1 * max(mismatched.mean(), 0.0)
    assert z0 > 0
    expected = 0.5 * (sigmoid(z0 - 0.1 * one) + sigmoid(0.1 * two - z0)).mean()
    _, metrics = gradient(model, KTO(beta=0.1), given)
    assert metrics["direct"] == pytest.approx(expected, rel=1e-5)
    delta = 0.1 * (one + two).mean() / 2
    expected = -(np.log(sigmoid(0.1 * one - delta)) + np.log(sigmoid(delta - 0.1 * two))).mean()
    assert gradient(model, BCO(beta=0.1), given)[1]["direct"] == pytest.approx(expected, rel=1e-5)
    sums = make_validation(direct_objective(KTO(beta=0.1)))(model, given)
    assert float(sums["direct"][0] / sums["direct"][1]) == pytest.approx(metrics["direct"], rel=1e-5)


def test_targets_of_gaps_and_of_responses(model):
    given = batch(reference=-3.0, label=0.75, target=(0.9, 0.4))
    one, two = (x + 3.0 for x in log_probs(model, given))
    by_label = gradient(model, Squared(beta=0.5), given, gap_of_label=True)[1]["direct"]
    assert by_label == pytest.approx(((0.5 * (one - two) - np.log(3.0)) ** 2).mean(), rel=1e-4)
    by_target = gradient(model, Squared(beta=0.5), given)[1]["direct"]
    assert by_target == pytest.approx(((0.5 * (one - two) - 0.5) ** 2).mean(), rel=1e-4)
    single = gradient(model, SPPO(beta=0.5), given)[1]["direct"]
    assert single == pytest.approx(0.5 * ((0.5 * one - 0.4) ** 2 + (0.5 * two + 0.1) ** 2).mean(), rel=1e-4)


def test_beta_grows_with_the_gap_of_scores(model):
    given = batch(reference=-3.0, gap=2.0)
    one, two = log_probs(model, given)
    beta = 0.3 * (1 + 0.5 * (1 - np.exp(-0.4 * 2.0)))
    _, metrics = gradient(model, Sigmoid(beta=0.3), given, beta_scale=0.5, beta_scale_rate=0.4)
    assert metrics["direct"] == pytest.approx(np.log1p(np.exp(-beta * (one - two))).mean(), rel=1e-5)
    assert gradient(model, Sigmoid(beta=0.3), given)[1]["direct"] != metrics["direct"]
