"""The functions that `prl run` executes, each as a step that `peer_workloads.py` times.

How a policy is sampled and trained is in `policy_update`, `policy_step` and `policy_iteration` alone.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from workload_shapes import NORM_EPS, OPTIMIZER, PPO, ROPE_THETA, Inputs, Size, Step, Words

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.pipeline import batch_iterator
from prl_jax.data.records import PromptRecord, SFTRecord
from prl_jax.data.rows import encode_sft
from prl_jax.judges import GenerativeJudge, ScalarJudge
from prl_jax.losses import chunked_logprobs
from prl_jax.methods import Anchors, Critic, Method, NoOpponent, RewardKL, Score, TokenClip, WinProbability
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel
from prl_jax.optim import make_optimizer
from prl_jax.processes import fetch, put_batch
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.sharding import make_mesh, replicated, tree_shardings
from prl_jax.stages.online_step import Setup, iteration
from prl_jax.text.chat import Turn
from prl_jax.text.judging import JudgeTemplate
from prl_jax.training.loop import LoopConfig, run_loop
from prl_jax.training.policy import Schedule, Updates, make_updates, prepare, run_updates
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.rollout import CriticContext
from prl_jax.training.sft import SFT
from prl_jax.training.state import create_state, initial_state
from prl_jax.training.step import make_train_step
from prl_jax.types import ComparedPairs, Rollout, ScoredPairs, SFTBatch, TokenRows

RECORDS = 256  # prompts and demonstrations to draw from


class World:
    """Models and inputs of a size, on the mesh of all devices."""

    def __init__(self, size: Size):
        self.size, self.mesh, self.inputs = size, make_mesh(), Inputs(size)
        self.config = DecoderConfig(
            vocab_size=size.vocab,
            width=size.width,
            layers=size.layers,
            heads=size.heads,
            kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            mlp_width=size.mlp_width,
            rope_theta=ROPE_THETA,
            norm_eps=NORM_EPS,
            tied_embeddings=False,
        )
        self.tokenizer = Words(size.vocab)
        self.sampling = SamplingConfig(size.response, (size.vocab + 1,), 0)  # no token ends a response

    def decoder(self, seed: int) -> Decoder:
        return self._initial(jax.random.key(seed))

    @functools.cached_property
    def _initial(self) -> Callable[[jax.Array], Decoder]:
        """Makes decoders, born on the mesh; compiled once for all of them."""
        make = lambda key: Decoder(self.config, key=key)  # noqa: E731
        shardings = tree_shardings(jax.eval_shape(make, jax.random.key(0)), self.mesh, LOGICAL_AXES)
        return jax.jit(make, out_shardings=shardings)

    def scalar_model(self, seed: int, *, bias: float | None = None) -> ScalarModel:
        model = ScalarModel(self.decoder(seed), bias=bias)
        model.scalar.weight[...] = 0.02 * jax.random.normal(jax.random.key(seed + 99), (self.size.width,))
        model.scalar = jax.device_put(model.scalar, replicated(self.mesh))
        return model

    def rows(self, count: int, length: int) -> TokenRows:
        return TokenRows(*self.inputs.token_rows(count, length))

    def user_prompt(self) -> tuple[Turn, ...]:
        """A prompt of `size.prompt` tokens, of which the chat template adds three."""
        return (Turn("user", self.inputs.text(self.size.prompt - 3)),)


def sft_step(world: World) -> Step:
    """W1: one step of SFT."""
    size = world.size
    rows = world.rows(size.rows, size.length)
    targets = np.zeros((size.rows, size.length), np.int32)
    targets[:, :-1] = rows.tokens[:, 1:]
    mask = np.ones(targets.shape, bool)
    mask[:, -1] = False
    return _supervised(world, SFT, world.decoder(0), SFTBatch(rows, targets, mask))


def bradley_terry_step(world: World) -> Step:
    """W2: one step of a Bradley-Terry model."""
    return _supervised(world, bradley_terry_objective(), world.scalar_model(0), ScoredPairs(*_pairs(world)))


def generative_step(world: World) -> Step:
    """W2p: one step of a generative judge, both orders of each pair."""
    return _supervised(world, generative_objective((5, 6)), world.decoder(0), ComparedPairs(*_pairs(world)))


def sft_loop(world: World) -> Step:
    """L1: some steps of SFT as a stage does them, their batches by the data pipeline and their metrics logged."""
    size, half = world.size, world.size.length // 2
    texts = [(world.inputs.text(half - 3), world.inputs.text(size.length - half - 1)) for _ in range(RECORDS)]
    records = [SFTRecord(str(i), (Turn("user", text),), answer) for i, (text, answer) in enumerate(texts)]
    encode = functools.partial(encode_sft, world.tokenizer, max_prompt=half, max_response=size.length - half)

    def with_flag(record: SFTRecord) -> tuple[SFTBatch, np.ndarray]:
        row, truncated = encode(record)
        return row, np.asarray(truncated)

    iterator = batch_iterator(records, with_flag, batch_size=size.rows, seed=0)
    optimizer = make_optimizer(**OPTIMIZER)
    train_step = make_train_step(SFT, optimizer)
    state, done, cut = create_state(world.decoder(0), optimizer, world.mesh, LOGICAL_AXES), 0, 0
    logged: dict[int, Mapping[str, float]] = {}

    def step(state: Any, n: int) -> tuple[Any, Mapping[str, jax.Array]]:
        nonlocal cut
        batch, truncated = next(iterator)
        cut += int(truncated.sum())
        return train_step(state, put_batch(batch, world.mesh))

    def repeat() -> dict[str, float]:
        nonlocal state, done
        config = LoopConfig(done + size.loop_steps, log_every=1)
        state = run_loop(
            "loop",
            state,
            done,
            config,
            step=step,
            on_step=lambda n, values: None,
            write=logged.__setitem__,
            save=lambda n, state: None,
        )
        done = config.total
        return dict(logged[done])

    return repeat


def generation(world: World) -> Step:
    """W3: responses to one batch of prompts."""
    size, model, calls = world.size, world.decoder(0), _counter()
    prompts = (world.inputs.tokens(size.batch, size.prompt), np.ones((size.batch, size.prompt), bool))

    def step() -> dict[str, float]:
        keys = row_keys(jax.random.key(calls()), 0, size.batch)
        rollout = fetch(generate(model, *put_batch(prompts, world.mesh), keys, config=world.sampling), world.mesh)
        assert rollout.response.shape == (size.batch, size.response) and rollout.mask.all()
        return {"tokens": float(rollout.response.sum()), "logp": float(rollout.logp.sum())}

    return step


def log_probabilities(world: World) -> Step:
    """W6: token log-probabilities over a large vocabulary in chunks, with their gradients."""
    size, key = world.size, jax.random.key(0)
    shape = (size.logprob_rows, size.logprob_length)
    hidden = jax.random.normal(key, (*shape, size.logprob_width))
    embedding = 0.02 * jax.random.normal(key, (size.logprob_width, size.logprob_vocab))
    targets, mask = jax.random.randint(key, shape, 0, size.logprob_vocab), jnp.ones(shape, bool)

    @jax.jit
    def gradients(hidden: jax.Array, embedding: jax.Array) -> tuple[jax.Array, Any]:
        mean = lambda hidden, embedding: chunked_logprobs(hidden, embedding, targets, mask)[0].mean()  # noqa: E731
        return jax.value_and_grad(mean, (0, 1))(hidden, embedding)

    def step() -> dict[str, float]:
        value, _ = jax.block_until_ready(gradients(hidden, embedding))
        return {"logp": float(value)}

    return step


class PolicyUpdate(NamedTuple):
    """What updates a policy from judged rollouts: pieces and schedule, the first state, and the jitted functions."""

    pieces: dict[str, Any]
    state: Any
    updates: Updates


def policy_update(world: World, *, minibatches: int, pairwise: bool = False) -> PolicyUpdate:
    """PPO with a critic of its own, of the policy's size."""
    pieces, optimizers, updates = _ppo(minibatches, pairwise)
    models = (world.decoder(0), world.scalar_model(1, bias=0.0))
    states = (create_state(m, o, world.mesh, LOGICAL_AXES) for m, o in zip(models, optimizers, strict=True))
    state = initial_state(*states, pieces["method"])
    # As the stage does: elsewhere, the second call would compile once more.
    state = state._replace(kl_coef=jax.device_put(state.kl_coef, replicated(world.mesh)))
    return PolicyUpdate(pieces, state, updates)


@functools.cache
def _ppo(minibatches: int, pairwise: bool) -> tuple[dict[str, Any], tuple[Any, Any], Updates]:
    """Pieces, optimizers and the jitted updates, which workloads of one process share."""
    compared = (Anchors(), WinProbability()) if pairwise else (NoOpponent(), Score())
    critic = Critic(lam_actor=PPO["lam_actor"], lam_critic=PPO["lam_critic"], weight=PPO["value_weight"])
    method = Method(*compared, critic, TokenClip(), RewardKL(coefficient=PPO["kl_coef"]))
    pieces = dict(method=method, schedule=Schedule(epochs=PPO["epochs"], minibatches=minibatches))
    optimizers = (make_optimizer(**OPTIMIZER), make_optimizer(**OPTIMIZER))
    return pieces, optimizers, make_updates(*pieces.values(), *optimizers)


def policy_step(world: World) -> Step:
    """W4: one update on given rollouts and scores, their log-probabilities and values included."""
    size, calls = world.size, _counter()
    pieces, state, updates = policy_update(world, minibatches=1)
    rows, room = size.update_rows, (size.update_rows, size.response)
    rollout = Rollout(
        prompt=world.inputs.tokens(rows, size.prompt),
        prompt_mask=np.ones((rows, size.prompt), bool),
        response=world.inputs.tokens(*room),
        mask=np.ones(room, bool),
        logp=np.zeros(room, np.float32),
        truncated=np.zeros(rows, bool),
    )
    rollout = put_batch(rollout, world.mesh)
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    reference, score = world.decoder(2), jnp.asarray(world.inputs.normal(rows))

    def step() -> dict[str, float]:
        nonlocal state
        experience, before = prepare(state, reference, rollout, context, score, **pieces)
        key = jax.random.key(calls())
        state, metrics = run_updates(updates, state, experience, key, **pieces, train_policy=True)
        return _numbers({**metrics, **before})

    return step


def policy_iteration(world: World, *, pairwise: bool) -> Step:
    """W5, W5p: one whole iteration: sample, judge (by scores, or against an anchor), freeze, update."""
    size, calls = world.size, _counter()
    pieces, state, updates = policy_update(world, minibatches=size.batch // size.update_rows, pairwise=pairwise)
    reference, judge_model = world.decoder(2), world.decoder(3) if pairwise else world.scalar_model(3)
    records = [PromptRecord(id=str(i), prompt=world.user_prompt()) for i in range(RECORDS)]
    anchors = [[world.inputs.text(size.response)] if pairwise else () for _ in records]
    if pairwise:
        room = dict(max_length=size.judge_length, mesh=world.mesh)
        judge = GenerativeJudge(judge_model, world.tokenizer, JudgeTemplate(), **room)
    else:
        judge = ScalarJudge(judge_model, world.tokenizer, max_length=size.prompt + size.response, mesh=world.mesh)
    context = types.SimpleNamespace(name="benchmark", mesh=world.mesh, key=jax.random.key(0))
    card = ModelCard("policy", dataclasses.asdict(world.config), size.prompt, size.response)
    setup = Setup(
        context=context,
        **pieces,
        card=card,
        tokenizer=world.tokenizer,
        sampling=world.sampling,
        judge=judge,
        win_rate_judge=judge,
        records=records,
        anchors=anchors,
        reference=reference,
    )

    def step() -> dict[str, float]:
        nonlocal state
        n = calls()
        index = (np.arange(size.batch) + n * size.batch) % len(records)
        state, metrics, _, _ = iteration(setup, updates, state, index, n, train_policy=True)
        return _numbers(metrics)

    return step


WORKLOADS: dict[str, Callable[[World], Step]] = {
    "W1": sft_step,
    "L1": sft_loop,
    "W2": bradley_terry_step,
    "W2p": generative_step,
    "W3": generation,
    "W4": policy_step,
    "W5": functools.partial(policy_iteration, pairwise=False),
    "W5p": functools.partial(policy_iteration, pairwise=True),
    "W6": log_probabilities,
}


def _supervised(world: World, objective: Any, model: Any, batch: Any) -> Step:
    optimizer = make_optimizer(**OPTIMIZER)
    train_step = make_train_step(objective, optimizer)
    state = create_state(model, optimizer, world.mesh, LOGICAL_AXES)

    def step() -> dict[str, float]:
        nonlocal state
        state, metrics = train_step(state, put_batch(batch, world.mesh))
        return _numbers(metrics)

    return step


def _pairs(world: World) -> tuple[TokenRows, TokenRows, np.ndarray, np.ndarray]:
    count = world.size.rows // 2
    rows, others = (world.rows(count, world.size.length) for _ in range(2))
    return rows, others, np.ones(count, np.float32), np.ones(count, np.float32)


def _numbers(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step, once its devices have them."""
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def _counter() -> Callable[[], int]:
    """A function that returns 1, 2, 3, ..."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count
