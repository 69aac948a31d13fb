"""Files of llama.cpp in and out."""

from prl_jax.models.gguf.config import hf_config
from prl_jax.models.gguf.families import ARCHITECTURES
from prl_jax.models.gguf.load import check_gguf, from_gguf

__all__ = ["ARCHITECTURES", "check_gguf", "from_gguf", "hf_config"]
