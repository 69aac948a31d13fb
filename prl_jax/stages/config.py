"""What a config file imports: `build`, the sections that stages share, and the section of each kind of stage."""

from prl_jax.config.declare import (
    anchors,
    bradley_terry,
    build,
    evaluation,
    generative,
    lora,
    optimizer,
    ppo,
    sft,
    source,
)

__all__ = [
    "anchors",
    "bradley_terry",
    "build",
    "evaluation",
    "generative",
    "lora",
    "optimizer",
    "ppo",
    "sft",
    "source",
]
