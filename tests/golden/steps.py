"""One real update of PPO and of each reward model on small fixed inputs, as plain numbers.

    PYTHONPATH=tests .venv/bin/python -m golden.steps

rewrites `golden.json`; `test_golden_step.py` says when that is legitimate.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from correctness.world import make_critic
from fakes import LetterTokenizer, make_decoder, make_rollout, make_scalar_model, on_mesh, one_device, user

from prl_jax.data.records import PreferenceRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair, stack_rows
from prl_jax.methods import Critic, Method, NoOpponent, RewardKL, Score, TokenClip
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.training.policy import Schedule, make_updates, prepare, run_updates
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.rollout import CriticContext
from prl_jax.training.state import create_state, initial_state, with_returns
from prl_jax.training.step import make_train_step
from prl_jax.tree import flatten

FILE = Path(__file__).with_name("golden.json")
Numbers = dict[str, float]
# The large eps makes updates follow the size of gradients too, and not the sign of what is nearly 0.
OPTIMIZER = make_optimizer(learning_rate=0.01, total_steps=10, clip_norm=0.5, weight_decay=0.01, eps=0.02)
PAIRS = [
    PreferenceRecord("0", user("ab"), "cde", "f", p_chosen=0.8),
    PreferenceRecord("1", user("c"), "g", "hijk"),
    PreferenceRecord("2", user("dd"), "lm", "", tie=True),
    PreferenceRecord("3", user("a"), "no", "on"),
]


METHOD = Method(
    NoOpponent(),
    Score(),
    Critic(gamma=0.98, weight=0.5, clip=0.2, bootstrap_truncated=True),
    TokenClip(high=0.28, dual=3.0),
    RewardKL(coefficient=0.1, entropy=0.01),
)
SCHEDULE = Schedule(accumulate=2, temperature=0.8)


def ppo() -> Numbers:
    """What is frozen, two epochs of two minibatches, and how far they move each parameter of policy and critic."""
    pieces = dict(method=METHOD, schedule=SCHEDULE)
    mesh, lengths = one_device(), [2, 5, 1, 5, 3, 4, 5, 1]
    create = lambda model: create_state(on_mesh(model, mesh), OPTIMIZER, mesh, LOGICAL_AXES)  # noqa: E731
    policy, critic = make_decoder(0, layers=1), make_critic(1)
    state = initial_state(create(policy), create(critic), METHOD)
    rollout = make_rollout(0, [3, 1, 4, 2] * 2, lengths, [False, True, *[False] * 4, True, False], room=5)
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    score = jnp.linspace(-0.5, 1.5, 8)
    reference = on_mesh(make_decoder(2, layers=1), mesh)
    experience, frozen = prepare(state, reference, rollout, context, score, **pieces)
    state = with_returns(state, frozen["return_deviation"])
    updates = make_updates(METHOD, SCHEDULE, OPTIMIZER, OPTIMIZER)
    state, metrics = run_updates(updates, state, experience, jax.random.key(0), **pieces, train_policy=True)
    return {
        **_named("frozen", frozen),
        **_named("metrics", metrics),
        **_moved("policy", policy, state.policy.model),
        **_moved("critic", critic, state.critic.model),
    }


def bradley_terry() -> Numbers:
    """One step on four pairs, one of them a tie."""
    encode = lambda pair: encode_scalar_pair(LetterTokenizer(), pair, max_prompt=5, max_response=5)[0]  # noqa: E731
    objective = bradley_terry_objective(label_smoothing=0.05, center=0.01)
    return _reward_model(make_scalar_model(3), objective, encode)


def generative() -> Numbers:
    """One step on the same pairs, in both orders."""
    tokenizer, template = LetterTokenizer(), JudgeTemplate()
    encode = lambda pair: encode_generative_pair(tokenizer, template, pair, max_length=16)[0]  # noqa: E731
    objective = generative_objective(verdict_ids(tokenizer, template), w_cons=0.02)
    return _reward_model(make_decoder(4), objective, encode)


STEPS: Mapping[str, Callable[[], Numbers]] = MappingProxyType(
    {"ppo": ppo, "bradley_terry": bradley_terry, "generative": generative}
)


def _reward_model(model: Any, objective: Any, encode: Callable[[PreferenceRecord], Any]) -> Numbers:
    mesh = one_device()
    rows = [encode(pair)._replace(label=np.float32(pair.soft_label)) for pair in PAIRS]
    state = create_state(on_mesh(model, mesh), OPTIMIZER, mesh, LOGICAL_AXES)
    state, metrics = make_train_step(objective, OPTIMIZER, 2)(state, put_batch(stack_rows(rows), mesh))
    return {**_named("metrics", metrics), **_moved("model", model, state.model)}


def _named(group: str, values: Mapping[str, Any]) -> Numbers:
    return {f"{group}/{name}": float(value) for name, value in values.items()}


def _moved(group: str, before: Any, after: Any) -> Numbers:
    """Norm of the difference, tensor by tensor."""
    old = flatten(before)
    return _named(f"moved/{group}", {k: np.linalg.norm(np.asarray(x) - old[k]) for k, x in flatten(after).items()})


if __name__ == "__main__":
    numbers = {name: {k: float(f"{v:.7g}") for k, v in step().items()} for name, step in STEPS.items()}
    FILE.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
