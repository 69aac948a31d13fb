"""What the numbers say, in sentences that claim no more than the numbers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prl_jax.reporting.inputs import RunFiles, number
from prl_jax.reporting.tables import across_seeds, arms_of, is_trained, judges_of

_KEY = "win_rate"


def headline(runs: Sequence[RunFiles]) -> list[str]:
    """Sentences of the report's first paragraph, the most important one first."""
    arms = _final_arms(runs)
    trained = [arm for arm in arms if is_trained(arm) and number(arm, _KEY) is not None]
    if not trained:
        return ["There is no final win rate yet: the run has not reached its evaluation."]
    trained.sort(key=lambda arm: "pairwise" not in str(arm.get("name")).lower())  # the method of interest first
    over = f"{len(runs)} runs" if len(runs) > 1 else _prompts(runs[0].summary)
    sentences = [_against_sft(arm, over if index == 0 else "") for index, arm in enumerate(trained)]
    sentences += _between(trained)
    sentences += [
        f"Without any reinforcement learning, {arm['name']} has {_percent(number(arm, _KEY))}."
        for arm in arms
        if "greedy" in str(arm.get("name")).lower() and number(arm, _KEY) is not None
    ]
    return sentences


def caveats(runs: Sequence[RunFiles]) -> list[str]:
    """What a reader has to know before believing the table."""
    summary, notes = runs[0].summary, []
    if len(runs) == 1:
        notes.append(
            f"One seed ({summary.get('seed', 'unknown')}): the intervals come from a bootstrap over evaluation prompts "
            "and do not cover how much another training seed would change."
        )
    else:
        notes.append(
            f"Intervals of means are over {len(runs)} runs (Student's t); those of single runs are over prompts. "
            "Curves show the first run in full colour and the others faintly; all other details are of the first."
        )
    judge = summary.get("win_rate_judge")
    if judge == "gold":
        notes.append("Win rates are told by the exact judge of the built-in tasks.")
    elif judge:
        notes.append(f"Win rates are told by a learned judge ({judge}), which has errors and tastes of its own.")
    notes += _judge_caveats(summary)
    of_runs = [[*_written_notes(run.summary), *run.missing] for run in runs]
    notes += [note for note in of_runs[0] if all(note in others for others in of_runs)]
    notes += [
        f"{run.label}: {note}" for run, own in zip(runs, of_runs, strict=True) for note in own if note not in notes
    ]
    return notes


def _written_notes(summary: Mapping[str, Any]) -> list[str]:
    written = summary.get("notes")
    return [str(note) for note in written] if isinstance(written, list) else []


def _judge_caveats(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    for judge in judges_of(summary):
        accuracy, longer = number(judge, "accuracy"), number(judge, "longer_wins")
        if accuracy is not None and longer is not None and accuracy <= longer:
            notes.append(
                f"The judge {judge['stage']} is no better than always picking the longer response "
                f"({accuracy:.3f} against {longer:.3f})."
            )
    return notes


def _final_arms(runs: Sequence[RunFiles]) -> list[Mapping[str, Any]]:
    """The arms of one run, or means over the runs that have the arm."""
    if len(runs) == 1:
        return arms_of(runs[0].summary)
    names = list(dict.fromkeys(str(arm.get("name")) for run in runs for arm in arms_of(run.summary)))
    means: list[Mapping[str, Any]] = []
    for name in names:
        same = [arm for run in runs for arm in arms_of(run.summary) if str(arm.get("name")) == name]
        means.append({**across_seeds(same), "name": name, "judge": same[0].get("judge")})
    return means


def _against_sft(arm: Mapping[str, Any], over: str) -> str:
    low, high = number(arm, f"{_KEY}_low"), number(arm, f"{_KEY}_high")
    stem = f"{arm['name']} has a win rate of {_percent(number(arm, _KEY))} against the SFT policy"
    if low is None or high is None:
        return stem + f" ({over}; no interval)." if over else stem + " (no interval)."
    details = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" + (f", {over}" if over else "")
    if low > 0.5:
        verdict = "the whole interval lies above one half."
    elif high < 0.5:
        verdict = "the whole interval lies below one half: it is worse than SFT."
    else:
        verdict = "the interval includes one half, so no difference from SFT is shown."
    return f"{stem} ({details}); {verdict}"


def _between(trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compares the first arm with each other one, by their intervals."""
    sentences = []
    first = trained[0]
    for other in trained[1:]:
        a, b = number(first, _KEY) or 0.0, number(other, _KEY) or 0.0
        bounds = [number(arm, f"{_KEY}_{end}") for arm in (first, other) for end in ("low", "high")]
        ahead, behind = (first, other) if a >= b else (other, first)
        if None in bounds:
            continue
        apart = max(bounds[0] or 0, bounds[2] or 0) > min(bounds[1] or 0, bounds[3] or 0)
        ending = "their intervals do not overlap" if apart else "their intervals overlap, so this order may be chance"
        sentences.append(f"{ahead['name']} is ahead of {behind['name']} by {100 * abs(a - b):.1f} points; {ending}.")
    return sentences


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.1f} %"


def _prompts(summary: Mapping[str, Any]) -> str:
    prompts = number(summary, "prompts")
    return "" if prompts is None else f"{prompts:.0f} prompts"
