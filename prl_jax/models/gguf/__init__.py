"""Files of llama.cpp in and out."""

from prl_jax.models.gguf.config import hf_config
from prl_jax.models.gguf.families import ARCHITECTURES
from prl_jax.models.gguf.load import check_gguf, from_gguf
from prl_jax.models.gguf.save import KINDS, to_gguf

__all__ = ["ARCHITECTURES", "KINDS", "check_gguf", "from_gguf", "hf_config", "to_gguf"]
