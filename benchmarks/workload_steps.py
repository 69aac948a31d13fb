"""The parts of the workloads that every checkout of a comparison calls alike: models, batches, steps.

What a checkout calls in its own way is in `workloads.py`, and for commit 98a61d9 in `workloads_98a61d9.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from workload_shapes import NORM_EPS, OPTIMIZER, ROPE_THETA, Inputs, Size, Step, Words

from prl_jax.data.pipeline import batch_iterator
from prl_jax.data.records import PromptRecord, SFTRecord
from prl_jax.data.rows import encode_sft
from prl_jax.judges import GenerativeJudge, Judge, ScalarJudge
from prl_jax.losses import chunked_logprobs
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel
from prl_jax.optim import make_optimizer
from prl_jax.processes import fetch, put_batch
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.sharding import make_mesh, replicated, tree_shardings
from prl_jax.text.chat import Turn
from prl_jax.text.judging import JudgeTemplate
from prl_jax.training.loop import LoopConfig, run_loop
from prl_jax.training.sft import SFT
from prl_jax.training.state import create_state
from prl_jax.training.step import make_train_step
from prl_jax.types import Rollout, SFTBatch, TokenRows

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
    return supervised(world, SFT, world.decoder(0), SFTBatch(rows, targets, mask))


def sft_loop(world: World, *, take: Callable[[Any, Any], tuple[SFTBatch, int]]) -> Step:
    """L1: some steps of SFT as a stage does them, their batches by the data pipeline and their metrics logged.

    `take` puts what the pipeline gives, a batch and which of its rows were cut, onto the mesh, and counts the cut rows.
    """
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
        batch, count = take(next(iterator), world.mesh)
        cut += count
        return train_step(state, batch)

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
    size, model, calls = world.size, world.decoder(0), counter()
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


def pairs(world: World) -> tuple[TokenRows, TokenRows, np.ndarray, np.ndarray]:
    """Rows of both sides of the pairs that train a judge, labels and weights."""
    count = world.size.rows // 2
    rows, others = (world.rows(count, world.size.length) for _ in range(2))
    return rows, others, np.ones(count, np.float32), np.ones(count, np.float32)


def given_rollout(world: World) -> Rollout:
    """Responses without an end to prompts that fill their room, for one update."""
    rows, room = world.size.update_rows, (world.size.update_rows, world.size.response)
    rollout = Rollout(
        prompt=world.inputs.tokens(rows, world.size.prompt),
        prompt_mask=np.ones((rows, world.size.prompt), bool),
        response=world.inputs.tokens(*room),
        mask=np.ones(room, bool),
        logp=np.zeros(room, np.float32),
        truncated=np.zeros(rows, bool),
    )
    return put_batch(rollout, world.mesh)


def learner_states(world: World, optimizers: tuple[Any, Any]) -> tuple[Any, Any]:
    """The states of a policy and of a critic of its size."""
    models = (world.decoder(0), world.scalar_model(1, bias=0.0))
    policy, critic = (create_state(m, o, world.mesh, LOGICAL_AXES) for m, o in zip(models, optimizers, strict=True))
    return policy, critic


class Judging(NamedTuple):
    """The surroundings of an iteration: the reference, and who is asked about which prompts."""

    reference: Decoder
    judge: Judge
    records: list[PromptRecord]
    anchors: list[Any]


def judging(world: World, *, pairwise: bool) -> Judging:
    """A judge by scores, or one that compares with an anchor of each prompt."""
    size, reference = world.size, world.decoder(2)
    judge_model = world.decoder(3) if pairwise else world.scalar_model(3)
    records = [PromptRecord(id=str(i), prompt=world.user_prompt()) for i in range(RECORDS)]
    anchors = [[world.inputs.text(size.response)] if pairwise else () for _ in records]
    if pairwise:
        room = dict(max_length=size.judge_length, mesh=world.mesh)
        judge = GenerativeJudge(judge_model, world.tokenizer, JudgeTemplate(), **room)
    else:
        judge = ScalarJudge(judge_model, world.tokenizer, max_length=size.prompt + size.response, mesh=world.mesh)
    return Judging(reference, judge, records, anchors)


def supervised(world: World, objective: Any, model: Any, batch: Any) -> Step:
    optimizer = make_optimizer(**OPTIMIZER)
    train_step = make_train_step(objective, optimizer)
    state = create_state(model, optimizer, world.mesh, LOGICAL_AXES)

    def step() -> dict[str, float]:
        nonlocal state
        state, metrics = train_step(state, put_batch(batch, world.mesh))
        return numbers(metrics)

    return step


def numbers(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step, once its devices have them."""
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def counter() -> Callable[[], int]:
    """A function that returns 1, 2, 3, ..."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count
