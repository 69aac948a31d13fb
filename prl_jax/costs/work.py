"""How much memory and time the stages of a config take, about: told before they start, without compiling anything.

What a stage keeps on the devices is exact, from abstract arrays. What its functions need beside that, and the
operations that they do, are estimated from sizes: half as much or twice as much is possible. `prl plan` asks the
compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.config.durations import to_steps
from prl_jax.costs.holdings import Holdings
from prl_jax.costs.models import AbstractJudge, AbstractModels, held_bytes
from prl_jax.losses.logprobs import ACCELERATOR_LOGITS, ACCELERATOR_TOKENS, CPU_LOGITS, CPU_TOKENS
from prl_jax.models import DecoderConfig
from prl_jax.models.decoder import MOST_UNROLLED

# A process on a CPU keeps part of what its functions have freed: 1.6 to 2.3 times what the largest one needs was
# resident in runs of own_model's recipe.
_KEPT_BY_A_CPU = 1.5


class Call(NamedTuple):
    """A function of a stage.

    Attributes:
      function: its name, as in a plan.
      temporary: bytes of a device that it needs beside what its stage holds.
      flops: operations of one call, on all devices.
      calls: how often it is called.
      sequential: steps of a call that have to wait for each other, one for a token that is decoded.
      moved: bytes that one call reads and writes, on all devices, beside the parameters.
    """

    function: str
    temporary: float
    flops: float
    calls: float
    sequential: int = 1
    moved: float = 0.0


class Work(NamedTuple):
    """What a stage takes.

    Attributes:
      stage: its name.
      held: bytes of a device that it keeps, by what they are.
      calls: its functions.
    """

    stage: str
    held: Mapping[str, float]
    calls: tuple[Call, ...]

    @property
    def largest(self) -> Call | None:
        """The function that needs the most memory."""
        return max(self.calls, key=lambda call: call.temporary, default=None)

    @property
    def peak(self) -> float:
        """Bytes of a device at the most, about."""
        return sum(self.held.values(), 0.0) + (self.largest.temporary if self.largest else 0.0)

    @property
    def flops(self) -> float:
        return sum((call.flops * call.calls for call in self.calls), 0.0)


def expected_work(config: ConfigDict, mesh: Mesh, examples: Callable[[str, str], int]) -> list[Work]:
    """What each stage takes.

    Args:
      config: with all lengths given.
      mesh: of the devices.
      examples: how many records the source of a stage has, by their names.
    """
    models = AbstractModels(config, mesh)
    estimate, holdings, found = _Estimate(config, models, mesh, examples), Holdings(config, models), []
    for name in config.stages:
        held = max((held_bytes(held) for held in holdings.each(name)), key=lambda held: sum(held.values()), default={})
        found.append(Work(name, held, tuple(estimate.calls(name))))
    return found


class _Estimate(NamedTuple):
    config: ConfigDict
    models: AbstractModels
    mesh: Mesh
    examples: Callable[[str, str], int]

    def calls(self, name: str) -> Iterator[Call]:
        section, kept = self.config[name], _KEPT_BY_A_CPU if self.cpu else 1.0
        kinds = {"anchors": self.anchors, "ppo": self.ppo, "evaluation": self.evaluation}
        for call in kinds.get(section.kind, self.supervised)(name, section):
            yield call._replace(temporary=kept * call.temporary)

    def supervised(self, name: str, section: ConfigDict) -> Iterator[Call]:
        reads = 1 if section.kind == "sft" else 2
        length = section.max_length if section.kind == "generative" else section.max_prompt + section.max_response
        decoder, size, count = self.models.trainable(section).config, section.batch_size, self.examples(name, "data")
        steps = to_steps(section.duration, key=f"{name}.duration", batch_size=size, examples=count)
        every = to_steps(section.evaluate_every, key=f"{name}.evaluate_every", total=steps)
        logits = length if section.kind == "sft" else 1
        micro = reads * self.shard(size, section.accumulate)
        trained = self.trained(decoder) * (2 if section.accumulate > 1 else 1)
        row, moved = flops(decoder, length, logits), self.moved(decoder, size * reads, length)
        yield Call(
            "train_step", trained + self.training(decoder, micro, length, logits), size * reads * row * passes(decoder),
            steps, moved=moved * passes(decoder),
        )  # fmt: skip
        tested = math.ceil(self.examples(name, "validation") / size) * (1 + steps // every if every else 1)
        temporary = self.forward(decoder, reads * self.shard(size), length, logits)
        yield Call("validation", temporary, size * reads * row, tested, moved=moved)

    def anchors(self, name: str, section: ConfigDict) -> Iterator[Call]:
        if section.choice != "best_of_n":
            return
        count, number = self.examples(name, "prompts"), section.samples
        yield from self.generate(section.policy, section.batch_size, number * count)
        judge = self.models.judge(section.judge)
        scalar = section.judge in self.config.stages and self.config[section.judge].kind == "bradley_terry"
        yield from self.judge(judge, section.batch_size, count * (number if scalar else number * (number - 1)))

    def ppo(self, name: str, section: ConfigDict) -> Iterator[Call]:
        algorithm, size = section.algorithm, section.prompts_per_step * section.group_size
        count, before_room = self.examples(name, "prompts"), self.models.lengths(section.policy)
        steps = to_steps(section.duration, key=f"{name}.duration", batch_size=section.prompts_per_step, examples=count)
        every = to_steps(section.evaluation.every, key=f"{name}.evaluation.every", total=steps)
        length, room = sum(before_room), before_room[1]
        decoder = self.models.trainable(section).config
        yield from self.generate(section.policy, size, size * steps)
        judged = size if section.reward == "score" else 2 * size * self.opponents(section)
        yield from self.judge(self.models.judge(section.judge), section.judge_batch_size, judged * steps)
        row, moved = flops(decoder, length, room), self.moved(decoder, size, length)
        # Policy, reference and critic read the same rows; where layers are unrolled, two of them are at work at once.
        temporary = (2 if self.unrolled(decoder) else 1) * self.forward(decoder, self.shard(size), length, room)
        yield Call("prepare", temporary, 3 * size * row, steps, moved=3 * moved)
        micro = self.shard(size, algorithm.minibatches * algorithm.accumulate)
        trained = 2 * self.trained(decoder) * (2 if algorithm.accumulate > 1 else 1)
        # With remat the policy and the critic come one after the other.
        together = 1 if decoder.remat and not self.unrolled(decoder) else 2
        temporary = trained + together * self.training(decoder, micro, length, room)
        yield Call("update", temporary, 2 * size / algorithm.minibatches * row * passes(decoder),
                   steps * algorithm.epochs * algorithm.minibatches,
                   moved=2 * moved / algorithm.minibatches * passes(decoder))  # fmt: skip
        if every:
            tests, asked = 1 + steps // every, self.examples(name, "evaluation.prompts")
            yield from self.generate(section.policy, min(asked, section.evaluation.batch_size), asked * (tests + 1))
            judge = self.models.judge(section.evaluation.judge)
            yield from self.judge(judge, section.judge_batch_size, 2 * asked * tests)

    def evaluation(self, name: str, section: ConfigDict) -> Iterator[Call]:
        for key in section.judges:
            yield from self.judge(self.models.judge(key), section.batch_size, 2 * self.examples(name, "pairs"))
        if section.baseline:
            responses = self.examples(name, "prompts") * section.samples
            policies = len(section.arms) + 3  # the baseline's samples twice, and its greedy responses
            yield from self.generate(section.baseline, section.batch_size, responses * policies)
            yield from self.judge(self.models.judge(section.judge), section.batch_size, 4 * responses * policies)

    def generate(self, policy: str, size: int, responses: int) -> Iterator[Call]:
        (before, room), decoder = self.models.lengths(policy), self.models.decoder_config(policy)
        rows, calls = self.shard(size), math.ceil(responses / max(size, 1))
        cache = 2.0 * rows * decoder.layers * (before + room) * decoder.kv_heads * decoder.head_dim * width(decoder)
        cache /= self.mesh.shape["tensor"]
        work = size * flops(decoder, before, 1)
        moved = self.moved(decoder, size, before)
        yield Call("prefill", cache + self.forward(decoder, rows, before, 1), work, calls, moved=moved)
        # Each token is written into the cache, and all of the cache is read for it.
        read = 3.0 * cache * room * self.mesh.size
        yield Call("decode", 2 * cache + 8.0 * rows * decoder.vocab_size, size * room * flops(decoder, 1, 1), calls,
                   sequential=room, moved=read)  # fmt: skip

    def judge(self, judge: AbstractJudge | None, size: int, rows: int) -> Iterator[Call]:
        if judge is None or not rows:
            return
        decoder = getattr(judge.model, "decoder", judge.model).config
        size = min(size, 1 << (rows - 1).bit_length())
        work, moved = size * flops(decoder, judge.length, 1), self.moved(decoder, size, judge.length)
        temporary = self.forward(decoder, self.shard(size), judge.length, 1)
        yield Call("judge", temporary, work, math.ceil(rows / size), moved=moved)

    def opponents(self, section: ConfigDict) -> int:
        if section.opponents == "anchor":
            anchors = self.config[section.anchors]
            return anchors.keep if anchors.choice == "best_of_n" else 1
        return {"peer": 1, "group": section.group_size - 1, "pool": section.opponent_draws}[section.opponents]

    @property
    def cpu(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"

    def shard(self, rows: int, parts: int = 1) -> int:
        """Rows of a microbatch that one device has."""
        return math.ceil(math.ceil(rows / (self.mesh.shape["data"] * self.mesh.shape["fsdp"])) / parts)

    def trained(self, decoder: DecoderConfig) -> float:
        """Bytes of the gradient."""
        number = parameters(decoder) if decoder.lora is None else adapters(decoder)
        return 4.0 * number / (self.mesh.shape["fsdp"] * self.mesh.shape["tensor"])

    def forward(self, decoder: DecoderConfig, rows: int, length: int, logits: int) -> float:
        """Bytes of the activations of one layer, and of a chunk of logits."""
        return self.layer(decoder, rows, length) + self.logits(decoder, rows, logits)

    def training(self, decoder: DecoderConfig, rows: int, length: int, logits: int) -> float:
        """Bytes of what is kept for the backward pass, and of what that needs."""
        layer = self.layer(decoder, rows, length)
        stream = float(rows) * length * decoder.width * width(decoder) / self.mesh.shape["sequence"]
        # XLA's CPU backend keeps what stands in the program twice: in unrolled layers, remat has no effect.
        kept = decoder.layers * (stream if decoder.remat and not self.unrolled(decoder) else layer)
        at_work = 0.5 if self.unrolled(decoder) else 1.5 if self.cpu else 2
        return kept + at_work * layer + self.logits(decoder, rows, logits)

    def unrolled(self, decoder: DecoderConfig) -> bool:
        """Whether the program has each layer by itself, instead of a loop over them."""
        return self.cpu and decoder.layers <= MOST_UNROLLED

    def layer(self, decoder: DecoderConfig, rows: int, length: int) -> float:
        heads = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
        token = 4 * decoder.width + (2 * heads + 3 * decoder.mlp_width) / self.mesh.shape["tensor"]
        # Attention's scores and weights, [heads, length, length] of each row. A CPU has three such arrays, and all in
        # float32, whatever the dtype of the model.
        number, score = (4, 3 * 4) if self.cpu else (width(decoder), 4 + width(decoder))
        scores = length * decoder.heads / self.mesh.shape["tensor"] * score
        return rows * length / self.mesh.shape["sequence"] * (token * number + scores)

    def moved(self, decoder: DecoderConfig, rows: int, length: int) -> float:
        """Bytes that a forward pass reads and writes: what a layer needs, about three times."""
        parts = self.mesh.shape["tensor"] * self.mesh.shape["sequence"]
        return 3.0 * decoder.layers * self.layer(decoder, rows, length) * parts

    def logits(self, decoder: DecoderConfig, rows: int, positions: int) -> float:
        vocab = decoder.vocab_size / self.mesh.shape["tensor"]
        least, most = (CPU_TOKENS, CPU_LOGITS) if self.cpu else (ACCELERATOR_TOKENS, ACCELERATOR_LOGITS)
        return 8.0 * vocab * min(rows * positions, max(least, most / vocab, 16 * rows))


def width(decoder: DecoderConfig) -> int:
    """Bytes of a number of the activations."""
    return np.dtype("float32").itemsize if decoder.dtype == "float32" else 2


def matrices(decoder: DecoderConfig) -> float:
    """Parameters of the layers' matrices."""
    heads = 2 * (decoder.heads + decoder.kv_heads) * decoder.head_dim
    return float(decoder.layers * decoder.width * (heads + 3 * decoder.mlp_width))


def parameters(decoder: DecoderConfig) -> float:
    """Parameters, but for norms and biases."""
    return matrices(decoder) + decoder.vocab_size * decoder.width * (1 if decoder.tied_embeddings else 2)


def adapters(decoder: DecoderConfig) -> float:
    """Parameters of low-rank adapters on all matrices."""
    assert decoder.lora is not None
    heads = 2 * decoder.width + 2 * (decoder.heads + decoder.kv_heads) * decoder.head_dim
    sides = heads + 2 * decoder.width + 3 * (decoder.width + decoder.mlp_width)
    return float(decoder.lora.rank * decoder.layers * sides)


def flops(decoder: DecoderConfig, length: int, logits: int) -> float:
    """Operations of the forward pass of a row, with logits at so many of its positions."""
    attention = 4.0 * decoder.layers * length * decoder.heads * decoder.head_dim
    return length * (2 * matrices(decoder) + attention) + 2.0 * logits * decoder.width * decoder.vocab_size


def passes(decoder: DecoderConfig) -> int:
    """What forward and backward pass cost, in forward passes; frozen parameters need no gradient."""
    return 1 + (1 if decoder.lora is not None else 2) + decoder.remat
