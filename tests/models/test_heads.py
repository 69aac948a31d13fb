"""Scores and verdicts are read at the last valid token, whatever stands around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, make_scalar_model, random_tokens, token_rows

from prl_jax.models import Decoder, ScalarModel, last_index, verdict_log_probs
from prl_jax.types import TokenRows

EOS, LENGTH = 21, 10


@pytest.fixture(scope="module")
def model():
    return make_scalar_model()


@pytest.fixture(scope="module")
def score():
    return jax.jit(lambda model, rows: (model.score(rows), model.values(rows)))


def test_last_index_is_told_by_the_mask():
    segments = np.random.default_rng(0).integers(0, 3, (50, 7))
    segments[:, 3] = 1
    expected = [max(t for t in range(7) if row[t]) for row in segments]
    np.testing.assert_array_equal(last_index(jnp.asarray(segments)), expected)


@pytest.mark.parametrize("pad_id", [20, EOS], ids=["pad", "pad_is_eos"])
def test_row_18_score_reads_the_last_valid_token_by_length(model, score, pad_id):
    """Row 4 besides: with pad equal to EOS, the EOS at the end of each row is still the one that is read."""
    ids = [[*random_tokens(i, n).tolist(), EOS] for i, n in enumerate((3, 9, 6, 1))]
    got, values = score(model, token_rows(ids, LENGTH, pad_id=pad_id))
    np.testing.assert_allclose(got, np.asarray(values)[np.arange(4), [3, 9, 6, 1]], rtol=1e-5)
    for i, row in enumerate(ids):  # alone in its batch, without any padding at the end of the row
        mates = [row, *([[EOS] * 2] * 3)]
        alone, _ = score(model, token_rows(mates, LENGTH, pad_id=(pad_id + 5) % 32))
        left, _ = score(model, token_rows(mates, LENGTH, side="left", pad_id=pad_id))
        np.testing.assert_allclose([alone[0], left[0]], got[i], atol=2e-5)
    assert np.std(got) > 0.1


def test_row_18_the_eos_counts_where_pad_is_eos(model, score):
    scores, values = score(model, token_rows([[5, 6, EOS], [5, 6]] * 2, LENGTH, pad_id=EOS))
    np.testing.assert_allclose(scores[:2], [values[0, 2], values[0, 1]], atol=1e-5)
    assert abs(float(scores[0] - scores[1])) > 1e-3


def test_row_15_a_fresh_head_gives_its_bias_in_float32():
    decoder = make_decoder(dtype="bfloat16", layers=1)
    model = ScalarModel(decoder, bias=0.5)
    values = jax.jit(lambda model, rows: model.values(rows))(model, token_rows([[1, 2, 3]], 4))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, np.full((1, 4), 0.5))


def test_row_19_verdicts_are_normalised_over_the_vocabulary():
    model = make_decoder(vocab_size=6, layers=1)
    rows = token_rows([random_tokens(i, n, high=6).tolist() for i, n in enumerate((4, 1, 6))], 6)

    @jax.jit
    def run(model):
        pairs = [verdict_log_probs(model, rows, (i, i + 1)) for i in (0, 2, 4)]
        return jnp.concatenate(pairs, axis=1), model.logits(model.hidden(*rows))

    log_probs, logits = run(model)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1.0, rtol=1e-5)
    logits = np.asarray(logits)[np.arange(3), [3, 0, 5]]
    np.testing.assert_allclose(log_probs - log_probs[:, :1], logits - logits[:, :1], atol=1e-5)


def test_verdicts_do_not_depend_on_batch_mates():
    model = make_decoder(layers=1)
    run = jax.jit(lambda model, rows: verdict_log_probs(model, rows, (3, 7)))
    rows = token_rows([random_tokens(i, n).tolist() for i, n in enumerate((4, 2, 6))], 6)
    other = TokenRows(*(x.at[1:].set(x[:1]) for x in rows))
    np.testing.assert_allclose(run(model, rows)[0], run(model, other)[0], atol=1e-5)


def test_a_scalar_model_keeps_the_config_of_its_decoder(model):
    assert model.config == model.decoder.config and isinstance(model.decoder, Decoder)
