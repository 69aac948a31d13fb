"""The judges that a row of `METHODS` has to be trained with, for recipes and experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from prl_jax.methods import METHODS, Preset, section_of
from prl_jax.stages import config as c

WORDS = ("gold", "bt", "genrm", "ensemble")
# Judges of one kind on the same pairs, in different orders.
_MEMBERS = ("bt", "bt_2", "bt_3")


class Asked(NamedTuple):
    """Whom a stage that trains a policy asks.

    Attributes:
      scoring: the stages that train Bradley-Terry judges.
      comparing: the stages that train generative ones.
      judges: what the root section `judges` needs beside them.
      values: keys of the policy's stage: `judge`, and of a reward that names its judges, `reward`.
      title: the judge that stands for all of them in tables.
    """

    scoring: tuple[str, ...]
    comparing: tuple[str, ...]
    judges: Mapping[str, Any]
    values: Mapping[str, Any]
    title: str

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of all judges that are trained, in their order."""
        return (*self.scoring, *self.comparing)


def asked(method: str, word: str = "") -> Asked:
    """The judges of a row of `METHODS`.

    Args:
      method: the name of the row.
      word: one of `WORDS`: the exact judge of the built-in tasks, a Bradley-Terry judge, a generative one, or three
        Bradley-Terry judges as one; "" for what the row needs: the kind of judge that it names, a Bradley-Terry judge
        where its reward asks for scores, else a generative one. A reward that adds up several asks two judges for one.

    Raises:
      ValueError: the method cannot use that judge.
    """
    preset = METHODS[method]
    reward, needed = preset.method.reward, preset.judge.get("kind", "")
    several = "judges" in section_of(reward)  # the reward names its judges itself
    if not word:
        word = needed or ("bt" if reward.asks == "scores" else "genrm")
    _check(method, preset, word)
    if word == "gold":
        return Asked((), (), {}, dict(judge=word), word)
    if word == "genrm":
        return Asked((), (word,), {}, dict(judge=word), word)
    members = _MEMBERS if word == "ensemble" else _MEMBERS[:2] if several else _MEMBERS[:1]
    if several:
        return Asked(members, (), {}, dict(judge="", reward=dict(judges=members)), members[0])
    if word == "bt":
        return Asked(members, (), {}, dict(judge=word), word)
    section = c.judge(**{"kind": word, "of": members, **preset.judge})
    return Asked(members, (), {word: section}, dict(judge=word), word)


def _check(method: str, preset: Preset, word: str) -> None:
    needed, reward = preset.judge.get("kind", word), preset.method.reward
    if word not in WORDS:
        raise ValueError(f"{word!r}: no such judge, expected one of {', '.join(WORDS)}")
    if word != needed:
        raise ValueError(f"{method},{word}: {preset.title} is a method for the judge {needed!r}; leave the judge out")
    if reward.asks == "scores" and word in ("gold", "genrm"):
        raise ValueError(
            f"{method},{word}: the reward {reward.kind!r} needs scores of single responses, and {word!r} compares two; "
            "use 'bt' or 'ensemble'"
        )
