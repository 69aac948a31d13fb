"""Where gradient descent with the pieces of each method ends, against its closed form."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from losses.tabular import EPOCHS, REF, RESPONSES, gibbs, mirror_ascent, total_variation
from methods.tabular import descend, greedy, mixture

from prl_jax.methods import (
    METHODS,
    Critic,
    LossKL,
    RewardKL,
    Standardised,
    TokenClip,
    baselines,
    regularisers,
    scores,
)

SCORES = np.array([0.5, -0.8, 1.8, 0.2, -1.5, 1.2, 0.7])
LOGITS = SCORES[:, None] - SCORES  # a Bradley-Terry judge
WINS = 1 / (1 + np.exp(-LOGITS))
SIGNS = np.sign(LOGITS)
ANCHORS = np.array([1, 2, 5])
SIZE = 3  # responses to a prompt, where they need not be two


def as_tried(name):
    """A method as it is tested: the mean over whole responses, a coefficient that fits the reward, no whitening.

    A method without a divergence has no optimum but the best response; here it gets one as a reward.
    """
    method = METHODS[name].method
    if isinstance(method.baseline, (Critic, baselines.Batch)):
        method = dataclasses.replace(method, baseline=dataclasses.replace(method.baseline, whiten=False))
    if isinstance(method.surrogate, TokenClip):
        method = dataclasses.replace(method, surrogate=TokenClip(reduce="seq_mean_token_sum"))
    elif hasattr(type(method.surrogate), "reduce") and "reduce" in vars(method.surrogate):
        method = dataclasses.replace(
            method, surrogate=dataclasses.replace(method.surrogate, reduce="seq_mean_token_sum")
        )
    if isinstance(method.regulariser, LossKL) and not isinstance(method.baseline, (Standardised, baselines.Difference)):
        method = dataclasses.replace(method, regulariser=RewardKL())
    if isinstance(method.reward, scores.Several):
        method = dataclasses.replace(method, reward=dataclasses.replace(method.reward, judges=("one", "other")))
    regulariser = method.regulariser
    if isinstance(regulariser, regularisers.Mixture):  # held to the policy that sampled alone, it would never stop
        regulariser = dataclasses.replace(regulariser, previous=0.5)
    beta = 1.0 if method.reward.kind == "score" or name == "online_dpo" else 0.25
    return dataclasses.replace(method, regulariser=dataclasses.replace(regulariser, coefficient=beta)), beta


def size_of(method):
    least = max(method.baseline.least_group, method.opponents.least_group)
    return 2 if method.surrogate.unit == 2 else SIZE if least > 1 else 1


def self_play(beta, wins=WINS):
    return mirror_ascent(lambda pi: wins @ pi, beta)


def against_greedy(beta):
    """Held against the greedy response of the policy that it makes itself."""
    return gibbs(WINS[:, int(np.argmax(SCORES))], beta)


def against_mixture(beta):
    """Held against the mixture of itself and its reference."""
    share = METHODS["nash_md"].method.opponents.share

    def wins(pi):
        first = np.array([pi[0], pi[1:4].sum(), pi[4:].sum()])
        logits = np.log(np.stack([first, pi[1:4] / pi[1:4].sum(), pi[4:] / pi[4:].sum()]))
        return WINS @ np.asarray(mixture(jnp.float32(logits), share), np.float64)

    return mirror_ascent(wins, beta)


def lsc(beta):
    return gibbs(np.asarray(scores.LSC()(judged_by_anchors())), beta)


def judged_by_anchors():
    from prl_jax.methods import Judgements

    others = jnp.tile(jnp.float32(SCORES[ANCHORS]), (RESPONSES, 1))
    return Judgements(jnp.ones(others.shape, bool), scores=jnp.float32(SCORES), opponent_scores=others)


# Within a group, what antisymmetric win rates add up to is constant, and what the divergences add up to is not: the
# mean of the group takes its share of the divergence alone, so that the coefficient counts (G - 1) / G of itself. The
# mean of the others adds as much to the win rates, and takes nothing of the divergence. A member that is drawn to be
# met learns nothing from its reward in one of G cases;
# not to win is to lose there.
SHARE = (SIZE - 1) / SIZE
OPTIMA = {
    **dict.fromkeys(
        ("ppo", "uwo", "wco", "rloo", "dr_grpo", "reinforce_pp", "remax", "p3o_v1", "p3o_v2", "online_dpo"),
        lambda beta: gibbs(SCORES, beta),
    ),
    **dict.fromkeys(("pairwise_rl", "par"), lambda beta: gibbs(WINS[:, ANCHORS].mean(1), beta)),
    **dict.fromkeys(("spo", "genrm_compare"), lambda beta: self_play(beta * SHARE)),
    "lsc": lsc,
    "gram": against_greedy,
    "nash_md": against_mixture,
    "tournament": lambda beta: self_play(beta * SHARE, SIGNS / 2),
    "brpo": lambda beta: self_play(beta / SHARE, SIGNS - np.eye(RESPONSES)),
    "p3o": lambda beta: self_play(beta / 2),
    "sppo": lambda beta: self_play(beta / 2),
    "online_ipo": self_play,
}
# Dividing by the deviation of the group makes each group its own problem: there is no closed form. Nor is there with
# judges that are tamed by how much they vary.
WITHOUT = {
    name for name, preset in METHODS.items() if isinstance(preset.method.baseline, (Standardised, baselines.Difference))
}


def pieces_of(name):
    method = METHODS[name].method
    return method.surrogate.kind, method.baseline.kind


FIRST = {pieces_of(name): name for name in reversed(METHODS)}.values()  # one of each surrogate with its baseline
each = lambda names: [  # noqa: E731
    name if name in FIRST else pytest.param(name, marks=pytest.mark.nightly) for name in names
]


def end_of(name):
    method, beta = as_tried(name)
    # Where advantages don't average 0 in each group, clipping holds more of one side back in later steps.
    epochs = METHODS[name].values.get("epochs", 1 if name in ("brpo", "paco_grpo") else EPOCHS)
    found = descend(method, size_of(method), jnp.float32(LOGITS), jnp.float32(SCORES), ANCHORS, epochs)
    return np.asarray(found, np.float64), beta


def test_every_method_has_an_optimum_or_is_known_to_have_none():
    assert OPTIMA.keys() | WITHOUT == METHODS.keys() and not OPTIMA.keys() & WITHOUT


def test_the_likeliest_response_takes_the_likeliest_token_twice():
    logits = jnp.float32([[0.0, 0.2, 0.1], [0.3, 0.0, 0.4], [2.0, 0.0, 0.0]])
    assert int(greedy(logits)) == 3
    np.testing.assert_allclose(mixture(logits, 1.0), REF, rtol=1e-5)


@pytest.mark.parametrize("name", each(OPTIMA))
def test_methods_end_at_their_optimum(name):
    found, beta = end_of(name)
    expected = OPTIMA[name](beta)
    assert total_variation(found, expected) < 2e-3
    for other in (np.full(RESPONSES, 1 / RESPONSES), REF, OPTIMA[name](2 * beta)):
        assert total_variation(other, expected) > 0.02


@pytest.mark.parametrize("name", each(sorted(WITHOUT)))
def test_methods_without_an_optimum_get_better_and_stay_near_the_reference(name):
    found, _ = end_of(name)
    assert found @ SCORES > REF @ SCORES + 0.3
    assert np.argsort(found / REF)[-1] == np.argmax(SCORES) and found.max() < 0.99
