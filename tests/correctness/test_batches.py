"""Rows 3, 4, 13 and 16 of the correctness list: rows of tokens, their masks, positions and segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import LENGTHS, PROMPTS, chosen, response_laws
from fakes import LetterTokenizer, make_decoder, make_scalar_model, user

from prl_jax.data.records import PreferenceRecord, SFTRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair, encode_sft, stack_rows
from prl_jax.models.packing import rows_needed
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.text.chat import encode_prompt
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.sft import SFT, sft_objective
from prl_jax.training.step import gradients
from prl_jax.types import SFTBatch, TokenRows

PAIRS = [PreferenceRecord(str(i), user(p), a, b) for i, (p, a, b) in enumerate([("a", "cd", "e"), ("", "", "gh")])]
DEMONSTRATIONS = [SFTRecord(str(i), user(p), r) for i, (p, r) in enumerate([("ab", "hi"), ("c", "jkl"), ("d", "")])]
TEMPLATE = JudgeTemplate()
KINDS = {
    "sft": (make_decoder, SFT, functools.partial(encode_sft, max_prompt=5, max_response=4), DEMONSTRATIONS),
    "bradley_terry": (
        make_scalar_model,
        bradley_terry_objective(),
        functools.partial(encode_scalar_pair, max_prompt=5, max_response=4),
        PAIRS,
    ),
    "generative": (
        make_decoder,
        generative_objective(verdict_ids(LetterTokenizer(), TEMPLATE)),
        lambda tokenizer, record: encode_generative_pair(tokenizer, TEMPLATE, record, max_length=12),
        PAIRS,
    ),
}


def batch_of(kind: str, *, pad_is_eos: bool = False):
    _, _, encode, records = KINDS[kind]
    tokenizer = LetterTokenizer(pad_is_eos=pad_is_eos)
    return jax.tree.map(jnp.asarray, stack_rows([encode(tokenizer, record)[0] for record in records]))


def test_row_03_demonstrations_teach_to_stop():
    """The targets that count are the response and its stop token, of an empty response too."""
    batch, tokenizer = batch_of("sft"), LetterTokenizer()
    for i, record in enumerate(DEMONSTRATIONS):
        counted = np.asarray(batch.targets[i])[np.asarray(batch.mask[i])]
        assert counted.tolist() == [*tokenizer.encode(record.response), tokenizer.eos_id]
    terms = jax.jit(lambda model, batch: SFT.terms(model, batch)["nll"])
    model = make_decoder(layers=1)
    other = batch._replace(targets=jnp.where(batch.targets == tokenizer.eos_id, 5, batch.targets))
    assert float(terms(model, batch).denominator) == 2 + 3 + 3
    assert abs(float(terms(model, other).sum - terms(model, batch).sum)) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_row_04_losses_are_the_same_where_pad_is_eos(kind):
    make, objective, _, _ = KINDS[kind]
    one, other = batch_of(kind), batch_of(kind, pad_is_eos=True)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    run = jax.jit(objective.terms)
    (first,), (second,) = (run(make(layers=1), batch).values() for batch in (one, other))
    np.testing.assert_allclose([first.sum, first.denominator], [second.sum, second.denominator], rtol=1e-5)


def test_row_13_pairs_count_by_their_weight_however_they_are_cut():
    """Four microbatches of weights 2, 0, 1 and 0: the gradient is that of the three pairs that there are."""
    make, objective, _, _ = KINDS["generative"]
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch_of("generative"))
    weighted = batch._replace(weight=jnp.array([2.0, 0.0, 1.0, 0.0]))
    repeated = jax.tree.map(lambda x: x[jnp.array([0, 0, 2])], batch)
    run = jax.jit(lambda model, batch, parts: gradients(objective, model, batch, parts), static_argnums=2)
    model = make(layers=1)
    (cut, metrics), (whole, others) = run(model, weighted, 4), run(model, repeated, 1)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max() + 1e-8)
    for name in ("loss", "preference", "accuracy"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4)


def test_row_16_positions_count_from_the_first_real_token(freeze, rollout, truth):
    """Prompts are padded on the left with tokens that nothing may see; policy and critic alike."""
    experience, _ = freeze()
    for rows in (experience.rows, experience.critique.rows):
        for i, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
            valid = rows.segments[i] == 1
            assert np.flatnonzero(valid).tolist() == list(range(4 - prompt, 4 + length))
            assert rows.positions[i][valid].tolist() == list(range(prompt + length))
    np.testing.assert_allclose(experience.frozen.logp_old, truth.logp, atol=5e-5)
    np.testing.assert_allclose(experience.critique.values_old, truth.values, atol=5e-5)


def test_row_16_the_sampler_counts_them_too(models, rollout):
    """What it says of its own samples is what rows without padding say."""
    config = SamplingConfig(4, (31,), 0)
    keys = row_keys(jax.random.key(0), 0, 4)
    got = generate(models.policy, rollout.prompt, rollout.prompt_mask, keys, config=config)
    np.testing.assert_allclose(got.logp, chosen(response_laws(models.policy, got, 1.0), got), atol=5e-5)


def test_row_16_packed_demonstrations_do_not_see_each_other():
    """Two rows in one, as two segments: the same loss, and the same gradient."""
    batch, tokenizer = jax.tree.map(lambda x: x[:2], batch_of("sft")), LetterTokenizer()
    lengths = [len(encode_prompt(tokenizer, r.prompt)) + len(r.response) + 1 for r in DEMONSTRATIONS[:2]]

    def pack(x):
        row = jnp.concatenate([x[i, :n] for i, n in enumerate(lengths)])
        return jnp.pad(row, (0, 18 - len(row)))[None]

    rows = TokenRows(*(pack(x) for x in batch.rows))
    first = jnp.arange(18)[None] < lengths[0]
    rows = rows._replace(segments=jnp.where(first | (rows.segments == 0), rows.segments, 2))
    packed = SFTBatch(rows, pack(batch.targets), pack(batch.mask))
    assert packed.mask.sum() == batch.mask.sum()
    run = jax.jit(lambda model, batch: gradients(SFT, model, batch))
    model = make_decoder(layers=1)
    (together, metrics), (apart, others) = run(model, packed), run(model, batch)
    np.testing.assert_allclose(metrics["nll"], others["nll"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max() + 1e-8)


WIDE = {
    "sft": (sft_objective, functools.partial(encode_sft, max_prompt=12, max_response=12), DEMONSTRATIONS),
    "generative": (
        functools.partial(generative_objective, verdict_ids(LetterTokenizer(), TEMPLATE)),
        lambda tokenizer, record: encode_generative_pair(tokenizer, TEMPLATE, record, max_length=24),
        PAIRS,
    ),
}


@pytest.mark.parametrize("kind", WIDE)
def test_row_16_rows_that_the_model_reads_in_one_do_not_see_each_other(kind):
    """As they are packed in training: the same loss, and the same gradient."""
    objective, encode, records = WIDE[kind]
    batch = jax.tree.map(jnp.asarray, stack_rows([encode(LetterTokenizer(), record)[0] for record in records]))
    rows = [x for x in jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, TokenRows)) if isinstance(x, TokenRows)]
    lengths = np.concatenate([(x.segments > 0).sum(-1) for x in rows])[None]
    packed = rows_needed(lengths, 24)
    assert 2 * packed <= lengths.size + 1
    model = make_decoder(layers=1)
    run = jax.jit(lambda m, b, count: gradients(objective(packed=count), m, b), static_argnums=2)
    (together, metrics), (apart, others) = (run(model, batch, count) for count in (packed, 0))
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max() + 1e-8)
