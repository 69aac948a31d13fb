"""The exact judge of the built-in tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prl_jax.judges.base import Judged, check_lengths, logits
from prl_jax.text.chat import Prompt, prompt_text


class GoldJudge:
    """Tells the exact preference of a task whose utility is known.

    Args:
      preference: `(prompt text, response 1, response 2) -> P(response 1 is better)`, exact.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(self, preference: Callable[[str, str, str], float]):
        self.preference = preference

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        rows = zip(prompts, first, second, strict=True)
        p = np.array([self.preference(prompt_text(x), a, b) for x, a, b in rows], np.float64)
        z = logits(p)
        return Judged(z, -z)
