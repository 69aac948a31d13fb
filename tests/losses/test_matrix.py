"""What every loss promises, over random shapes, lengths and weights, against `references.py` in float64."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from losses import references

from prl_jax import losses
from prl_jax.types import LossOutput

TOKENS = {"token": dict(reduce="token_mean"), "sequence": dict(reduce="seq_mean_token_sum")}
POLICY = dict(clip_low=0.1, clip_high=0.3, dual=2.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of the package, its reference, and the arrays that both take: name -> kind of numbers.

    Kinds: "real" (about 0, both signs), "logp" (negative), "prob" (in [0, 1]), "margin" (positive). `axes` are those of
    the arrays, "B" for rows and "T" for tokens; names in `rows` have one number a row. `masked_by` is "mask", a bool a
    token, or "weight", one number a row. Rows are axis `rows_axis` of a result that is no loss.
    """

    function: Callable
    reference: Callable
    arrays: dict[str, str]
    options: dict = dataclasses.field(default_factory=dict)
    axes: str = "BT"
    rows: tuple[str, ...] = ()
    masked_by: str = "mask"
    rows_axis: int = 0
    differentiable: tuple[str, ...] = ()


def pairs(function, reference, arrays, **options):
    """A loss of pairs: the arrays that it is differentiated by come first."""
    first = tuple(name for name, kind in arrays.items() if kind == "real")
    return Case(function, reference, arrays, options, axes="B", masked_by="weight", differentiable=first)


@functools.wraps(losses.gae)
def stacked_gae(**arguments):
    return jnp.stack(losses.gae(**arguments))


TWO = {"z12": "real", "z21": "real", "label": "prob"}
CASES = {
    "bt": pairs(
        losses.bt_loss,
        references.bt_loss,
        {"r_w": "real", "r_l": "real", "label": "prob", "margin": "margin"},
        label_smoothing=0.1,
        center=0.01,
    ),
    "bt_ties": pairs(
        losses.bt_ties_loss,
        references.bt_ties_loss,
        {"r_w": "real", "r_l": "real", "label": "prob", "tie": "prob"},
        log_theta=0.4,
    ),
    "genrm": pairs(losses.pairwise_genrm_loss, references.genrm_loss, TWO, form="both_orders", w_cons=0.1),
    "genrm antisymmetric": pairs(
        losses.pairwise_genrm_loss, references.genrm_loss, TWO, form="antisymmetric", w_cons=0.1
    ),
    "pairwise_policy": Case(
        losses.pairwise_policy_loss,
        references.pairwise_policy_loss,
        dict(l1="real", l2="real", l1_old="real", l2_old="real", win="prob"),
        dict(beta=0.1, eps=0.3, c=3.0),
        axes="B",
        masked_by="weight",
    ),
    **{
        f"pair_regression {link}": Case(
            losses.pair_regression_loss,
            references.pair_regression_loss,
            dict(l1="real", l2="real", win="prob"),
            dict(beta=0.4, link=link),
            axes="B",
            masked_by="weight",
            differentiable=("l1", "l2"),
        )
        for link in ("logistic", "squared")
    },
    **{
        f"policy {level} {reduce}": Case(
            losses.ppo_policy_loss,
            references.ppo_policy_loss,
            dict(logp="logp", logp_old="logp", adv="real"),
            dict(**POLICY, reduce=reduce, ratio_level=level),
            differentiable=("logp",),
        )
        for level, reduce in (
            ("token", "token_mean"),
            ("token", "seq_mean_token_sum"),
            ("token", "seq_mean_token_mean"),
            ("sequence", "token_mean"),
        )
    },
    "value": Case(
        losses.ppo_value_loss,
        references.ppo_value_loss,
        dict(v="real", v_old="real", ret="real"),
        dict(clip_value=0.3),
        differentiable=("v",),
    ),
    "entropy": Case(
        losses.entropy_loss,
        lambda entropy, mask: -references.token_mean(entropy, mask),
        dict(entropy="margin"),
        differentiable=("entropy",),
    ),
    "lm": Case(
        losses.lm_loss,
        lambda logp, mask: -references.token_mean(logp, mask),
        dict(logp="logp"),
        differentiable=("logp",),
    ),
    "token_rewards": Case(
        losses.token_rewards, references.token_rewards, dict(score="real", kl="real"), dict(beta=0.3), rows=("score",)
    ),
    "gae": Case(
        stacked_gae,
        references.gae,
        dict(rewards="real", values="real", bootstrap="real"),
        dict(gamma=0.9, lam_actor=0.8, lam_critic=0.95),
        rows=("bootstrap",),
        rows_axis=1,
    ),
    **{
        f"kl {kind}": Case(
            losses.kl_estimate,
            references.kl_estimate,
            dict(logp="logp", logp_ref="logp"),
            dict(kind=kind),
            differentiable=("logp",),
        )
        for kind in ("k1", "k2", "k3")
    },
    "whiten": Case(losses.masked_whiten, references.whiten, dict(x="real"), dict(ddof=1, eps=1e-8)),
    **{
        f"group {kind}": Case(losses.group_advantage, references.group_advantage, dict(r="real"), dict(kind=kind))
        for kind in ("leave_one_out", "mean", "standardised")
    },
    **{
        f"reward {f}": Case(
            losses.pairwise_rl_reward, references.pairwise_rl_reward, dict(z_ya="real", z_ay="real"), dict(f=f)
        )
        for f in ("id", "centred", "logit", "log", "hard", "signed", "verdicts")
    },
    **{
        f"reward over {over}": Case(
            losses.pairwise_rl_reward,
            references.pairwise_rl_reward,
            dict(z_ya="real", z_ay="real"),
            dict(f="id", over=over),
        )
        for over in ("min", "sign")
    },
    "single_regression": Case(
        losses.single_regression_loss,
        references.single_regression_loss,
        dict(ratio="real", target="real"),
        dict(beta=0.4),
        axes="B",
        masked_by="weight",
        differentiable=("ratio",),
    ),
    "reinforce": Case(
        losses.reinforce_loss,
        references.weighted_logp,
        dict(logp="logp", logp_old="logp", adv="real"),
        dict(reduce="seq_mean_token_sum"),
        differentiable=("logp",),
    ),
    "win_rate": Case(losses.win_rate, references.win_rate, dict(P="prob"), axes="BTT"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
LOSSES = {name: case for name, case in CASES.items() if case.differentiable}
every_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())


def draw(case: Case, seed: int, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Random inputs in float32, whatever is masked being NaN; rows may be empty."""
    rng = np.random.default_rng(seed)
    sizes = {"B": rows, "T": tokens}
    shape = tuple(sizes[axis] for axis in case.axes)
    lengths = rng.integers(0, tokens + 1, rows)
    if case.masked_by == "weight":
        mask = rng.choice([0.0, 0.5, 1.0], rows).astype(np.float32)
    else:
        mask = np.broadcast_to(
            (np.arange(tokens) < lengths[:, None]).reshape(shape[0], *[1] * (len(shape) - 2), -1), shape
        )
    numbers = {
        "real": lambda size: rng.normal(size=size),
        "logp": lambda size: -rng.exponential(size=size),
        "prob": lambda size: rng.choice([0.0, 0.5, 1.0, rng.uniform()], size),
        "margin": lambda size: rng.exponential(size=size),
    }
    arrays = {}
    for name, kind in case.arrays.items():
        full = numbers[kind](rows if name in case.rows else shape).astype(np.float32)
        arrays[name] = full if name in case.rows else np.where(mask > 0, full, np.nan).astype(np.float32)
    return {**arrays, case.masked_by: mask}


def call(case: Case, arrays: dict[str, np.ndarray], function: Callable | None = None):
    """The value of the loss, or the function's result, as float64 for comparing."""
    out = (function or case.function)(**{k: jnp.asarray(x) for k, x in arrays.items()}, **case.options)
    return out.value if isinstance(out, LossOutput) else out


shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
# Each new shape compiles every operation anew.
few = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


@every_case
@few
@given(shapes)
def test_float32_equals_float64_plain_loops_and_is_blind_to_what_is_masked(case, shape):
    rows, tokens, seed = shape
    arrays = draw(case, seed, rows, tokens)
    exact = case.reference(
        **{k: x if x.dtype == bool else x.astype(np.float64) for k, x in arrays.items()}, **case.options
    )
    np.testing.assert_allclose(call(case, arrays), exact, rtol=1e-5, atol=1e-5)


@every_case
def test_float32_comes_out_of_bfloat16(case):
    arrays = {k: jnp.asarray(x) for k, x in draw(case, 1, 4, 5).items()}
    rounded = {k: x.astype(jnp.bfloat16) if k in case.arrays else x for k, x in arrays.items()}
    widened = {k: x.astype(jnp.float32) if k in case.arrays else x for k, x in rounded.items()}
    out = case.function(**rounded, **case.options)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(call(case, rounded), call(case, widened), rtol=1e-6)


@every_case
def test_deleting_what_is_masked_and_adding_padding_change_nothing(case):
    arrays = draw(case, 2, 4, 5)
    value = np.asarray(call(case, arrays))
    keep = np.flatnonzero(np.asarray(arrays[case.masked_by]).reshape(4, -1).any(1))
    assert 0 < len(keep) < 4 or case.axes == "BT", "the case should have rows to delete"
    fewer = call(case, {k: x[keep] for k, x in arrays.items()})
    wider = {
        k: x
        if k in case.rows or case.axes == "B"
        else np.pad(x, [(0, 0)] + [(0, 3)] * (x.ndim - 1), constant_values=False if x.dtype == bool else np.nan)
        for k, x in arrays.items()
    }
    more = np.asarray(call(case, wider))
    if value.ndim:
        more = more[tuple(slice(0, size) for size in value.shape)]
        fewer_expected = np.take(value, keep, case.rows_axis)
    else:
        fewer_expected = value
    np.testing.assert_allclose(more, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fewer, fewer_expected, rtol=1e-5, atol=1e-6)


@every_case
def test_order_of_the_rows_does_not_matter(case):
    arrays, order = draw(case, 3, 4, 5), np.array([2, 0, 3, 1])
    value, shuffled = np.asarray(call(case, arrays)), call(case, {k: x[order] for k, x in arrays.items()})
    expected = np.take(value, order, case.rows_axis) if value.ndim else value
    np.testing.assert_allclose(shuffled, expected, rtol=1e-5, atol=1e-6)


def assert_close(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@every_case
def test_jit_and_vmap(case):
    several = [{k: jnp.asarray(x) for k, x in draw(case, seed, 3, 4).items()} for seed in (4, 5)]
    plain = [jax.tree.leaves(case.function(**arrays, **case.options)) for arrays in several]
    function = jax.jit(lambda **arrays: jax.tree.leaves(case.function(**arrays, **case.options)))
    for arrays, expected in zip(several, plain, strict=True):
        assert_close(function(**arrays), expected)
    stacked = {k: jnp.stack([arrays[k] for arrays in several]) for k in several[0]}
    assert_close(jax.vmap(lambda arrays: function(**arrays))(stacked), [jnp.stack(x) for x in zip(*plain, strict=True)])


@every_case
def test_nothing_to_count_gives_zero(case):
    arrays = draw(case, 6, 3, 4)
    empty = {k: np.full_like(x, np.nan) for k, x in arrays.items() if k in case.arrays and k not in case.rows}
    empty |= {case.masked_by: np.zeros_like(arrays[case.masked_by])}
    out = call(case, {**arrays, **empty})
    np.testing.assert_array_equal(out, np.zeros_like(out))


@every_loss
def test_gradients_of_what_is_trained_alone(case):
    """Right by finite differences, NaN-free beside NaN padding, and none to what is frozen."""
    arrays = {k: jnp.asarray(x) for k, x in draw(case, 7, 4, 5).items()}

    def total(inputs):
        out = case.function(**inputs, **case.options)
        return out.sum if isinstance(out, LossOutput) else jnp.sum(out)

    floats = {k: x for k, x in arrays.items() if k in case.arrays}
    rest = {k: x for k, x in arrays.items() if k not in case.arrays}
    grads = jax.jit(jax.grad(lambda floats: total({**floats, **rest})))(floats)
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name
        trained = name in case.differentiable or case.masked_by == "weight"  # labels are the caller's to stop
        assert trained or not np.any(grad), f"{name} gets a gradient"
        assert name not in case.differentiable or np.any(grad), f"{name} gets none"
    filled = {k: jnp.where(jnp.isnan(x), 0.0, x) for k, x in floats.items()}
    first = {k: filled[k] for k in case.differentiable}

    def of_trained(trained):
        return total({**filled, **rest, **{k: jnp.asarray(x) for k, x in trained.items()}})

    check_grads(of_trained, (first,), order=1, modes=["rev"], rtol=2e-2, eps=1e-3)


@every_loss
def test_extreme_inputs_have_finite_values_and_gradients(case):
    arrays = {k: jnp.asarray(x) for k, x in draw(case, 8, 4, 5).items()}
    for size in (1e4, -1e4):
        for name in case.differentiable:
            far = jnp.where(jnp.isnan(arrays[name]), jnp.nan, size)

            def total(x, name=name):
                out = case.function(**{**arrays, name: x}, **case.options)
                return out.sum if isinstance(out, LossOutput) else jnp.sum(out)

            value, grad = jax.value_and_grad(total)(far)
            assert np.isfinite(value) and np.isfinite(grad).all(), (name, size)


@every_case
def test_wrong_shapes_and_dtypes_say_what_was_expected(case):
    arrays = {k: jnp.asarray(x) for k, x in draw(case, 9, 3, 4).items()}
    for name in case.arrays:
        integers = {**arrays, name: jnp.ones(arrays[name].shape, jnp.int32)}
        column = {**arrays, name: arrays[name][..., None]}
        # The function as written, without the type checker of the test run.
        with pytest.raises(TypeError, match=f"{name}: expected a floating-point array of shape .*, given int32"):
            call(case, integers, inspect.unwrap(case.function))
        with pytest.raises(ValueError, match="expected .* given"):
            call(case, column, inspect.unwrap(case.function))
    whole = {**arrays, case.masked_by: jnp.ones(arrays[case.masked_by].shape, jnp.int32)}
    with pytest.raises(TypeError, match=f"{case.masked_by}: expected a (boolean|floating-point) array .* given int32"):
        call(case, whole, inspect.unwrap(case.function))
