"""How responses end: the texts that stop one, and the reason why each of them has stopped."""

from __future__ import annotations

import bisect
import enum
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int

from prl_jax.sampling.config import SamplingConfig
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import Rollout


class StopReason(enum.IntEnum):
    """Why a response has no further token; the last two are those of a truncated one."""

    STOP_TOKEN = 0
    STOP_STRING = 1
    ROOM = 2
    REPETITION = 3


def stop_reasons(rollout: Rollout, stop_ids: Collection[int]) -> Int[np.ndarray, "B"]:
    """Returns the `StopReason` of each response of a rollout of NumPy arrays.

    A response that began to repeat itself with the last token that it had room for ran out of room.
    """
    mask = np.asarray(rollout.mask)
    last = np.take_along_axis(np.asarray(rollout.response), mask.sum(1, keepdims=True) - 1, axis=1)[:, 0]
    ended = np.where(np.isin(last, list(stop_ids)), StopReason.STOP_TOKEN, StopReason.STOP_STRING)
    return np.where(rollout.truncated, np.where(mask.all(1), StopReason.ROOM, StopReason.REPETITION), ended)


def reason_shares(reasons: Int[np.ndarray, "B"]) -> dict[str, float]:
    """Returns the share of the responses that stopped for each reason, as metrics."""
    return {f"stop_reasons/{reason.name.lower()}": float(np.mean(reasons == reason)) for reason in StopReason}


def decode_responses(tokenizer: Tokenizer, rollout: Rollout, stop_ids: Collection[int] = ()) -> list[str]:
    """Texts of the valid response tokens; the token that stops a response leaves no text."""
    return [tokenizer.decode(ids) for ids in _text_ids(rollout, stop_ids)]


def _text_ids(rollout: Rollout, stop_ids: Collection[int]) -> list[list[int]]:
    rows = [
        row[valid].tolist() for row, valid in zip(np.asarray(rollout.response), np.asarray(rollout.mask), strict=True)
    ]
    return [ids[:-1] if ids and ids[-1] in stop_ids else ids for ids in rows]


def read_responses(tokenizer: Tokenizer, rollout: Rollout, config: SamplingConfig) -> tuple[list[str], Rollout]:
    """The texts of responses, and the rollout in which each text of `config.stop` has ended the response.

    A text may span tokens, so that it is looked for in what the tokenizer makes of them, on the host, once they have
    been sampled. The tokens in front of a response's end were drawn as if sampling had stopped there: their
    log-probabilities are what they were.

    Args:
      tokenizer: of the policy.
      rollout: of NumPy arrays.
      config: how it was sampled.
    """
    texts = decode_responses(tokenizer, rollout, config.stop_ids)
    if not config.stop:
        return texts, rollout
    lengths, stopped = rollout.mask.sum(1), np.zeros(len(texts), bool)
    for i, ids in enumerate(_text_ids(rollout, config.stop_ids)):
        found = _until_stop(tokenizer, ids, config.stop, config.min_new_tokens)
        if found is not None:
            (texts[i], lengths[i]), stopped[i] = found, True
    mask = np.arange(rollout.mask.shape[1]) < lengths[:, None]
    return texts, rollout._replace(
        response=np.where(mask, rollout.response, np.int32(config.pad_id)),
        mask=mask,
        logp=np.where(mask, rollout.logp, np.float32(0)),
        truncated=rollout.truncated & ~stopped,
    )


def _until_stop(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str], least: int) -> tuple[str, int] | None:
    """The text before the first of the texts `stop` that is complete, and how many tokens there are once it is; None
    where none is. One that is complete within the first `least` tokens does not count."""
    start = len(tokenizer.decode(ids[:least]))

    def before(count: int) -> str | None:
        text = tokenizer.decode(ids[:count])
        found = [text.find(s, max(start - len(s) + 1, 0)) for s in stop]
        places = [place for place in found if place >= 0]
        return text[: min(places)] if places else None

    if before(len(ids)) is None:
        return None
    count = bisect.bisect_left(range(len(ids)), True, key=lambda count: before(count) is not None)
    text = before(count)
    assert text is not None
    return text, count
