"""Tiny checkpoints made by transformers, and what both sides compute from them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from prl_jax.models import Decoder, ScalarModel
from prl_jax.types import TokenRows

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import hf_checkpoints  # noqa: E402, F401  (for the tests here, which find it through this module)

logging.disable_progress_bar()

PAD = 0


def make(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype = torch.float32, embedding: float = 0.3
) -> PreTrainedModel:
    """A checkpoint with random weights in `folder`, cut into shards by transformers, and its model.

    Weights are larger than usual, and norms and biases far from their neutral values, so that each of them counts.
    `embedding` is the size of the embedding's: where it is small, the layers decide what comes next.
    """
    (name,) = config["architectures"]
    auto = AutoModelForSequenceClassification if name.endswith("SequenceClassification") else AutoModelForCausalLM
    keys = copy.deepcopy({k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    parsed = AutoConfig.for_model(config["model_type"], **keys)
    torch.manual_seed(len(str(config)))
    model = auto.from_config(parsed, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            spread = 0.3 if "norm" in key or key.endswith("bias") else 1.4 * parameter.shape[-1] ** -0.5
            spread = embedding if "embed" in key else spread
            parameter.add_(spread * torch.randn_like(parameter))
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size="12KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return model


def load(folder: Path, dtype: torch.dtype = torch.float32, reward_model: bool = False) -> PreTrainedModel:
    """The model of a directory, with every tensor found and none left over."""
    auto = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, attn_implementation="eager", dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def padded(rows: np.ndarray, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of whole rows, of left-padded and of right-padded ones, `len(lengths)` of each."""
    width = rows.shape[1]
    keep = np.arange(width) < np.array(lengths)[:, None]
    rows = rows[: len(lengths)]
    left = np.stack([np.roll(row, width - n) for row, n in zip(rows, lengths, strict=True)])
    mask = np.concatenate([np.ones_like(keep), keep[:, ::-1], keep])
    return np.where(mask, np.concatenate([rows, left, rows]), PAD), mask


def token_rows(tokens: np.ndarray, mask: np.ndarray) -> TokenRows:
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return TokenRows(*(jnp.asarray(x, jnp.int32) for x in (tokens, positions, mask)))


def torch_logits(model: PreTrainedModel, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`[B, T, V]`, or `[B]` of a reward model."""
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits.float().numpy()
    return out[:, 0] if out.ndim == 2 else out


@jax.jit
def jax_logits(model: Decoder | ScalarModel, rows: TokenRows) -> jax.Array:
    return model.score(rows) if isinstance(model, ScalarModel) else model.logits(model.hidden(*rows))
