"""Names from a run's config: of its policies, of what each is compared with, of the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from prl_jax.reporting.inputs import REWARDED, RunFiles


def section_of(run: RunFiles, stage: str) -> Mapping[str, Any]:
    """A stage's section of the config, empty where there is none."""
    section = run.settings.get(stage)
    return section if isinstance(section, Mapping) else {}


def sections(run: RunFiles) -> list[Mapping[str, Any]]:
    """The sections of all stages that the config lists."""
    listed = run.settings.get("stages")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list | tuple) else []
    return [section_of(run, name) for name in names]


def judges_asked(section: Mapping[str, Any]) -> list[str]:
    """The judges that a policy with this section learns from: one, or those that its reward names."""
    reward = section.get("reward")
    several = reward.get("judges") if isinstance(reward, Mapping) else None
    return [str(judge) for judge in several or [section.get("judge")] if judge]


def improves_a_policy(section: Mapping[str, Any]) -> bool:
    """Whether a section is that of a stage which trains a policy further."""
    return {"policy", "duration"} <= set(section)


def evaluation_of(run: RunFiles) -> Mapping[str, Any]:
    """The section of the last stage that compares arms, which is the one that the summary is of."""
    found = [section for section in sections(run) if {"arms", "opponent"} & set(section)]
    return found[-1] if found else {}


def called(model: str) -> str:
    """Returns the name of a stage, or of a model directory."""
    return PurePath(model).name or model


def arm_name(run: RunFiles, stage: str) -> str:
    """The one name of a policy: its title in the evaluation where it has one, else that of its stage."""
    arms = evaluation_of(run).get("arms")
    arm = arms.get(stage) if isinstance(arms, Mapping) else None
    title = arm.get("title") if isinstance(arm, Mapping) else None
    return str(title or called(stage))


def start_of(run: RunFiles, stage: str) -> str:
    """Returns what the policy of a stage started from, which its curve compares it with; "" where nothing tells."""
    return called(str(section_of(run, stage).get("policy") or ""))


def opponent_of(run: RunFiles) -> str:
    """Returns what the arms of the final table are compared with; "" where nothing tells."""
    return str(run.summary.get("opponent") or "")


def kl_caption(run: RunFiles) -> str:
    """Returns what the figure of win rates over KL shows, and where it differs from the final table."""
    text = "How much each policy won for how far it moved, from step 0 on; KL is that of the responses of the step. "
    text += "All policies that start from the same one meet the same samples of it."
    final = evaluation_of(run)
    measured = {_measurement(section_of(run, stage.name).get("evaluation")) for stage in run.of_role(REWARDED)} - {""}
    if not measured:
        return text
    text += f" Measured while training with one sample a prompt on {' or '.join(sorted(measured))}."
    if not final.get("opponent"):
        return text
    table = _measurement(final)
    samples = f"{final.get('samples', 1)} samples a prompt"
    if measured == {table}:
        return text + f" The final table has {samples} on the same."
    return text + f" The final table has {samples} on {table}, so that the two may differ."


def _measurement(section: Any) -> str:
    """Prompts and judge of an evaluation in words."""
    prompts = section.get("prompts") if isinstance(section, Mapping) else None
    if not isinstance(prompts, Mapping):
        return ""
    count = f"{prompts['limit']:,} prompts" if prompts.get("limit") else "all prompts"
    after = f" after the first {prompts['skip']:,}" if prompts.get("skip") else ""
    return f"{count}{after} of {_source(prompts)}, judged by {called(str(section.get('judge')))}"


def _source(source: Mapping[str, Any]) -> str:
    """A source of records in words; of a mixture, those of its parts."""
    parts = source.get("mix")
    if isinstance(parts, Mapping) and parts:
        return " and ".join(_source(part) for part in parts.values() if isinstance(part, Mapping))
    return source.get("path") or f"{source.get('kind')} ({source.get('split')})"
