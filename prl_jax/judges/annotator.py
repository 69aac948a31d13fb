"""An annotator of the built-in tasks as a judge: draws of what labels are drawn from, errors included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from prl_jax.judges.base import Judged, check_lengths, logits
from prl_jax.text.chat import Prompt, prompt_text


class AnnotatorJudge:
    """Says of each pair that one response is better, for certain, or that both are alike: P is 1, 0 or 1/2.

    A verdict is one draw, which follows from the seed and the texts alone: asked again, in either order, the annotator
    says the same. Another seed is another annotator.

    Args:
      labels: `(prompt text, response 1, response 2) -> probabilities of the verdicts first, tie, second`, with the
        first and the last exchanged for exchanged responses.
      seed: of the draws.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(self, labels: Callable[[str, str, str], tuple[float, float, float]], *, seed: int = 0):
        self.labels, self.seed = labels, seed

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        rows = zip(prompts, first, second, strict=True)
        verdicts = np.array([self._verdict(prompt_text(x), a, b) for x, a, b in rows], np.float32)
        z = logits(np.ones(1)) * verdicts
        return Judged(z, -z)

    def _verdict(self, prompt: str, first: str, second: str) -> int:
        """1 where the first response is better, -1 where the second one is, 0 for a tie."""
        if first > second:  # one draw for both orders
            return -self._verdict(prompt, second, first)
        if first == second:
            return 0
        better, tie, _ = self.labels(prompt, first, second)
        draw = self._draw(prompt, first, second)
        return 1 if draw < better else 0 if draw < better + tie else -1

    def _draw(self, *texts: str) -> float:
        """A number in [0, 1) that the seed and some texts decide: 53 bits of their checksum."""
        digest = hashlib.blake2b(json.dumps([self.seed, *texts]).encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53
