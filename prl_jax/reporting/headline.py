"""The result in words, in sentences that claim no more than the numbers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prl_jax.reporting import trust
from prl_jax.reporting.inputs import RunFiles, number
from prl_jax.reporting.means import across_seeds
from prl_jax.reporting.names import evaluation_of, improves_a_policy, sections
from prl_jax.reporting.pooling import obstacles
from prl_jax.reporting.tables import arms_of, is_trained, judges_of, pairs_of

_KEY = "win_rate"
_SURE = 0.05  # a difference with a corrected p-value below it is taken for one


def headline(runs: Sequence[RunFiles]) -> list[str]:
    """Sentences of the report's first paragraph, the most important one first."""
    if not obstacles(runs):
        return _sentences(runs)
    # Each run for itself: what is no seed of the same experiment has no mean.
    return [f"{run.label}: {sentence}" for run in runs for sentence in _sentences([run])]


def _sentences(runs: Sequence[RunFiles]) -> list[str]:
    """The sentences on one run, or on several seeds of one experiment."""
    arms, summary = _final_arms(runs), next((run.summary for run in runs if arms_of(run.summary)), runs[0].summary)
    measured = [arm for arm in arms if number(arm, _KEY) is not None]
    if not measured:
        return _without_win_rates(runs[0])
    none = {judge: reason for run in runs for judge, reason in trust.no_judges(run).items()}
    teller = str(summary.get("win_rate_judge"))
    if teller in none:
        return [f"No win rate of this run means anything: {teller}, which tells them, is no judge: {none[teller]}."]
    against = str(summary.get("opponent") or "the opponent")
    trained = [arm for arm in measured if is_trained(arm)]
    trained.sort(key=lambda arm: "pairwise" not in str(arm.get("name")).lower())  # the method of interest first
    finished = sum(bool(arms_of(run.summary)) for run in runs)
    over = f"{finished} of {len(runs)} runs" if finished < len(runs) else f"{len(runs)} runs"
    over = over if len(runs) > 1 else _prompts(summary)
    sentences = [_win_rate(arm, against, over if i == 0 else "", none) for i, arm in enumerate(trained)]
    sentences = sentences or [f"The evaluation compared no trained policy with {against}."]
    sentences += _between(trained, _differences(runs), single=len(runs) == 1)
    return sentences + [
        f"Without any training against it, {arm['name']} has {_percent(number(arm, _KEY))}."
        for arm in measured
        if not is_trained(arm) and "greedy" in str(arm.get("name"))
    ]


def _without_win_rates(run: RunFiles) -> list[str]:
    """The sentences on a run that compares no policies, or does not yet."""
    stages, evaluated = sections(run), judges_of(run.summary)
    if any(number(arm, "prompts_left_out") for arm in arms_of(run.summary)):
        return ["No win rate could be measured: the judge that tells them gave no finite number."]
    if evaluated:
        none = trust.no_judges(run)
        weak = [name for name in none if name in {str(judge["stage"]) for judge in evaluated}]
        return [*trust.sentences(weak, none, run.summary), *(_accuracy(judge) for judge in evaluated)]
    if stages and not evaluation_of(run):
        improved = any(map(improves_a_policy, stages))
        judges_alone = "no final win rate" if improved else "no policy was compared with another"
        return [f"This run has no evaluation stage: {judges_alone}. The curves show how its stages trained."]
    if stages and not evaluation_of(run).get("opponent"):
        return ["There is no result yet: the run has not reached its evaluation, which is of judges alone."]
    return ["There is no final win rate yet: the run has not reached its evaluation."]


def _accuracy(judge: Mapping[str, Any]) -> str:
    """How often a judge is right, beside the two trivial answers to it."""
    share, low, high = (number(judge, f"accuracy{end}") for end in ("", "_low", "_high"))
    if share is None:
        return f"{judge['stage']} has no accuracy: no pair with a better response had a finite number."
    pairs, ties = number(judge, "n"), number(judge, "ties") or 0
    counted = pairs is not None and not number(judge, "not_finite")
    of = f" of {pairs - ties:,.0f} pairs" if counted else ""
    interval = "no interval" if low is None or high is None else f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    beside = [("always picking the longer one", "longer_wins"), ("the best possible judge", "bayes_accuracy")]
    known = [f"{what} {_percent(value)}" for what, key in beside if (value := number(judge, key)) is not None]
    ending = f"; {', '.join(known)}" if known else ""
    return f"{judge['stage']} picks the better response in {_percent(share)}{of} ({interval}{ending})."


def _final_arms(runs: Sequence[RunFiles]) -> list[Mapping[str, Any]]:
    """The arms of one run, or means over the runs that have the arm."""
    if len(runs) == 1:
        return list(arms_of(runs[0].summary))
    names = list(dict.fromkeys(str(arm.get("name")) for run in runs for arm in arms_of(run.summary)))
    means: list[Mapping[str, Any]] = []
    for name in names:
        same = [arm for run in runs for arm in arms_of(run.summary) if str(arm.get("name")) == name]
        kept = {key: same[0].get(key) for key in ("judge", "is_opponent")}
        means.append({**across_seeds(same), "name": name, **kept})
    return means


def _differences(runs: Sequence[RunFiles]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Paired differences of one run, or means over the runs with intervals over them."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        for pair in pairs_of(run.summary):
            found.setdefault((str(pair.get("arm")), str(pair.get("other"))), []).append(pair)
    if len(runs) == 1:
        return {names: pairs[0] for names, pairs in found.items()}
    return {names: across_seeds(pairs, interval_of="difference") for names, pairs in found.items() if len(pairs) > 1}


def _win_rate(arm: Mapping[str, Any], against: str, over: str, none: Mapping[str, str]) -> str:
    low, high = number(arm, f"{_KEY}_low"), number(arm, f"{_KEY}_high")
    stem = f"{arm['name']} has a win rate of {_percent(number(arm, _KEY))} against {against}"
    if arm.get("judge") in none:
        judge = str(arm["judge"])
        return f"{stem}, which means nothing: it learned from {judge}, which is no judge: {none[judge]}."
    if low is None or high is None:
        return stem + f" ({over}; no interval)." if over else stem + " (no interval)."
    details = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" + (f", {over}" if over else "")
    if low > 0.5:
        verdict = "the whole interval lies above one half."
    elif high < 0.5:
        verdict = f"the whole interval lies below one half: it is worse than {against}."
    else:
        verdict = f"the interval includes one half, so no difference from {against} is shown."
    return f"{stem} ({details}); {verdict}"


def _between(
    trained: Sequence[Mapping[str, Any]], differences: Mapping[tuple[str, str], Mapping[str, Any]], *, single: bool
) -> list[str]:
    """Compares the first arm with each other one, by the differences on the same prompts. The tests are those of a
    `single` run; over several there is an interval over runs."""
    sentences = []
    for other in trained[1:]:
        names = str(trained[0]["name"]), str(other["name"])
        sign, pair = 1.0, differences.get(names)
        if pair is None:
            sign, pair = -1.0, differences.get((names[1], names[0]))
        value = None if pair is None else number(pair, "difference")
        if pair is None or value is None:
            sentences.append(f"{names[0]} and {names[1]} were not compared on the same prompts.")
            continue
        ahead, behind = names if sign * value >= 0 else (names[1], names[0])
        ends = [number(pair, f"difference_{end}") for end in ("low", "high")]
        if ends[0] is None or ends[1] is None:
            sentences.append(f"{ahead} is ahead of {behind} by {100 * abs(value):.1f} points (no interval).")
            continue
        low, high = ends if value >= 0 else (-ends[1], -ends[0])
        p_value = number(pair, "p_corrected") if single else None
        corrected = "" if p_value is None else f", corrected p {'below 0.001' if p_value < 0.001 else f'{p_value:.3f}'}"
        verdict = "it lies above zero" if low > 0 else "it includes zero, so this order may be chance"
        if low > 0 and p_value is not None and p_value >= _SURE:
            verdict += ", but among so many comparisons this order may be chance"
        sentences.append(
            f"{ahead} is ahead of {behind} by {100 * abs(value):.1f} points "
            f"(paired 95 % interval {100 * low:.1f} to {100 * high:.1f}{corrected}); {verdict}."
        )
    return sentences


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.1f} %"


def _prompts(summary: Mapping[str, Any]) -> str:
    prompts = number(summary, "prompts")
    return "" if prompts is None else f"{prompts:.0f} prompts"
