"""Anchors that responses take the place of: the texts that stand for the prompts of a stage, as they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from prl_jax.losses import symmetrise
from prl_jax.methods import Judgements


class KeptAnchors:
    """The anchors of each prompt, some of them replaced.

    What was replaced is a position of the stage, as that of its data is: checkpoints have it.

    Args:
      texts: the anchors that each prompt has at first, by the number of its record.
      beaten: the probability, at least, with which a response beats an anchor whose place it takes.
    """

    def __init__(self, texts: Sequence[Sequence[str]], beaten: float):
        self._texts, self._beaten = texts, beaten
        self._replaced: dict[int, list[str]] = {}

    def __getitem__(self, record: int) -> Sequence[str]:
        return self._replaced.get(record, self._texts[record])

    def __len__(self) -> int:
        return len(self._texts)

    def learn(
        self,
        index: Int[np.ndarray, "B"],
        responses: Sequence[str],
        truncated: Bool[np.ndarray, "N"],
        judged: Judgements,
        group_size: int,
    ) -> int:
        """Puts the responses that have won clearly in the place of those that they beat, from the next step on.

        Of each prompt one anchor at most leaves: the one that is beaten the most.

        Args:
          index: the records of the step's prompts.
          responses: `group_size` to each of them, which stand together.
          truncated: those that were cut; they stand for no prompt, and nor do empty ones.
          judged: what the judge says of these.
          group_size: responses to a prompt.

        Returns:
          How many anchors have left.
        """
        whole = np.array([bool(text) for text in responses]) & ~truncated
        wins = np.where(judged.mask & whole[:, None], probabilities(judged), 0.0).reshape(len(index), -1)
        best: dict[int, int] = {}  # of each record, which may stand in a step twice, the prompt with the clearest win
        for i, record in enumerate(index.tolist()):
            if wins[i].max() >= max(self._beaten, wins[best[record]].max() if record in best else 0.0):
                best[record] = i
        for record, i in best.items():
            member, anchor = divmod(int(wins[i].argmax()), judged.mask.shape[1])
            texts = list(self[record])
            texts[anchor] = responses[i * group_size + member]
            self._replaced[record] = texts
        return len(best)

    def get_state(self) -> dict[str, list[str]]:
        """The anchors that were replaced, by the number of the record."""
        return {str(record): list(texts) for record, texts in self._replaced.items()}

    def set_state(self, state: Mapping[str, Sequence[str]]) -> None:
        """Takes what `get_state` gave."""
        self._replaced = {int(record): list(texts) for record, texts in state.items()}


def probabilities(judged: Judgements) -> Float[np.ndarray, "N M"]:
    """P(each response beats each opponent), from both orders, or from scores."""
    if judged.z_ya is not None and judged.z_ay is not None:
        return np.asarray(symmetrise(judged.z_ya, judged.z_ay, judged.merge))
    assert judged.scores is not None and judged.opponent_scores is not None
    return np.asarray(jax.nn.sigmoid(judged.scores[:, None] - judged.opponent_scores))
