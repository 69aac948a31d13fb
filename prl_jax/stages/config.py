"""Names for config files: `build`, the sections that stages share, and the section of each kind of stage."""

from typing import Any

from prl_jax.config.declare import build, lora, optimizer, part, sampling, source
from prl_jax.errors import UserError
from prl_jax.runs.judges import JUDGES
from prl_jax.stages.anchors import declare as anchors
from prl_jax.stages.bradley_terry import declare as bradley_terry
from prl_jax.stages.direct_section import declare as direct
from prl_jax.stages.evaluation import declare as evaluation
from prl_jax.stages.generative import declare as generative
from prl_jax.stages.online_section import declare as online
from prl_jax.stages.pairs_section import declare as pairs
from prl_jax.stages.sft import declare as sft

__all__ = [
    "anchors",
    "bradley_terry",
    "build",
    "direct",
    "evaluation",
    "generative",
    "judge",
    "lora",
    "online",
    "optimizer",
    "pairs",
    "part",
    "sampling",
    "sft",
    "source",
]


def judge(kind: str, **values: Any) -> dict[str, Any]:
    """A section of `judges`, such as `judge("python", path="my_rules.py:shorter")`.

    Raises:
      UserError: there is no such kind of judge, or it has no such key.
    """
    if kind not in JUDGES:
        raise UserError(f"judge: kind={kind!r}, expected one of {', '.join(map(repr, JUDGES))}")
    return JUDGES[kind].declare(**values)
