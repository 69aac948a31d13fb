"""Hugging Face checkpoints in and out."""

from prl_jax.models.hf.config import decoder_config, is_reward_model, read_config
from prl_jax.models.hf.export_config import export_config
from prl_jax.models.hf.families import FAMILIES
from prl_jax.models.hf.load import from_hf
from prl_jax.models.hf.save import MAX_SHARD_BYTES, ExportableTokenizer, to_hf

__all__ = [
    "FAMILIES",
    "MAX_SHARD_BYTES",
    "ExportableTokenizer",
    "decoder_config",
    "export_config",
    "from_hf",
    "is_reward_model",
    "read_config",
    "to_hf",
]
