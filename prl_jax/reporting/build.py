"""Puts the report together: a page, its text in Markdown and PNG figures, from the files of workdirs alone."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from prl_jax.errors import UserError
from prl_jax.file_names import REPORT_FILE, REPORT_TEXT_FILE
from prl_jax.files import leaves, write_text
from prl_jax.reporting import tables
from prl_jax.reporting.caveats import caveats
from prl_jax.reporting.figures import write_figures
from prl_jax.reporting.headline import headline
from prl_jax.reporting.inputs import EVALUATION, REWARDED, RunFiles, number, read_runs
from prl_jax.reporting.names import arm_name, kl_caption, opponent_of
from prl_jax.reporting.pooling import obstacles
from prl_jax.reporting.watching import watched_table

_SAMPLES = 20
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def build_report(workdirs: Sequence[Path]) -> Path:
    """Writes the report of one run, or of several runs of one experiment, into the first workdir.

    Args:
      workdirs: of `prl run`. Details come from the first; the final table compares all.

    Returns:
      The path of the page, which needs no other file; the same in Markdown and the PNG figures stand beside it.

    Errors: `UserError` when a workdir is none, one of its files is malformed, or the report cannot be written.
    """
    if not workdirs:
        raise UserError("a report needs at least one workdir")
    runs = read_runs(workdirs)
    directory = runs[0].path
    page = directory / REPORT_FILE
    try:
        figures = write_figures(runs, directory, pooled=not obstacles(runs))
        context = {**_context(runs), "figures": figures_of(figures)}
        pages = environment()
        for name in (REPORT_TEXT_FILE, REPORT_FILE):
            write_text(directory / name, pages.get_template(f"{name}.jinja").render(context))
    except OSError as error:
        raise UserError(f"{page}: cannot write the report ({error.strerror}); make room and try again") from error
    return page


def environment() -> jinja2.Environment:
    """The templates of pages."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("prl_jax", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["md"] = _markdown
    pages.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return pages


def _context(runs: Sequence[RunFiles]) -> dict[str, Any]:
    first, pooled = runs[0], not obstacles(runs)
    sentences = headline(runs)
    config = first.config.get("config")
    return {
        "title": str(first.summary.get("title") or f"Report of {first.label}"),
        "labels": [run.label for run in runs],
        "headline": sentences[0],
        "further": sentences[1:],
        "caveats": caveats(runs),
        "arms": tables.arms_table(first.summary),
        "combined": tables.combined_table(runs, pooled=pooled) if len(runs) > 1 else None,
        "pooled": pooled,
        "paired": tables.paired_table(runs, pooled=pooled),
        "opponent": opponent_of(first) or "the opponent",
        "kl_caption": kl_caption(first),
        "policies": bool(first.of_role(REWARDED) or tables.arms_of(first.summary)),
        "attributes": tables.attributes_table(first.summary),
        "judges": tables.judges_table(first.summary),
        "position": tables.position_table(first),
        "watched": watched_table(first),
        "stages": tables.stages_table(first),
        "learning": [(_curve_of(first, stage.name), f"learning_{stage.name}") for stage in first.stages],
        "truth": [(_curve_of(first, stage.name), f"truth_{stage.name}") for stage in first.stages],
        "samples": _samples(first),
        "environment": _lines({key: value for key, value in first.config.items() if key != "config"} if config else {}),
        "config": config if config else first.config,
    }


def figures_of(paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Figure name -> file name and data URI, so that the page shows it without the file."""
    return {
        name: {"file": path.name, "uri": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()}
        for name, path in paths.items()
    }


def _curve_of(run: RunFiles, stage: str) -> str:
    """Returns the name of a learning curve: the policy's one name, and the stage where its files are."""
    name = arm_name(run, stage)
    return stage if name == stage else f"{name} (stage {stage})"


def _samples(run: RunFiles) -> dict[str, Any]:
    """Responses side by side: of the evaluation where there is one, else the last ones of each policy stage."""
    for stage in run.of_role(EVALUATION):
        rows = [row for row in stage.samples if isinstance(row.get("responses"), Mapping)][:_SAMPLES]
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row["responses"]))
            return {"names": ["anchor", *names], "rows": [_side_by_side(row, names) for row in rows]}
    by_prompt: dict[str, dict[str, Any]] = {}
    stages = run.of_role(REWARDED)
    for stage in stages:
        for row in stage.samples[-_SAMPLES:]:
            entry = by_prompt.setdefault(str(row.get("prompt")), {"anchor": row.get("anchor"), "responses": {}})
            entry["responses"][arm_name(run, stage.name)] = row.get("response")
    names = [arm_name(run, stage.name) for stage in stages]
    rows = [_side_by_side({"prompt": prompt, **row}, names) for prompt, row in list(by_prompt.items())[:_SAMPLES]]
    return {"names": ["anchor", *names], "rows": rows}


def _side_by_side(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    utilities = row.get("utilities")
    utilities = utilities if isinstance(utilities, Mapping) else {}
    cells = [{"text": _text(row.get("anchor")), "utility": None}]
    for name in names:
        cells.append({"text": _text(row["responses"].get(name)), "utility": number(utilities, name)})
    return {"prompt": _text(row.get("prompt")), "cells": cells}


def _text(value: Any) -> str:
    return tables.DASH if value is None else str(value)


def _lines(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested mappings as lines `a.b -> text`."""
    return [(key, ", ".join(map(str, x)) if isinstance(x, list) else str(x)) for key, x in leaves(value)]


def _markdown(text: str) -> Markup:
    """Text inside a Markdown line or table cell: nothing in it is markup, line breaks become `<br>`."""
    escaped = escape(_MARKDOWN_SPECIAL.sub(r"\\\1", text))
    return Markup("<br>").join(escaped.split("\n"))
