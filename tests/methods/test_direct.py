"""Direct losses as pieces: their keys, what they say of themselves, and the table of presets."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.tabular import direct_terms

from prl_jax.errors import UserError
from prl_jax.methods import DIRECT, DIRECT_LOSSES, DirectLoss, section_of
from prl_jax.methods.direct import APO, BCO, EXO, IPO, KTO, ORPO, RWR, SPPO, Hinge, Linear, Robust, Sigmoid, Squared

every_kind = pytest.mark.parametrize("kind", DIRECT_LOSSES)
KEYS = {
    "references", "length", "label", "sft_weight", "sft_length", "value_weight", "beta_scale", "beta_scale_rate",
}  # fmt: skip
LABELS = {"label": ("hard", "soft"), "targets": ("win_rate", "score"), "gap": ("hard", "soft", "score", "win_gap")}
NAMES = (
    "dpo cdpo robust ipo slic rso rpo simpo orpo cpo kto apo nca bco exo vpo smpo dro rwr mm_dpo sppo".split()
)  # fmt: skip


def some_terms(**changes):
    numbers = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3)), jnp.float32)
    fields = dict(logp_1=-abs(numbers[2]), logp_2=-abs(numbers[3]), target_1=numbers[4], target_2=numbers[5])
    return direct_terms(numbers[0], numbers[1], weight=jnp.array([1.0, 0.0, 2.0]), **{**fields, **changes})


# Pieces


@every_kind
def test_a_piece_keeps_the_protocol(kind):
    piece = DIRECT_LOSSES[kind]()
    assert isinstance(piece, DirectLoss) and piece.kind == kind
    assert piece.reads in LABELS and piece.statistic in ("", "mismatched", "mean") and piece.length in ("", "mean")
    assert section_of(piece) == {"kind": kind, **dataclasses.asdict(piece)}
    assert hash(piece) == hash(dataclasses.replace(piece))


@every_kind
def test_every_key_has_its_sentence_and_a_default_of_a_plain_type(kind):
    cls = DIRECT_LOSSES[kind]
    attributes = re.split(r"\n\n|\Z", cls.__doc__.split("Attributes:\n")[1])[0]
    documented = re.findall(r"^      ([a-z_, ]+):", attributes, flags=re.MULTILINE)
    fields = dataclasses.fields(cls)
    assert sorted(", ".join(documented).split(", ")) == sorted(field.name for field in fields)
    assert {type(field.default) for field in fields} <= {float, str}


@every_kind
def test_the_denominator_is_known_beforehand(kind):
    piece, terms = DIRECT_LOSSES[kind](), some_terms()
    known = piece.denominator(terms.weight, terms.target_1, terms.target_2)
    np.testing.assert_allclose(piece(terms).denominator, known, rtol=1e-6)
    filled = jnp.where(terms.weight > 0, terms.target_1, jnp.nan)
    np.testing.assert_allclose(piece.denominator(terms.weight, filled, terms.target_2), known, rtol=1e-6)
    assert known.dtype == jnp.float32 and known > 0


@every_kind
def test_it_says_truly_what_it_reads(kind):
    """A field that it does not name has no part in its loss, and one that it names has."""
    piece = DIRECT_LOSSES[kind]()
    value = jax.jit(lambda terms: piece(terms).value)
    terms = some_terms(label=jnp.array([0.7, 0.5, 1.0]), statistic=jnp.float32(0.3))
    changed = {
        "label": terms._replace(label=jnp.array([0.2, 0.5, 0.6])),
        "targets": terms._replace(target_1=terms.target_1 + 0.3),
        "gap": terms._replace(target_1=terms.target_1 + 0.3),
        "statistic": terms._replace(statistic=jnp.float32(9.0)),
        "scale": terms._replace(scale=jnp.float32([2.0, 1.0, 0.5])),
        "ratio": terms._replace(ratio_1=terms.ratio_1 + 0.1),
        "logp": terms._replace(logp_1=terms.logp_1 - 0.1),
    }
    moved = {name for name, other in changed.items() if abs(value(other) - value(terms)) > 1e-6}
    expected = {"logp" if piece.reference_free else "ratio"}
    expected |= {"label"} if piece.reads == "label" else {"targets", "gap"}
    expected |= {name for name in ("statistic",) if piece.statistic}
    expected |= {name for name in ("scale",) if piece.scales}
    assert moved == expected


@every_kind
def test_what_it_compares_is_what_its_margin_is(kind):
    piece, terms = DIRECT_LOSSES[kind](), some_terms(target_1=jnp.ones(3), target_2=jnp.zeros(3))
    u_1, u_2 = piece.scaled(terms)
    lead, count = piece(terms).aux["margin"]
    np.testing.assert_allclose(lead / count, jnp.sum(terms.weight * (u_1 - u_2)) / 3.0, rtol=1e-5)


def test_the_beta_of_a_pair_is_multiplied_by_its_scale():
    terms = some_terms()
    for cls in (Sigmoid, Hinge, KTO, BCO):
        wide = terms._replace(scale=jnp.full(3, 2.0), statistic=jnp.float32(0.4))
        alone = terms._replace(statistic=jnp.float32(0.4))
        np.testing.assert_allclose(cls(beta=0.2)(wide).value, cls(beta=0.4)(alone).value, rtol=1e-5)


def test_a_negative_divergence_counts_as_none():
    terms = some_terms()
    below, none = (KTO()(terms._replace(statistic=jnp.float32(x))).value for x in (-3.0, 0.0))
    assert below == none != KTO()(terms._replace(statistic=jnp.float32(3.0))).value


def test_weights_of_scores_are_bounded():
    far = some_terms(target_1=jnp.full(3, 1e4), target_2=jnp.full(3, -1e4))
    out = RWR(beta=0.1)(far)
    np.testing.assert_allclose(out.value, -jnp.sum(far.weight * far.logp_1) / 3.0, rtol=1e-5)
    assert np.isfinite(out.sum)


WRONG = [
    *[(cls, {"beta": value}) for cls in DIRECT_LOSSES.values() if hasattr(cls, "beta") for value in (0.0, -1.0)],
    (Sigmoid, {"margin": -0.1}),
    (Sigmoid, {"label_smoothing": 0.6}),
    (IPO, {"tau": 0.0}),
    (Robust, {"flip_rate": 0.5}),
    (Squared, {"least": 0.0}),
    (Squared, {"least": 0.7}),
    (Linear, {"clip": 0.0}),
    (KTO, {"desirable": 0.0}),
    (KTO, {"undesirable": -1.0}),
    (ORPO, {"coefficient": 0.0}),
    (APO, {"form": "up"}),
    (EXO, {"label_smoothing": 0.0}),
    (EXO, {"label_smoothing": 0.9}),
]


@pytest.mark.parametrize(("cls", "field"), WRONG, ids=lambda x: x.__name__ if isinstance(x, type) else str(x))
def test_wrong_fields_are_named_first(cls, field):
    (name, value), = field.items()  # fmt: skip
    with pytest.raises(UserError, match=f"^{name}={re.escape(repr(value))}, expected "):
        cls(**field)


# Presets


def test_the_table_has_the_methods_of_the_field():
    assert list(DIRECT) == NAMES
    assert {preset.loss.kind for preset in DIRECT.values()} == set(DIRECT_LOSSES) - {"squared"}


@pytest.mark.parametrize("name", DIRECT)
def test_a_preset_fits_its_loss(name):
    preset = DIRECT[name]
    values, loss = dict(preset.values), preset.loss
    assert set(values) <= KEYS
    assert values.get("label", "hard") in LABELS[loss.reads]
    assert values.get("length", "sum") == (loss.length or values.get("length", "sum"))
    assert values.get("length", "sum") in ("sum", "mean") and values.get("sft_length", "sum") in ("sum", "mean")
    assert values.get("references", None) == () or not loss.reference_free
    assert ("sft_length" in values) == ("sft_weight" in values)
    assert ("beta_scale" in values) == ("beta_scale_rate" in values) <= loss.scales
    assert preset.evidence in ("confirmed", "reconstructed")
    assert preset.title and preset.remark.endswith(".") and preset.source.startswith(("arXiv ", "ericmitchell.ai/"))
    assert np.isfinite(functools.reduce(jnp.add, jax.tree.leaves(loss(some_terms()))))


def test_what_presets_say_of_one_another():
    """The numbers that their remarks and papers give."""
    rpo, vpo, simpo = DIRECT["rpo"], DIRECT["vpo"], DIRECT["simpo"]
    assert (rpo.loss, dict(rpo.values)) == (Sigmoid(beta=0.5), dict(sft_weight=0.2, sft_length="mean"))
    assert vpo.values["value_weight"] < 0
    assert 0.1 <= simpo.loss.margin / simpo.loss.beta <= 0.8
    assert DIRECT["sppo"].loss == SPPO(beta=0.001, even=0.5)
    assert {name for name, preset in DIRECT.items() if preset.values.get("references") == ()} == {
        "slic", "simpo", "orpo", "cpo", "rwr",
    }  # fmt: skip
