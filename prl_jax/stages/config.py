"""What a config file imports: `build`, the sections that stages share, and the section of each kind of stage."""

from prl_jax.config.declare import build, lora, optimizer, source
from prl_jax.stages.anchors import declare as anchors
from prl_jax.stages.bradley_terry import declare as bradley_terry
from prl_jax.stages.evaluation import declare as evaluation
from prl_jax.stages.generative import declare as generative
from prl_jax.stages.online_section import declare as online
from prl_jax.stages.sft import declare as sft

__all__ = [
    "anchors",
    "bradley_terry",
    "build",
    "evaluation",
    "generative",
    "lora",
    "online",
    "optimizer",
    "sft",
    "source",
]
