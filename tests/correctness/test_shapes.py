"""Row 22 of the correctness list: shapes that would broadcast are refused, in a run where no annotation is checked.

`tests/losses/test_matrix.py` holds every single loss to this; here it is the ways in which training calls them.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import BETA, PLAIN, SCORE
from fakes import make_decoder, make_scalar_model, token_rows

from prl_jax.methods import LossKL
from prl_jax.training.policy import critic_objective, policy_objective, prepare, together
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.rollout import CriticContext
from prl_jax.training.sft import SFT
from prl_jax.types import ComparedPairs, ScoredPairs, SFTBatch

pytestmark = pytest.mark.usefixtures("unchecked")
ROWS = token_rows([[1, 2], [3], [4, 5]], 4)
SCORED, COMPARED = (kind(ROWS, ROWS, jnp.ones(3), jnp.ones(3)) for kind in (ScoredPairs, ComparedPairs))


def refused(function, *arguments) -> None:
    """Abstractly: nothing is compiled, and nothing computed."""
    with pytest.raises(ValueError, match=r"expected .*given"):
        jax.eval_shape(function, *arguments)


@pytest.mark.parametrize("make", [make_scalar_model, make_decoder], ids=["bradley_terry", "generative"])
def test_row_22_a_column_of_labels_is_no_vector(make):
    """`[B, 1] - [B]` would be the `[B, B]` differences of all pairs."""
    scalar = make is make_scalar_model
    objective = bradley_terry_objective() if scalar else generative_objective((3, 7))
    pairs = SCORED if scalar else COMPARED
    jax.eval_shape(objective.terms, make(layers=1), pairs)
    for name in ("label", "weight"):
        refused(objective.terms, make(layers=1), pairs._replace(**{name: jnp.ones((3, 1))}))


def test_row_22_a_model_that_gives_columns_is_refused():
    model = make_scalar_model(layers=1)
    column = SimpleNamespace(score=lambda *arguments: model.score(*arguments)[:, None])
    refused(lambda batch: bradley_terry_objective().terms(column, batch), SCORED)


def test_row_22_a_column_of_scores_is_no_vector(models, rollout, fresh):
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    state = fresh()
    run = lambda score: prepare(state, models.reference, rollout, context, score, **PLAIN._asdict())  # noqa: E731
    jax.eval_shape(run, jnp.asarray(SCORE))
    refused(run, jnp.asarray(SCORE)[:, None])
    refused(run, jnp.asarray(SCORE)[:1])


@pytest.mark.parametrize("name", ["mask", "logp_old", "logp_ref", "values_old", "advantages", "returns"])
def test_row_22_a_number_a_row_is_no_number_a_token(models, freeze, name):
    """Sequence advantages, for one, have to be spread over the tokens by whoever means that."""
    setting = PLAIN.but(regulariser=LossKL(coefficient=BETA))
    policy, critic = policy_objective(*setting, jnp.float32(0.1)), critic_objective(setting.method.baseline, None)
    terms = together({"policy": policy, "critic": critic}).terms
    experience = jax.tree.map(jnp.asarray, freeze()[0])
    both = {"policy": models.policy, "critic": models.critic}
    jax.eval_shape(terms, both, experience)
    part = "frozen" if hasattr(experience.frozen, name) else "critique"
    held = getattr(experience, part)
    column = held._replace(**{name: getattr(held, name)[:, :1]})
    refused(terms, both, experience._replace(**{part: column}))


def test_row_22_masks_of_demonstrations_have_the_shape_of_their_targets():
    batch = SFTBatch(ROWS, ROWS.tokens, ROWS.segments > 0)
    jax.eval_shape(SFT.terms, make_decoder(layers=1), batch)
    refused(SFT.terms, make_decoder(layers=1), batch._replace(mask=batch.mask[:, :1]))
    refused(SFT.terms, make_decoder(layers=1), batch._replace(targets=np.asarray(batch.targets)[:, :1]))
