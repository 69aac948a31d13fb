"""Where gradient descent with the pieces of each method ends, against its closed form."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from losses.tabular import REF, RESPONSES, gibbs, mirror_ascent, total_variation
from methods.tabular import descend

from prl_jax.methods import METHODS, Critic, Standardised, TokenClip

SCORES = np.array([0.5, -0.8, 1.8, 0.2, -1.5, 1.2, 0.7])
LOGITS = SCORES[:, None] - SCORES  # a Bradley-Terry judge
WINS = 1 / (1 + np.exp(-LOGITS))
ANCHORS = np.array([1, 2, 5])
SIZE = 3  # responses to a prompt, where they need not be two


def as_tried(name):
    """A method as it is tested: the mean over whole responses, a coefficient that fits the reward, no whitening."""
    method = METHODS[name].method
    if isinstance(method.baseline, Critic):
        method = dataclasses.replace(method, baseline=dataclasses.replace(method.baseline, whiten=False))
    if isinstance(method.surrogate, TokenClip):
        method = dataclasses.replace(method, surrogate=TokenClip(reduce="seq_mean_token_sum"))
    beta = 1.0 if name in ("ppo", "rloo", "online_dpo") else 0.25
    return dataclasses.replace(method, regulariser=dataclasses.replace(method.regulariser, coefficient=beta)), beta


def size_of(method):
    return 2 if method.surrogate.unit == 2 else SIZE if method.baseline.least_group > 1 else 1


def self_play(beta):
    return mirror_ascent(lambda pi: WINS @ pi, beta)


# Within a group, what antisymmetric win rates add up to is constant, and what the divergences add up to is not: the
# baseline takes its share of the divergence alone, so that the coefficient counts (G - 1) / G of itself.
OPTIMA = {
    "ppo": lambda beta: gibbs(SCORES, beta),
    "rloo": lambda beta: gibbs(SCORES, beta),
    "pairwise_rl": lambda beta: gibbs(WINS[:, ANCHORS].mean(1), beta),
    "par": lambda beta: gibbs(WINS[:, ANCHORS].mean(1), beta),
    "spo": lambda beta: self_play(beta * (SIZE - 1) / SIZE),
    "p3o": lambda beta: self_play(beta / 2),
    "online_dpo": lambda beta: gibbs(SCORES, beta),
}
# Dividing by the deviation of the group makes each group its own problem: there is no closed form.
WITHOUT = {name for name, preset in METHODS.items() if isinstance(preset.method.baseline, Standardised)}


def end_of(name):
    method, beta = as_tried(name)
    found = descend(method, size_of(method), jnp.float32(LOGITS), jnp.float32(SCORES), ANCHORS)
    return np.asarray(found, np.float64), beta


def test_every_method_has_an_optimum_or_is_known_to_have_none():
    assert OPTIMA.keys() | WITHOUT == METHODS.keys() and not OPTIMA.keys() & WITHOUT


@pytest.mark.parametrize("name", OPTIMA)
def test_methods_end_at_their_optimum(name):
    found, beta = end_of(name)
    expected = OPTIMA[name](beta)
    assert total_variation(found, expected) < 2e-3
    for other in (np.full(RESPONSES, 1 / RESPONSES), REF, OPTIMA[name](2 * beta)):
        assert total_variation(other, expected) > 0.02


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_methods_without_an_optimum_get_better_and_stay_near_the_reference(name):
    found, _ = end_of(name)
    assert found @ SCORES > REF @ SCORES + 0.3
    assert np.argsort(found / REF)[-1] == np.argmax(SCORES) and found.max() < 0.99
