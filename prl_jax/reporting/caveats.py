"""Caveats that a reader has to know before believing the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prl_jax.reporting.inputs import RunFiles, number
from prl_jax.reporting.judges import answering, in_words, is_exact, is_learned, judges_of_config
from prl_jax.reporting.names import judges_asked, section_of
from prl_jax.reporting.pooling import obstacles
from prl_jax.reporting.tables import arms_of, judges_of
from prl_jax.reporting.trust import is_measured, no_judges, sentences
from prl_jax.reporting.watching import warnings

_FEW = 30  # prompts below which percentile intervals of a bootstrap are clearly too narrow


def caveats(runs: Sequence[RunFiles]) -> list[str]:
    """Returns what a reader has to know before believing the table."""
    reasons = obstacles(runs)
    notes = [*reasons, _seeds(runs, pooled=not reasons)]
    of_runs = [
        [*_of_judges(run), *warnings(run), *_of_prompts(run), *_written_notes(run.summary), *run.missing]
        for run in runs
    ]
    notes += [note for note in of_runs[0] if all(note in others for others in of_runs)]
    notes += [
        f"{run.label}: {note}" for run, found in zip(runs, of_runs, strict=True) for note in found if note not in notes
    ]
    return notes


def _seeds(runs: Sequence[RunFiles], *, pooled: bool) -> str:
    if len(runs) == 1:
        over = "a bootstrap over evaluation prompts" if arms_of(runs[0].summary) else "the evaluated pairs alone"
        return (
            f"One seed ({runs[0].summary.get('seed', 'unknown')}): the intervals come from {over} and do not cover how "
            "much another training seed would change."
        )
    if not pooled:
        return "Intervals are those of single runs. Curves and all other details are of the first."
    return (
        f"Intervals of means are over {len(runs)} runs (Student's t); those of single runs are over prompts. "
        "Curves show the first run in full colour and the others faintly; all other details are of the first."
    )


def _of_judges(run: RunFiles) -> list[str]:
    """Who told the win rates, which judges are none, and which are weak."""
    notes, none = [], no_judges(run)
    teller = str(run.summary.get("win_rate_judge") or "")
    if teller and arms_of(run.summary):
        notes += _of_teller(run, teller, trusted=teller not in none)
    notes += sentences(list(none), none, run.summary)
    learned = [(arm["name"], arm["judge"]) for arm in arms_of(run.summary) if arm.get("judge") in none]
    notes += [f"{name} learned from {judge}, so that its win rate means nothing." for name, judge in learned]
    for judge in judges_of(run.summary):
        accuracy, longer, left_out = (number(judge, key) for key in ("accuracy", "longer_wins", "not_finite"))
        if left_out:
            notes.append(f"{judge['stage']}: {left_out:.0f} pairs are left out, for which it gave no finite number.")
        if judge["stage"] not in none and accuracy is not None and longer is not None and accuracy <= longer:
            notes.append(
                f"The judge {judge['stage']} is no better than always picking the longer response "
                f"({accuracy:.3f} against {longer:.3f})."
            )
    return notes


def _of_teller(run: RunFiles, teller: str, *, trusted: bool) -> list[str]:
    """Whose word the win rates are, and what it is worth; `trusted` where nothing shows that it is none."""
    judges = judges_of_config(run)
    if is_exact(judges, teller):
        return ["Win rates are told by the exact judge of the built-in tasks."]
    learned, told = is_learned(judges, teller), in_words(judges, teller)
    if learned:
        notes = [f"Win rates are told by a learned judge ({told}), which has errors and tastes of its own."]
    else:
        notes = [f"Win rates are told by {told}: they show what it was written to reward, and nothing else."]
    telling = answering(judges, teller)
    asked = [(str(arm["name"]), _learned_from(run, arm)) for arm in arms_of(run.summary)]
    same = [name for name, whom in asked if any(answering(judges, judge) & telling for judge in whom)]
    if same:
        remedy = "Train another judge on other pairs to tell them." if learned else "Let another judge tell them."
        notes.append(
            f"{' and '.join(same)} learned from {teller}, which tells the win rates: they say how well its taste was "
            f"met, its errors included. {remedy}"
        )
    if trusted and not is_measured(run, teller):
        notes.append(f"Nothing here shows how often {teller} is right: name it in the evaluation's judges.")
    return notes


def _learned_from(run: RunFiles, arm: Mapping[str, Any]) -> list[str]:
    """The judges that a policy of the final table learned from: its stage says, or else its arm."""
    return judges_asked(section_of(run, str(arm.get("stage")))) or judges_asked(arm)


def _of_prompts(run: RunFiles) -> list[str]:
    arms, prompts = arms_of(run.summary), number(run.summary, "prompts")
    notes = [
        f"{arm['name']}: {left_out:.0f} prompts are left out, for which the judge gave no finite number."
        for arm in arms
        if (left_out := number(arm, "prompts_left_out"))
    ]
    if arms and prompts is not None and prompts < _FEW:
        notes.append(f"Win rates are over {prompts:.0f} prompts: intervals of so few are too narrow.")
    return notes


def _written_notes(summary: Mapping[str, Any]) -> list[str]:
    written = summary.get("notes")
    return [str(note) for note in written] if isinstance(written, list) else []
