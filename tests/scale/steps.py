"""Run by test_equality.py: what training, judging and sampling compute on meshes, a file of arrays for each.

    python steps.py FOLDER NAME=JSON ... [--join COORDINATOR NUMBER INDEX]

JSON holds the sizes of the axes; null is the first device alone.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from correctness.world import make_critic
from fakes import (
    LetterTokenizer,
    make_decoder,
    make_rollout,
    make_scalar_model,
    on_mesh,
    one_device,
    user,
    with_pieces,
)

from prl_jax.data.records import PreferenceRecord, SFTRecord
from prl_jax.data.rows import encode_generative_pair, encode_responses, encode_scalar_pair, encode_sft, stack_rows
from prl_jax.judges import GenerativeJudge, ScalarJudge
from prl_jax.methods import METHODS, Method, NoOpponent, Score
from prl_jax.methods.direct import KTO
from prl_jax.models import LOGICAL_AXES, Decoder, LoraConfig, ScalarModel, combine, split, with_adapters
from prl_jax.optim import make_optimizer
from prl_jax.processes import fetch, is_leader, joined, local_rows, put_batch
from prl_jax.sampling import SamplingConfig, decode_responses, respond
from prl_jax.sharding import make_mesh
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.training.compare import rewards_of
from prl_jax.training.direct import direct_objective
from prl_jax.training.policy import (
    Schedule,
    critic_objective,
    make_updates,
    policy_objective,
    prepare,
    run_updates,
    together,
)
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.rollout import CriticContext, Experience
from prl_jax.training.sft import SFT
from prl_jax.training.state import PolicyState, create_state, initial_state, with_returns
from prl_jax.training.step import Objective, gradients, make_train_step
from prl_jax.tree import flatten
from prl_jax.types import DirectPairs, Rollout

Arrays = dict[str, Any]
ROWS, ROOM = 16, 6
TOKENIZER, TEMPLATE = LetterTokenizer(), JudgeTemplate()
# Updates follow the size of gradients too: where one is nearly 0, rounding would decide its sign.
OPTIMIZER = make_optimizer(learning_rate=0.01, total_steps=10, clip_norm=0.5, weight_decay=0.01, eps=0.02)
TEXTS = ["cde", "f", "ghijk", "", "lm", "abcab", "n", "op"] * 2
OTHERS = ["f", "cd", "ihg", "aab", "ml", "a", "nno", "opq"] * 2
PROMPTS = [user(text) for text in ("ab", "c", "dd", "aef", "bb", "k", "aab", "j")] * 2
PAIRS = [PreferenceRecord(str(i), *row) for i, row in enumerate(zip(PROMPTS, TEXTS, OTHERS, strict=True))]
METHOD = with_pieces(
    METHODS["pairwise_rl"].method,
    baseline=dict(bootstrap_truncated=True, clip=0.2),
    surrogate=dict(high=0.28),
    regulariser=dict(coefficient=0.1, entropy=0.01),
)
PAIRED = with_pieces(METHODS["p3o"].method, regulariser=dict(coefficient=0.1, entropy=0.01))
SCHEDULE = Schedule(group_size=2, epochs=1, accumulate=2, temperature=0.8)
# One of two responses of some pairs is truncated, so that the pair does not train the policy.
PAIRED_SCHEDULE = Schedule(group_size=2, epochs=1, accumulate=2, temperature=0.8, mask_truncated=True)
# Where rewards come from; scores and anchors share one update, which asks nothing of either.
METHODS_TRIED = {"score": (METHOD, SCHEDULE), "anchors": (METHOD, SCHEDULE), "peer": (PAIRED, PAIRED_SCHEDULE)}


class Task(NamedTuple):
    """A model on its mesh, what it is fitted to, its batch, and a key for dropout."""

    model: Any
    objective: Objective
    batch: Any
    dropout: jax.Array | None = None


def supervised_tasks(mesh: jax.sharding.Mesh) -> dict[str, Task]:
    """SFT, both reward models, a direct loss that looks at the whole batch first, and adapters with dropout."""
    sft = [SFTRecord(pair.id, pair.prompt, pair.chosen) for pair in PAIRS]
    lengths = {"max_prompt": 5, "max_response": ROOM + 1}
    generative = generative_objective(verdict_ids(TOKENIZER, TEMPLATE), w_cons=0.02)
    bradley_terry = bradley_terry_objective(label_smoothing=0.05, center=0.01)
    scalar_rows = [encode_scalar_pair(TOKENIZER, pair, **lengths)[0] for pair in PAIRS]
    generative_rows = [encode_generative_pair(TOKENIZER, TEMPLATE, pair, max_length=20)[0] for pair in PAIRS]

    direct_rows = []
    for i, pair in enumerate(PAIRS):
        texts = (pair.chosen, pair.rejected, PAIRS[i - 1].chosen)
        one, two, other = encode_responses(TOKENIZER, pair.prompt, texts, **lengths)[0]
        said = [np.float32(x) for x in (0.8, (0.5, 0.1), 0.3, 1.0)]
        direct_rows.append(DirectPairs(one, two, np.float32((-9.0, -8.0)), *said, other, np.float32(-7.0)))

    def task(model: Any, objective: Objective, rows: list, dropout: jax.Array | None = None) -> Task:
        batch = put_batch(stack_rows([rows[i] for i in local_rows(mesh, ROWS)]), mesh)
        return Task(on_mesh(model, mesh), objective, batch, dropout)

    return {
        "sft": task(make_decoder(0), SFT, [encode_sft(TOKENIZER, r, **lengths)[0] for r in sft]),
        "direct": task(make_decoder(4), direct_objective(KTO(beta=0.5), sft_weight=0.1), direct_rows),
        "bradley_terry": task(make_scalar_model(1), bradley_terry, scalar_rows),
        "generative": task(make_decoder(2, tied_embeddings=False), generative, generative_rows),
        "adapters": task(adapted(make_decoder(6, layers=1), mesh), bradley_terry, scalar_rows, jax.random.key(7)),
    }


def adapted(decoder: Decoder, mesh: jax.sharding.Mesh) -> ScalarModel:
    """A score from a decoder with adapters that drop a fifth of their inputs and have learnt something."""
    lora = LoraConfig(rank=2, dropout=0.2)
    decoder = fetch(with_adapters(on_mesh(decoder, mesh), lora, mesh, key=jax.random.key(8)), mesh)
    trained, frozen = split(ScalarModel(decoder, bias=0.0))
    return combine(jax.tree.map(lambda x: x + 0.1, trained), frozen)


def supervised(mesh: jax.sharding.Mesh) -> Arrays:
    """Loss, gradients and two updates of every supervised task."""
    out: Arrays = {}
    for name, (model, objective, batch, dropout) in supervised_tasks(mesh).items():
        take = lambda model, batch: gradients(objective, model, batch, 2, dropout=dropout)  # noqa: B023, E731
        grads, metrics = jax.jit(take)(model, batch)
        out |= named(f"{name}/gradient", flatten(grads)) | named(f"{name}/metric", metrics)
        state = create_state(model, OPTIMIZER, mesh, LOGICAL_AXES)
        step = make_train_step(objective, OPTIMIZER, 2, dropout=dropout)
        for _ in range(2):
            state, metrics = step(state, batch)
        out |= named(f"{name}/parameter", flatten(state.model)) | named(f"{name}/later metric", metrics)
    return out


def sampled(mesh: jax.sharding.Mesh) -> Arrays:
    """Greedy and sampled responses with their log-probabilities."""
    model, out = on_mesh(make_decoder(3), mesh), {}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.9)):
        config = SamplingConfig(8, (TOKENIZER.eos_id,), TOKENIZER.pad_id, temperature=temperature)
        _, rollout = respond(
            model, TOKENIZER, PROMPTS[:13], config=config, key=jax.random.key(5), max_prompt=6, batch_size=8, mesh=mesh
        )
        out |= named(name, {"token": rollout.response, "logp": rollout.logp})
    return out


def fixed_rollout() -> Rollout:
    lengths = [6, 5, 1, 5, 3, 4, 5, 1] * 2
    fixed = make_rollout(0, [3, 1, 4, 2] * 4, lengths, [True, False, *[False] * 4, True, False] * 2, room=ROOM)
    return Rollout(*map(np.asarray, fixed))


def put_rollout(rollout: Rollout, mesh: jax.sharding.Mesh) -> Rollout:
    own = local_rows(mesh, ROWS)
    return Rollout(*put_batch(tuple(x[own] for x in rollout), mesh))


def policy_state(mesh: jax.sharding.Mesh, method: Method) -> PolicyState:
    create = lambda model: create_state(on_mesh(model, mesh), OPTIMIZER, mesh, LOGICAL_AXES)  # noqa: E731
    critic = create(make_critic(1)) if method.baseline.reads_values else None
    return initial_state(create(make_decoder(0, layers=1)), critic, method)


def asked(mesh: jax.sharding.Mesh, texts: list[str]) -> Arrays:
    """Rewards of the texts: scores, and win probabilities against anchors and neighbours."""
    options = {"batch_size": 8, "mesh": mesh}
    scalar = ScalarJudge(on_mesh(make_scalar_model(4), mesh), TOKENIZER, max_length=16, **options)
    judge = GenerativeJudge(on_mesh(make_decoder(5), mesh), TOKENIZER, TEMPLATE, max_length=24, **options)
    anchors, keys = [[text, "q"] for text in OTHERS], jax.random.split(jax.random.key(0), ROWS // 2)
    against = {"group_size": 2, "anchors": anchors, "keys": keys}
    pieces = {
        "score": ([scalar], NoOpponent(), Score()),
        "anchors": ([judge], METHOD.opponents, METHOD.reward),
        "peer": ([judge], PAIRED.opponents, PAIRED.reward),
    }
    return {name: rewards_of(*three, PROMPTS, texts, **against).reward for name, three in pieces.items()}


def policies(mesh: jax.sharding.Mesh) -> Arrays:
    """Policies that sample: the judges, what is frozen, gradients, one epoch of updates."""
    fixed = fixed_rollout()
    rewards = asked(mesh, decode_responses(TOKENIZER, fixed))
    out = named("reward", rewards)
    rollout = put_rollout(fixed, mesh)
    reference = on_mesh(make_decoder(2, layers=1), mesh)
    updates = {pair: make_updates(*pair, OPTIMIZER, OPTIMIZER) for pair in METHODS_TRIED.values()}
    for name, (method, schedule) in METHODS_TRIED.items():
        state = policy_state(mesh, method)
        context = CriticContext(rollout.prompt, rollout.prompt_mask) if state.critic is not None else None
        pieces = {"method": method, "schedule": schedule}
        experience, frozen = prepare(state, reference, rollout, context, jnp.asarray(rewards[name]), **pieces)
        if state.critic is not None:
            state = with_returns(state, frozen["return_deviation"])
            out |= named(f"{name}/frozen", {"returns": experience.critique.returns})
        for part, grads in take_gradients(state, experience, method, schedule).items():
            out |= named(f"{name}/{part}/gradient", flatten(grads))
        key, update = jax.random.key(0), updates[method, schedule]
        state, metrics = run_updates(update, state, experience, key, **pieces, train_policy=True)
        out |= named(f"{name}/frozen", {"advantages": experience.frozen.advantages, **frozen})
        out |= named(f"{name}/metric", metrics) | named(f"{name}/policy", flatten(state.policy.model))
        if state.critic is not None:
            out |= named(f"{name}/critic", flatten(state.critic.model))
    return out


@functools.partial(jax.jit, static_argnames=("method", "schedule"))
def take_gradients(state: PolicyState, experience: Experience, method: Method, schedule: Schedule) -> Arrays:
    """Of the policy, and of the critic where there is one, in two microbatches."""
    objectives, models = {"policy": policy_objective(method, schedule, state.kl_coef)}, {"policy": state.policy.model}
    if state.critic is not None:
        objectives["critic"] = critic_objective(method.baseline, state.deviation)
        models["critic"] = state.critic.model
    return gradients(together(objectives), models, experience, 2)[0]


def named(group: str, arrays: Arrays) -> Arrays:
    return {f"{group}: {name}": array for name, array in arrays.items()}


def write(folder: Path, name: str, sizes: dict[str, int] | None) -> None:
    mesh = one_device() if sizes is None else make_mesh(**sizes)
    with jax.set_mesh(mesh):
        arrays = supervised(mesh) | sampled(mesh) | policies(mesh)
        arrays = {key: fetch(array, mesh) if isinstance(array, jax.Array) else array for key, array in arrays.items()}
    if is_leader():
        np.savez(folder / f"{name}.npz", **arrays)


def fail(error: BaseException) -> int:
    raise error


@contextlib.contextmanager
def command() -> Iterator[tuple[Path, dict[str, Any]]]:
    """FOLDER and what NAME=JSON says, by name, of the command line; in the processes that it joins."""
    words, place = sys.argv[1:], ("", "1", "0")
    if "--join" in words:
        words, place = words[: words.index("--join")], words[words.index("--join") + 1 :]
    values = {name: json.loads(value) for name, value in (word.split("=", 1) for word in words[1:])}
    with joined(place[0], int(place[1]), int(place[2]), heartbeat_timeout=30, tell=fail):
        yield Path(words[0]), values


if __name__ == "__main__":
    with command() as (folder, meshes):
        for name, sizes in meshes.items():
            write(folder, name, sizes)
