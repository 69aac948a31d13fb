"""Reads what a run left in its workdir. Files that are not there (yet) are noted, not fatal."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError
from prl_jax.file_names import CONFIG_FILE, METRICS_FILE, RESULT_FILE, SAMPLES_FILE, SUMMARY_FILE, WINS_FILE
from prl_jax.files import local_path, parse_json
from prl_jax.metrics import read_metrics, read_result

# What a report has to say of a stage follows from the family of its result and from what it measured, in the order of a
# pipeline: a policy is trained on demonstrations, on pairs or on rewards.
ROLES = ("supervised", "judge", "anchors", "paired", "rewarded", "evaluation")
SUPERVISED, JUDGE, ANCHORS, PAIRED, REWARDED, EVALUATION = ROLES
# Kinds of stages of workdirs from before `result.json` said the family.
_FAMILIES = {"bradley_terry": JUDGE, "generative": JUDGE, "reward_model": JUDGE, "sft": "policy", "ppo": "policy"}
# Controls except newline and tab; what turns or hides text around it; halves of surrogate pairs.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """One stage directory.

    Attributes:
      name: of the stage.
      role: one of `ROLES`, another family of a result, or "" where it cannot be told.
      metrics, samples: rows of these files.
      result: of a finished stage.
      kind: as the config has it, for the reader; "" where nothing tells.
    """

    name: str
    role: str
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """One workdir. `missing` names, for the reader, what was not found."""

    path: Path
    label: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    stages: Sequence[StageFiles]
    missing: Sequence[str]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved config."""
        inner = self.config.get("config")
        return inner if isinstance(inner, Mapping) else self.config

    def of_role(self, role: str) -> list[StageFiles]:
        """The stages with a role, in their order."""
        return [stage for stage in self.stages if stage.role == role]


def read_runs(workdirs: Sequence[Path]) -> list[RunFiles]:
    """Reads workdirs; labels are their folder names, or their paths where names repeat."""
    names = [path.resolve().name for path in workdirs]
    return [
        read_run(path, label=name if names.count(name) == 1 else str(path))
        for path, name in zip(workdirs, names, strict=True)
    ]


def read_run(path: Path, *, label: str) -> RunFiles:
    """Reads one workdir.

    Errors: `UserError` for a path that is no workdir, and for a malformed file.
    """
    if not local_path(path).is_dir():
        raise UserError(f"{path}: no such workdir; expected a directory that `prl run` has written")
    config = _in_words_of_today(_read_object(path / CONFIG_FILE))
    summary = _in_words_of_today(_read_object(path / SUMMARY_FILE))
    stages = [_read_stage(folder) for folder in sorted(path.iterdir()) if _is_stage(folder)]
    if not (config or summary or stages):
        raise UserError(
            f"{path}: holds no {CONFIG_FILE}, {SUMMARY_FILE} or stage directory; expected a workdir of `prl run`"
        )
    order = _stage_order(config)
    stages.sort(key=lambda stage: (order.get(stage.name, len(order)), _rank(stage.role), stage.name))
    missing = [f"{name} is missing" for name in (CONFIG_FILE, SUMMARY_FILE) if not (path / name).exists()]
    for stage in stages:
        if not stage.result:
            missing.append(f"{stage.name}/{RESULT_FILE} is missing: the stage is not finished")
        if stage.role in (SUPERVISED, JUDGE, PAIRED, REWARDED) and not stage.metrics:
            missing.append(f"{stage.name}/{METRICS_FILE} is missing or empty")
        if stage.role == EVALUATION and stage.result and summary.get("arms"):
            missing += _faults_of_wins(path / stage.name / WINS_FILE, summary)
    if not stages:
        missing.append("no stage directory was found")
    return RunFiles(path, visible(label), config, summary, stages, [visible(line) for line in missing])


def _in_words_of_today(value: Any) -> Any:
    """A config, a summary or rows of metrics in the words of today: older workdirs called the policy that arms are
    compared with `baseline`. A policy's own section keeps that word for the piece of its method."""
    if isinstance(value, list):
        return [_in_words_of_today(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    words = {"is_baseline": "is_opponent", "win_rate_anchor": "win_rate_anchors"}
    words |= {"baseline": "opponent"} if "arms" in value else {}
    return {words.get(key, key): _in_words_of_today(item) for key, item in value.items()}


def _faults_of_wins(path: Path, summary: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the file that keeps every win of an evaluation. The report's figures are those of
    `summary.json`, which were made from it."""
    name = f"{path.parent.name}/{path.name}"
    consequence = "the wins behind the table, prompt by prompt, are lost"
    if not path.is_file():
        return [f"{name} is missing: {consequence}"]
    try:
        rows, expected = _read_rows(path, whole=True), number(summary, "prompts")
    except UserError as error:
        return [f"{name} is damaged ({error}): {consequence}"]
    if not all(isinstance(row.get("wins"), Mapping) for row in rows):
        return [f"{name} is damaged (expected the wins of a prompt in each line): {consequence}"]
    if expected is not None and len(rows) != expected:
        return [f"{name} has {len(rows)} of {expected:.0f} prompts: {consequence} in part"]
    return []


def visible(text: str) -> str:
    """The text with harmful characters made visible.

    Newlines and tabs stay. Other control characters become their pictures (U+2400 and on), lone surrogates U+FFFD,
    characters that hide or reorder text a notation such as `<U+202E>`.
    """

    def picture(match: re.Match[str]) -> str:
        code = ord(match.group())
        if code < 0x20:
            return chr(0x2400 + code)
        if 0xD800 <= code <= 0xDFFF:
            return "\ufffd"
        return "\u2421" if code == 0x7F else f"<U+{code:04X}>"

    return _HARMFUL.sub(picture, text)


def clean(value: Any) -> Any:
    """A JSON value with every string in it, keys included, made `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a row, None where there is none."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def _is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (METRICS_FILE, SAMPLES_FILE, RESULT_FILE))


def _read_stage(folder: Path) -> StageFiles:
    result = clean(read_result(folder / RESULT_FILE)) if (folder / RESULT_FILE).exists() else {}
    # Not cleaned: the report shows numbers of names that it knows, never a name from here.
    metrics = _in_words_of_today(read_metrics(folder / METRICS_FILE)) if (folder / METRICS_FILE).exists() else []
    samples, kind = _read_rows(folder / SAMPLES_FILE), str(result.get("kind", ""))
    family = str(result.get("family", "")) or _FAMILIES.get(kind, kind)
    reported = result.get("metrics")
    measured = {name for row in (*metrics, *samples, reported if isinstance(reported, Mapping) else {}) for name in row}
    return StageFiles(visible(folder.name), _role(family, measured), metrics, samples, result, kind)


def _role(family: str, measured: Collection[str]) -> str:
    """The role of a stage. One that has not finished has no family: what it measures tells."""
    if family not in ("", "policy"):
        return family
    if "clip_fraction" in measured or "reward" in measured:
        return REWARDED
    if "chosen_ratio" in measured:
        return PAIRED
    if family:
        return SUPERVISED
    if "margin" in measured or "order_consistency" in measured:
        return JUDGE
    return SUPERVISED if "loss" in measured else ""


def _rank(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _stage_order(config: Mapping[str, Any]) -> dict[str, int]:
    """Stage name -> position in the config's list `stages`, where it has one."""
    inner = config.get("config")
    listed = (inner if isinstance(inner, Mapping) else config).get("stages")
    if not isinstance(listed, list | dict):
        return {}
    names = [item.get("name", "") if isinstance(item, Mapping) else item for item in listed]
    return {str(name): position for position, name in enumerate(names)}


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = _parse(path.read_bytes(), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; run `prl run` again or remove the file")
    return clean(value)


def _read_rows(path: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a half-written last line is left out, or an error where the file has to be `whole`."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(line, f"{path}:{index}"))
        except UserError:
            if whole or index < len(lines):
                raise
    return [clean(row) for row in rows if isinstance(row, dict)]


def _parse(data: bytes, where: str) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise UserError(f"{where}: malformed JSON ({visible(str(error))}); remove it or run `prl run` again") from error
