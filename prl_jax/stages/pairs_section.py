"""The section of a stage that makes pairs out of a policy's samples: its keys, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled, sampling, source
from prl_jax.errors import UserError
from prl_jax.methods.sections import piece_of, section_of
from prl_jax.methods.selection import BestWorst, Selection
from prl_jax.stages.kind import Checking, Reads, check_sampling


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of a stage that samples, lets a judge rank the samples, and selects pairs.

    Args:
      values: what is to be otherwise. `select` is a section: with a `kind` it replaces the selection, without one it
        changes the fields that it names.
    """
    given = dict(values.pop("select", {}))
    default = section_of(BestWorst())
    same = given.get("kind", default["kind"]) == default["kind"]
    defaults = dict(
        kind="pairs",
        policy="sft",  # whose responses to the prompts are ranked
        others=(),  # further policies that sample as many
        prompts=source(),
        include_reference=False,  # whether the reference answer that a prompt's record carries is ranked with them
        judge="genrm",  # ranks the responses to a prompt: by score, or by wins over each other in both orders
        scorer="",  # a judge that scores, for selections that ask two
        samples=4,  # of each policy, to each prompt
        temperature=1.0,
        sampling=sampling(),
        batch_size=512,
        # What becomes of the responses to a prompt (`prl_jax.methods.selection`): a kind, and the fields of that kind.
        select=section_of(piece_of("select", {**default, **given} if same else given)),
        include_self=False,  # whether a response is among its own opponents in the win rates that are written
        agrees_with="",  # a second judge that ranks the same responses: how far both agree becomes meta.certainty
        agreement="kendall",  # or "spearman", or "top_order" (`prl_jax.methods.agreement`)
        replay=(),  # earlier stages of this kind, some of whose pairs are written again
        replay_share=0.0,  # of the pairs that are written, at most
    )
    return filled(defaults, values, "pairs")


def selection_in(section: ConfigDict) -> Selection:
    """The selection whose fields a section holds."""
    return piece_of("select", section.select.to_dict())


def responses_of(section: ConfigDict) -> int:
    """How many responses to a prompt are ranked."""
    return section.samples * (1 + len(section.others)) + section.include_reference


def most_pairs(section: ConfigDict) -> int:
    """How many pairs, or demonstrations, a prompt may give."""
    count, keys = responses_of(section), section.select
    if "accepted" in keys:
        return keys.accepted - 1
    return (keys.keep or count * (count - 1) // 2) if "keep" in keys else 1


def judges_in(section: ConfigDict) -> tuple[str, ...]:
    """The judges that are asked, each once."""
    return tuple(dict.fromkeys(name for name in (section.judge, section.scorer, section.agrees_with) if name))


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the prompts: the policies that sample and the judges that rank; references are only copied."""
    for policy in (section.policy, *section.others):
        yield Reads(policy)
    for judge in judges_in(section):
        for policy in (section.policy, *section.others):
            yield Reads(judge, policy)
    if section.include_reference:
        yield Reads("", answered=True)


def check(check: Checking, name: str) -> None:
    """Raises `UserError` for a section whose keys do not go together, or that names what cannot do what it should."""
    section = check.config[name]
    try:
        select = selection_in(section)
        _check_keys(section, select)
    except UserError as error:  # it begins with the key
        raise UserError(f"{name}.{error}") from error
    for key, families in (("others", ("policy",)), ("replay", ("pairs",))):
        for one in section[key]:
            check.reference(name, key, one, families)
            if key == "replay" and selection_in(check.config[one]).output != "pairs":
                raise UserError(f"{name}.replay={one!r} makes no pairs (select={check.config[one].select.kind!r})")
    for policy in (section.policy, *section.others):
        check_sampling(check, name, section, policy)


def _check_keys(section: ConfigDict, select: Selection) -> None:
    count = responses_of(section)
    if count < select.least_group:
        raise UserError(
            f"samples={section.samples}: {count} responses to a prompt are ranked, and select={select.kind!r} is meant "
            f"for at least {select.least_group}; raise it"
        )
    asked = "scores" in select.needs
    if asked and not section.scorer:
        raise UserError(f"scorer: empty; select={select.kind!r} asks a judge that scores besides; name one")
    if section.scorer and section.scorer == section.judge:
        raise UserError(f"scorer={section.scorer!r}: is the judge too, and would agree with itself; name another one")
    if section.scorer and not asked:
        raise UserError(f"scorer={section.scorer!r}: select={select.kind!r} asks no second judge; leave it out")
    if section.agreement != "kendall" and not section.agrees_with:
        raise UserError(f"agreement={section.agreement!r}: nothing reads it without agrees_with; leave it out")
    if bool(section.replay) != bool(section.replay_share) or not 0 <= section.replay_share < 1:
        raise UserError(
            f"replay_share={section.replay_share} with replay={tuple(section.replay)}: expected a share above 0 and "
            "below 1 where earlier pairs are replayed, and 0 where none are"
        )
    if select.output != "pairs" and section.replay:
        raise UserError(f"replay={tuple(section.replay)}: select={select.kind!r} makes no pairs; leave it out")
