"""Checks of a run by its config alone, before it starts, so that a mistake in the last stage does not show after the
first ones. Checks of the files that a run reads are in checks_of_data.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from prl_jax.config.conform import conform
from prl_jax.config.declare import build, part
from prl_jax.config.durations import to_steps
from prl_jax.config.rules import MIX, names_at, parts_of, value_at, whole_of
from prl_jax.data.gold import make_arguments
from prl_jax.data.gold.arguments import SPLITS
from prl_jax.data.sources import KINDS as SOURCE_KINDS
from prl_jax.errors import UserError, naming
from prl_jax.file_names import DATA_DIR, TOKENIZER_DIR
from prl_jax.models import DecoderConfig
from prl_jax.optim import make_optimizer
from prl_jax.runs.context import OF_STAGE, gold_arguments
from prl_jax.runs.judges import JUDGES
from prl_jax.runs.telemetry import profile_steps
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking
from prl_jax.stages.pairs_section import selection_in

_RESERVED = (DATA_DIR, TOKENIZER_DIR)  # folders of a workdir that belong to no stage
_NAME = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)


def check_config(config: ConfigDict) -> None:
    """Raises `UserError` for a config that cannot run; it names the key."""
    declared = build({}).to_dict()
    for name, value in config.items():
        if name not in declared and not (isinstance(value, ConfigDict) and "kind" in value):
            raise UserError(f"config: {name!r} is neither a declared key nor a stage (a section with a kind)")
    conform({k: v for k, v in config.items() if k in declared}, {**declared, "judges": {}}, "")
    _check_judges(config)
    DecoderConfig.from_dict(config.model.to_dict(), vocab_size=1)
    make_arguments(gold_arguments(config))
    profile_steps(config.profile.steps)
    if config.seed < 0:
        raise UserError(f"seed={config.seed}, expected at least 0")
    for key, limit in config.limits.items():
        if limit < 1:
            raise UserError(f"limits.{key}={limit}, expected at least 1")
    for key, length in config.huggingface.items():
        if key in ("max_prompt", "max_response") and length != 0 and length < 2:
            raise UserError(f"huggingface.{key}={length}, expected at least 2, or 0: as long as the data need")
    if config.skip_invalid < 0:
        raise UserError(f"skip_invalid={config.skip_invalid}, expected at least 0")
    if not config.stages:
        raise UserError("stages: empty, expected the names of the stages to run")
    for index, name in enumerate(config.stages):
        if name in config.stages[:index]:
            raise UserError(f"stages: {name!r} is listed twice")
        if name in declared or name in _RESERVED or not _NAME.fullmatch(name):
            raise UserError(f"stages: {name!r} cannot be the name of a stage; use letters, digits and _")
        if name not in config:
            raise UserError(f"stages: {name!r} has no section in the config")
        if config[name].kind not in KINDS:
            raise UserError(f"{name}.kind={config[name].kind!r}, expected one of {', '.join(KINDS)}")
        _check_section(config, name)


def _check_judges(config: ConfigDict) -> None:
    always = build({}).judges
    for name, section in config.judges.items():
        key = f"judges.{name}"
        if name in config.stages or not _NAME.fullmatch(name):
            raise UserError(f"{key}: a judge has a name of its own, of letters, digits and _; this one cannot be used")
        kind = JUDGES.get(section.get("kind", "")) if isinstance(section, ConfigDict) else None
        if kind is None:
            raise UserError(f"{key}: is no judge; make it with c.judge(kind, ...), of kind {' or '.join(JUDGES)}")
        if name in always and section.kind != always[name].kind:
            raise UserError(
                f"{key}.kind={section.kind!r}, expected {always[name].kind!r}, as every config has it; rename this one"
            )
        conform(dict(section.items()), kind.declare(), f"{key}.")
        try:
            kind.check(section)
        except UserError as error:  # it begins with the key
            raise UserError(f"{key}.{error}") from error
        if (behind := kind.model(section)) in config.judges:
            raise UserError(f"{key}.model={behind!r}: is one of judges, expected a stage or a model directory")
        for source in kind.sources:
            _check_source(section[source], f"{key}.{source}", SOURCE_KINDS)
    for name in config.judges:
        _check_members(config, (name,))


def _check_members(config: ConfigDict, path: tuple[str, ...]) -> None:
    """Raises `UserError` where a judge asks one that asks it; `path` leads from a judge to one that it asks."""
    section = config.judges.get(path[-1], None)
    if section is None or not (key := JUDGES[section.kind].members):
        return
    for member in names_at(section, key):
        if member in path:
            raise UserError(f"judges.{path[-1]}.{key}: {member!r} asks itself: {' -> '.join((*path, member))}")
        _check_members(config, (*path, member))


def _check_section(config: ConfigDict, name: str) -> None:
    section, kind, check = config[name], KINDS[config[name].kind], Checking(config, KINDS)
    rules = kind.rules
    conform(dict(section.items()), {**kind.declare(), **dict.fromkeys(rules.unions, {})}, f"{name}.")
    unused = rules.unused(section)
    for key, words in rules.choices.items():
        if value_at(section, key) not in words:
            raise UserError(f"{name}.{key}={value_at(section, key)!r}, expected one of {', '.join(map(repr, words))}")
    for key, least in rules.at_least.items():
        value, open_ = value_at(section, key), key in rules.from_data
        if not (value >= least or (open_ and value == 0)):
            more = ", or 0: as long as the data need" if open_ else ""
            raise UserError(f"{name}.{key}={value!r}, expected at least {least}{more}")
    for key, families in rules.stages.items():
        if key not in unused:
            check.reference(name, key, value_at(section, key), families)
    for key in rules.lengths:
        to_steps(value_at(section, key), key=f"{name}.{key}", batch_size=1, examples=1)
    for key in rules.durations:
        to_steps(value_at(section, key), key=f"{name}.{key}", total=1)
    for key in rules.optimizers:
        values = {k: v for k, v in value_at(section, key).items() if k != "warmup"}
        with naming(f"{name}.{key}"):
            make_optimizer(**values, total_steps=1)
    for key in rules.sources:
        _check_source(value_at(section, key), f"{name}.{key}", (*SOURCE_KINDS, OF_STAGE, MIX))
        for one in parts_of(section, key):
            source = value_at(section, one)
            if one != key:
                conform(dict(source.items()), part(), f"{name}.{one}.")
                _check_source(source, f"{name}.{one}", (*SOURCE_KINDS, OF_STAGE))
                if source.weight <= 0:
                    raise UserError(f"{name}.{one}.weight={source.weight}, expected a number above 0")
            if source.kind == OF_STAGE:
                _check_made(check, name, one, source)
    if rules.evaluates and section.result == "best":
        key = rules.evaluates
        if not to_steps(value_at(section, key), key=f"{name}.{key}", total=1):
            raise UserError(f"{name}.result='best': nothing is evaluated ({name}.{key}={value_at(section, key)!r})")
    for further in kind.checks:
        further(check, name)


def _check_made(check: Checking, name: str, key: str, source: ConfigDict) -> None:
    """Raises `UserError` for a source that an earlier stage makes, where it makes no such records."""
    check.reference(name, f"{key}.path", source.path, ("pairs",))
    what, output = check.kind(name).rules.sources[whole_of(key)], selection_in(check.config[source.path]).output
    if what == "prompt":
        raise UserError(f"{name}.{key}.kind={source.kind!r}: prompts come from a source of their own, not from pairs")
    if what == "preference" and output != "pairs":
        raise UserError(
            f"{name}.{key}.path={source.path!r} makes {output} (select={check.config[source.path].select.kind!r}), and "
            f"{name} learns from pairs; take another selection"
        )


def _check_source(source: ConfigDict, key: str, kinds: Sequence[str]) -> None:
    """Raises `UserError` for the section of a source, at a dotted key, that names no records."""
    if source.kind not in kinds:
        raise UserError(f"{key}.kind={source.kind!r}, expected one of {', '.join(kinds)}")
    if source.limit < 0 or source.skip < 0:
        raise UserError(f"{key}: limit={source.limit}, skip={source.skip}, expected at least 0")
    if source.kind == "gold" and source.split not in SPLITS:
        raise UserError(f"{key}.split={source.split!r}, expected one of {', '.join(SPLITS)}")
    if source.kind == "gold" and source.path:
        raise UserError(
            f"{key}.path={source.path!r} is not read, since kind is 'gold', the built-in tasks; set {key}.kind to "
            "'jsonl' or 'tfds' as well"
        )
    parts = source.get(MIX, {})
    if (source.kind == MIX) != bool(parts):
        raise UserError(
            f"{key}: kind={source.kind!r} with {len(parts)} parts in {key}.mix; a mix has some, another kind none"
        )
    unread = {k: v for k, v in source.items() if k not in ("kind", MIX) and v != part()[k]}
    if source.kind == MIX and unread:
        written = ", ".join(f"{k}={v!r}" for k, v in unread.items())
        raise UserError(f"{key}: {written}: nothing reads that of a mix; each part has its own")
    for name in parts:
        if not isinstance(parts[name], ConfigDict):
            raise UserError(f"{key}.mix.{name}={parts[name]!r}: expected a section; make it with c.part(weight, ...)")
