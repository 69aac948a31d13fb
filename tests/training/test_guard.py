"""Updates that do nothing: of a step that has gone far enough, and those whose gradient would do harm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import copy, make_decoder, make_rollout, on_mesh, one_device, with_pieces
from running import unoptimised

from prl_jax.errors import UserError
from prl_jax.methods import METHODS
from prl_jax.models import LOGICAL_AXES
from prl_jax.training.guard import averaged, begun
from prl_jax.training.policy import make_updates, prepare
from prl_jax.training.schedule import Schedule, check_together
from prl_jax.training.state import create_state, initial_state

METHOD = with_pieces(METHODS["rloo"].method, regulariser=dict(coefficient=0.0))
SCHEDULE = Schedule(group_size=2, stop_kl=1e-6, skip_updates=3, spike=5.0)
PIECES = dict(method=METHOD, schedule=SCHEDULE)
SOUND, BROKEN, STEEP = (jnp.arange(start, start + 4) for start in (0, 4, 8))  # rows


@pytest.fixture(scope="module")
def steps():
    """The states around updates on `SOUND`, `BROKEN`, `STEEP` and twice on `SOUND` again; and their metrics."""
    mesh, optimizer = one_device(), optax.adam(0.001)
    with unoptimised():
        state = create_state(on_mesh(make_decoder(0, layers=1), mesh), optimizer, mesh, LOGICAL_AXES)
        state = initial_state(state, None, METHOD, guarded=SCHEDULE.guarded)
        rollout = make_rollout(0, [3, 1] * 6, [2, 5] * 6, [False] * 12, room=5)
        reward = jnp.arange(12.0) % 4
        experience, _ = prepare(state, state.policy.model, rollout, None, reward, **PIECES)
        size = jnp.array([1.0] * 4 + [jnp.nan] * 4 + [100.0] * 4)
        frozen = experience.frozen._replace(advantages=experience.frozen.advantages * size[:, None])
        update = make_updates(METHOD, SCHEDULE, optimizer).train
        states, metrics = [copy(state)], []
        for rows in (SOUND, BROKEN, STEEP, SOUND, SOUND):
            state, found = update(state, experience._replace(frozen=frozen), rows)
            states.append(copy(state))
            metrics.append(found)
    return states, metrics


def equal(one, other) -> bool:
    return all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_gradients_that_are_not_finite_or_spike_change_nothing(steps):
    states, metrics = steps
    assert not equal(states[0].policy.model, states[1].policy.model)
    for i in (1, 2):
        assert equal(states[i].policy, states[i + 1].policy) and float(states[i + 1].guard.skipped) == i
        assert states[i + 1].guard.norms == states[i].guard.norms
    assert [one["updates_run"] for one in metrics[:4]] == [1, 0, 0, 1]
    assert all(jnp.isfinite(x) for one in metrics for x in one.values())
    norms = [metrics[i]["grad_norm"] for i in (0, 3)]
    np.testing.assert_allclose(states[4].guard.norms["grad_norm"], 0.9 * norms[0] + 0.1 * norms[1], rtol=1e-5)


def test_nothing_follows_on_a_divergence_that_is_too_large(steps):
    """The update that measures it is the last one of its step; the next step begins anew."""
    states, metrics = steps
    assert [one["approx_kl"] > SCHEDULE.stop_kl for one in metrics] == [False, False, False, True, False]
    assert not equal(states[3].policy.model, states[4].policy.model) and equal(states[4], states[5])
    assert [one["stopped_updates"] for one in metrics] == [0, 0, 0, 0, 1]
    assert [float(begun(state).guard.stopped) for state in states[3:5]] == [0, 0]


def test_metrics_are_means_over_the_updates_that_ran(steps):
    mean = averaged(steps[1])
    for name in ("loss", "grad_norm", "ratio"):
        np.testing.assert_allclose(mean[name], (steps[1][0][name] + steps[1][3][name]) / 2, rtol=1e-6)
    np.testing.assert_allclose([mean["stopped_updates"], mean["skipped_updates"]], [0.2, 2])
    assert "updates_run" not in mean
    zero, three = jnp.float32(0), jnp.float32(3)
    assert averaged([{"loss": zero, "updates_run": zero, "skipped_updates": three}]) == {
        "loss": 0, "skipped_updates": 3
    }  # fmt: skip


def test_what_a_truncated_response_never_earns_cannot_be_changed():
    method = with_pieces(METHODS["ppo"].method, baseline=dict(bootstrap_truncated=True))
    for values in (dict(overlong=(4, 1.0)), dict(length_weight=0.1, group_size=2)):
        with pytest.raises(UserError, match=f"{next(iter(values))}=.*: with baseline.bootstrap_truncated"):
            check_together(method, Schedule(**values))


def test_a_surrogate_that_measures_no_divergence_cannot_be_stopped_by_one():
    check_together(METHODS["grpo"].method, Schedule(group_size=4, stop_kl=0.1))
    with pytest.raises(UserError, match="stop_kl=0.1: the surrogate 'pair_clip'"):
        check_together(METHODS["p3o"].method, Schedule(group_size=2, stop_kl=0.1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(stop_kl=-1.0), "stop_kl=-1.0, expected at least 0"),
        (dict(stop_kl=0.1, epochs=1, minibatches=1), "stop_kl=0.1: a step has one update"),
        (dict(skip_updates=-1), "skip_updates=-1, expected at least 0"),
        (dict(skip_updates=1, spike=0.5), "spike=0.5, expected 0"),
        (dict(spike=3.0), "spike=3.0: with skip_updates=0"),
        (dict(overlong=(4,)), r"overlong=\(4,\), expected \(\) or \(buffer, penalty\)"),
        (dict(overlong=(4, "much")), "overlong=.*expected"),
        (dict(flat_groups="leave"), "flat_groups='leave', expected one of 'keep', 'drop'"),
        (dict(flat_groups="drop"), "flat_groups='drop': one response is always a flat group"),
        (dict(flat_groups="drop", group_size=2, redraws=2), "redraws=2: nothing is drawn again"),
        (dict(flat_groups="redraw", group_size=2, redraws=0), "redraws=0, expected at least 1"),
        (dict(length_weight=0.1), "length_weight=0.1: compares lengths in a group"),
    ],
)
def test_switches_that_mean_nothing_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Schedule(**values)
