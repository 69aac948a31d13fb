"""What a decoder looks like, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from prl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU.

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
      dtype: "float32" or "bfloat16", of activations and matrix products; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
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
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width"):
            if getattr(self, name) < 1:
                raise UserError(f"model: {name} is {getattr(self, name)}, expected at least 1")
        if self.heads % self.kv_heads:
            raise UserError(f"model: heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model: head_dim={self.head_dim} must be even, RoPE rotates pairs")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model: dtype={self.dtype!r}, expected 'float32' or 'bfloat16'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> DecoderConfig:
        """Builds a config from a mapping; unknown and missing fields are a `UserError` that names them."""
        values = {**values, **overrides}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING)
        if unknown or missing:
            raise UserError(f"model: unknown fields {unknown}, missing fields {missing}; known: {sorted(fields)}")
        return cls(**values)
