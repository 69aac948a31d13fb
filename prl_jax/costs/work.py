"""How much memory and time functions of a stage take, about: told before they run, without compiling anything.

What functions need beside what their stage holds, and the operations that they do, are estimated from sizes: half as
much or twice as much is possible. `prl plan` asks the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.costs.models import AbstractJudge, AbstractModels
from prl_jax.losses.logprobs import ACCELERATOR_LOGITS, ACCELERATOR_TOKENS, CPU_LOGITS, CPU_TOKENS
from prl_jax.models import DecoderConfig
from prl_jax.models.attention import queries_at_once
from prl_jax.models.decoder import MOST_UNROLLED
from prl_jax.sampling import slots_of
from prl_jax.sharding import batch_parts, parameter_parts


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


class Estimate(NamedTuple):
    """Estimates what functions take, from the sizes of their models and rows.

    Attributes:
      models: of the config.
      examples: how many records the source of a stage has, by their names.
    """

    models: AbstractModels
    examples: Callable[[str, str], int]

    @property
    def config(self) -> ConfigDict:
        """The whole config."""
        return self.models.config

    @property
    def mesh(self) -> Mesh:
        """The mesh of the devices."""
        return self.models.mesh

    def generate(self, policy: str, size: int, responses: int, group: int = 1) -> Iterator[Call]:
        """Responses to prompts of the lengths of a policy, `size` at once, of which `group` share a prompt."""
        card, decoder = self.models.card(policy), self.models.decoder_config(policy)
        before, room = card.max_prompt, card.max_response
        with jax.set_mesh(self.mesh):
            slots = slots_of(size, room, group)
        rows, calls = self.shard(slots), math.ceil(responses / max(size, 1))
        cache = 2.0 * rows * decoder.layers * (before + room) * decoder.kv_heads * decoder.head_dim * width(decoder)
        cache /= self.mesh.shape["tensor"]
        read = size // group
        work = read * flops(decoder, before, 1)
        moved = self.moved(decoder, read, before)
        yield Call("prefill", cache + self.forward(decoder, self.shard(read), before, 1), work, calls, moved=moved)
        # Each token is written into the cache, and all of the cache is read for it.
        reading = 3.0 * cache * room * self.mesh.size * size / max(slots, 1)
        yield Call("decode", 2 * cache + 8.0 * rows * decoder.vocab_size, size * room * flops(decoder, 1, 1), calls,
                   sequential=math.ceil(room * size / max(slots, 1)), moved=reading)  # fmt: skip

    def judge(self, judge: Sequence[AbstractJudge], size: int, rows: int) -> Iterator[Call]:
        """Judgements of so many rows by each model of a judge, in batches of at most `size`."""
        if not rows:
            return
        size = min(size, 1 << (rows - 1).bit_length())
        for one in judge:
            decoder = getattr(one.model, "decoder", one.model).config
            work, moved = size * flops(decoder, one.length, one.logits), self.moved(decoder, size, one.length)
            temporary = self.forward(decoder, self.shard(size), one.length, one.logits)
            yield Call("judge", temporary, work, math.ceil(rows / size), moved=moved)

    @property
    def cpu(self) -> bool:
        """Whether the devices are CPUs."""
        return self.platform == "cpu"

    @property
    def platform(self) -> str:
        """The platform of the devices."""
        return self.mesh.devices.flat[0].platform

    def shard(self, rows: int, parts: int = 1) -> int:
        """Rows of a microbatch that one device has."""
        return math.ceil(math.ceil(rows / batch_parts(self.mesh.shape)) / parts)

    def trained(self, decoder: DecoderConfig) -> float:
        """Bytes of the gradient."""
        number = parameters(decoder) if decoder.lora is None else adapters(decoder)
        return 4.0 * number / parameter_parts(self.mesh.shape)

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
        """Bytes of what one layer computes."""
        heads = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
        token = 4 * decoder.width + (2 * heads + 3 * decoder.mlp_width) / self.mesh.shape["tensor"]
        # Attention's scores and weights, [heads, queries, length] of each row. A CPU has three such arrays, and all in
        # float32, whatever the dtype of the model.
        number, score = (4, 3 * 4) if self.cpu else (width(decoder), 4 + width(decoder))
        case = decoder.attending(length)._replace(platform=self.platform, sequence=self.mesh.shape["sequence"])
        scores = queries_at_once(decoder.attention, case) * decoder.heads / self.mesh.shape["tensor"] * score
        return rows * length / self.mesh.shape["sequence"] * (token * number + scores)

    def moved(self, decoder: DecoderConfig, rows: int, length: int) -> float:
        """Bytes that a forward pass reads and writes: what a layer needs, about three times."""
        parts = self.mesh.shape["tensor"] * self.mesh.shape["sequence"]
        return 3.0 * decoder.layers * self.layer(decoder, rows, length) * parts

    def logits(self, decoder: DecoderConfig, rows: int, positions: int) -> float:
        """Bytes of a chunk of logits, and of its gradient."""
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
    """Returns the cost of forward and backward pass, in forward passes; frozen parameters need no gradient."""
    return 1 + (1 if decoder.lora is not None else 2) + decoder.remat
