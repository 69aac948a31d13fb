"""The shape of a decoder, as data: one architecture, whose families differ in these fields alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prl_jax.errors import UserError
from prl_jax.models.attention import BACKENDS, Attending
from prl_jax.sharding import parts, platform

DTYPES = ("float32", "bfloat16")
# Several times what the largest models have. A number that is more than this is a mistake, found before memory is asked
# for it.
LARGEST = MappingProxyType(
    dict(vocab_size=2**24, width=2**20, layers=2**12, heads=2**14, kv_heads=2**14, head_dim=2**14, mlp_width=2**22)
)
ACTIVATIONS = ("silu", "gelu_tanh")
ROPE_SCALINGS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of pre-training.

    Attributes:
      kind: "linear" (arXiv 2306.15595), "llama3" (arXiv 2407.21783) or "yarn" (arXiv 2309.00071).
      factor: how much longer.
      original_positions: context of pre-training; llama3 and yarn.
      low_frequency, high_frequency: llama3: wavelengths above `original_positions / low_frequency` are stretched, those
        below `original_positions / high_frequency` are not.
      beta_fast, beta_slow: yarn: rotations over the original context between which frequencies are blended.
      attention_factor: yarn: multiplies cosines and sines.
      truncate: yarn: round the blended range to whole dimensions.
    """

    kind: str
    factor: float
    original_positions: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self):
        if self.kind not in ROPE_SCALINGS:
            raise UserError(f"model: rope_scaling.kind={self.kind!r}, expected one of {ROPE_SCALINGS}")
        if self.kind != "linear" and self.original_positions < 1:
            raise UserError(f"model: rope_scaling {self.kind!r} needs original_positions")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): `x W + (alpha / rank) (x A) B`, with `B` zero at the start.

    Attributes:
      rank: columns of A.
      alpha: scale of the update.
      targets: the linear maps that have one, of `LORA_TARGETS`.
      dropout: share of the inputs of A that is dropped in supervised training (`with_dropout`), and nowhere else.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    dropout: float = 0.0

    def __post_init__(self):
        unknown = sorted(set(self.targets) - set(LORA_TARGETS))
        if self.rank < 1 or unknown or not self.targets or not 0 <= self.dropout < 1:
            raise UserError(
                f"lora: rank={self.rank} (at least 1), targets={tuple(self.targets)} (some of {LORA_TARGETS}), "
                f"dropout={self.dropout} (at least 0, below 1)"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, gated feed-forward layers.

    Attributes:
      vocab_size: rows of the embedding.
      width: size of the residual stream.
      layers: number of blocks.
      heads, kv_heads: query heads, and the key/value heads that groups of them share.
      head_dim: size of a head, even (RoPE rotates pairs).
      mlp_width: hidden size of the feed-forward part.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square before the root.
      tied_embeddings: the output embedding is the transposed input embedding.
      dtype: "float32" or "bfloat16", of activations and matrix products.
      attention: backend of attention within whole rows, of `BACKENDS`; "auto" follows platform and shape.
      remat: recompute each block in the backward pass instead of keeping its activations.
      param_dtype: of the parameters.
      activation: of the gate, "silu" or "gelu_tanh".
      qkv_bias, o_bias, mlp_bias: biases of the linear maps.
      qk_norm: queries and keys are normalised, each head on its own.
      norm_offset: norms multiply by `norm_offset + scale` (1 in Gemma).
      post_norms: what attention and feed-forward part give is normalised too.
      embed_scale: embeddings are multiplied by the root of `width`.
      query_scale: scale of the queries; 0 for `head_dim ** -0.5`.
      attention_softcap, logit_softcap: `cap tanh(x / cap)` of attention scores and logits; 0 for none.
      window: how far back windowed layers look, the token itself included; 0 for no limit.
      windowed: for each layer whether it has the window; empty for all.
      local_rope_theta: base of the windowed layers' rotary frequencies, never stretched; 0 for that of the others.
      rope_scaling: stretches the frequencies of `rope_theta`.
      lora: adapters, which are then all that is trained.
      unused: ranges of ids, `(first, behind the last)`, that no text has: rows that fill up the embedding. They have no
        probability, in sampling nor in training.
      unsampled: ranges of ids that no response has, though the model reads them or may be taught to write them:
        structural and padding tokens. They have no probability where responses are sampled, nor in the log-probs that
        the policy is trained on. SFT and a judge's verdict keep the whole vocabulary.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    dtype: str = "float32"
    attention: str = "auto"
    remat: bool = False
    param_dtype: str = "float32"
    activation: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    embed_scale: bool = False
    query_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    window: int = 0
    windowed: tuple[bool, ...] = ()
    local_rope_theta: float = 0.0
    rope_scaling: RopeScaling | None = None
    lora: LoraConfig | None = None
    unused: tuple[tuple[int, int], ...] = ()
    unsampled: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width"):
            if getattr(self, name) < 1:
                raise UserError(f"model: {name} is {getattr(self, name)}, expected at least 1")
            if getattr(self, name) > LARGEST[name]:
                raise UserError(f"model: {name} is {getattr(self, name)}, expected at most {LARGEST[name]}")
        if self.heads % self.kv_heads:
            raise UserError(f"model: heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model: head_dim={self.head_dim} must be even, RoPE rotates pairs")
        choices = {"dtype": DTYPES, "param_dtype": DTYPES, "activation": ACTIVATIONS, "attention": BACKENDS}
        for name, options in choices.items():
            if getattr(self, name) not in options:
                raise UserError(f"model: {name}={getattr(self, name)!r}, expected {' or '.join(map(repr, options))}")
        if self.windowed and (len(self.windowed) != self.layers or not self.window):
            raise UserError(f"model: windowed has {len(self.windowed)} entries for {self.layers} layers and a window")

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """For each layer whether it has the window."""
        return self.windowed or (self.window > 0,) * self.layers

    def attending(self, length: int) -> Attending:
        """The attention of a model like this over rows of so many tokens, on the mesh in use."""
        return Attending(platform(), length, self.head_dim, self.dtype, self.attention_softcap, parts("length"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> DecoderConfig:
        """Builds a config from a mapping, as `dataclasses.asdict` and JSON give it.

        Unknown and missing fields are a `UserError` that names them.
        """
        values = {**values, **overrides}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING)
        if unknown or missing:
            raise UserError(f"model: unknown fields {unknown}, missing fields {missing}; known: {sorted(fields)}")
        for name, part in (("rope_scaling", RopeScaling), ("lora", LoraConfig)):
            if isinstance(values.get(name), Mapping):
                values[name] = part(**{k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()})
        values["windowed"] = tuple(values.get("windowed", ()))
        for name in ("unused", "unsampled"):
            values[name] = tuple((first, end) for first, end in values.get(name, ()))
        return cls(**values)
