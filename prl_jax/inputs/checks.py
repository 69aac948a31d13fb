"""What a config alone tells of a run before it starts, so that a mistake in the last stage does not show after the
first ones. What the files that a run reads tell is in inputs.py."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import build
from prl_jax.config.durations import to_steps
from prl_jax.config.rules import CARDS, GOLD, JUDGES, NONE, POLICIES, RULES, value_at
from prl_jax.data.gold import make_arguments
from prl_jax.data.gold.arguments import SPLITS
from prl_jax.data.sources import KINDS as SOURCE_KINDS
from prl_jax.errors import UserError, naming
from prl_jax.inputs.contexts import check_context, check_directory
from prl_jax.models import DecoderConfig
from prl_jax.optim import make_optimizer
from prl_jax.runs.context import gold_arguments, is_directory, lora_config
from prl_jax.runs.telemetry import profile_steps
from prl_jax.sampling import SamplingConfig
from prl_jax.stages.arms import arm_rows
from prl_jax.training.ppo import PPOConfig

_RESERVED = ("data", "tokenizer")  # folders of a workdir that belong to no stage
_NAME = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)
_TYPES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    tuple: "a list",
    dict: "a section",
}


def check_config(config: ConfigDict) -> None:
    """Raises `UserError` for a config that cannot run; it names the key."""
    declared = build({}).to_dict()
    for name, value in config.items():
        if name not in declared and not (isinstance(value, ConfigDict) and "kind" in value):
            raise UserError(f"config: {name!r} is neither a declared key nor a stage (a section with a kind)")
    _conform({k: v for k, v in config.items() if k in declared}, declared, "")
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
        if config[name].kind not in RULES:
            raise UserError(f"{name}.kind={config[name].kind!r}, expected one of {', '.join(RULES)}")
        _check_section(config, name)


def _conform(given: Mapping[str, Any], declared: Mapping[str, Any], prefix: str) -> None:
    """The same keys as declared, with values of the same types."""
    for name in (*declared, *given):
        key = f"{prefix}{name}"
        if name not in declared:
            raise UserError(f"{key}: no such key; known: {', '.join(declared)}")
        if name not in given:
            raise UserError(f"{key}: is missing; make the section with prl_jax.stages.config, which has every key")
        value, default = given[name], declared[name]
        kind = dict if isinstance(default, Mapping) else type(default)
        accepted = {dict: (Mapping, ConfigDict), tuple: (tuple, list), float: (float, int)}.get(kind, (kind,))
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{key}={value!r}: expected {_TYPES[kind]}, such as {default!r}")
        if kind is float and not abs(value) < math.inf:
            raise UserError(f"{key}={value!r}: expected a finite number, such as {default!r}")
        if kind is dict and default:
            _conform(dict(value.items()), default, f"{key}.")


def _check_section(config: ConfigDict, name: str) -> None:
    section, rules = config[name], RULES[config[name].kind]
    _conform(dict(section.items()), rules.declared(), f"{name}.")
    unused = rules.unused(section)
    for key, words in rules.choices.items():
        if value_at(section, key) not in words:
            raise UserError(f"{name}.{key}={value_at(section, key)!r}, expected one of {', '.join(map(repr, words))}")
    for key, least in rules.at_least.items():
        value, open_ = value_at(section, key), key in rules.from_data
        if not (value >= least or (open_ and value == 0)):
            more = ", or 0: as long as the data need" if open_ else ""
            raise UserError(f"{name}.{key}={value!r}, expected at least {least}{more}")
    for key, kinds in rules.stages.items():
        if key not in unused:
            _check_reference(config, name, key, value_at(section, key), kinds)
    for key in rules.lengths:
        to_steps(value_at(section, key), key=f"{name}.{key}", batch_size=1, examples=1)
    for key in rules.durations:
        to_steps(value_at(section, key), key=f"{name}.{key}", total=1)
    for key in rules.optimizers:
        values = {k: v for k, v in value_at(section, key).items() if k != "warmup"}
        with naming(f"{name}.{key}"):
            make_optimizer(**values, total_steps=1)
    for key in rules.sources:
        source = value_at(section, key)
        if source.kind not in SOURCE_KINDS:
            raise UserError(f"{name}.{key}.kind={source.kind!r}, expected one of {', '.join(SOURCE_KINDS)}")
        if source.limit < 0 or source.skip < 0:
            raise UserError(f"{name}.{key}: limit={source.limit}, skip={source.skip}, expected at least 0")
        if source.kind == "gold" and source.split not in SPLITS:
            raise UserError(f"{name}.{key}.split={source.split!r}, expected one of {', '.join(SPLITS)}")
        if source.kind == "gold" and source.path:
            raise UserError(
                f"{name}.{key}.path={source.path!r} is not read, since kind is 'gold', the built-in tasks; set "
                f"{name}.{key}.kind to 'jsonl' or 'tfds' as well"
            )
    for check in _FURTHER.get(section.kind, ()):
        check(config, name)


def _check_reference(config: ConfigDict, name: str, key: str, value: str, kinds: Sequence[str]) -> None:
    """`value` names a stage of one of the kinds that runs before stage `name`, or what stands for one."""
    if (value == "" and NONE in kinds) or (value == GOLD and GOLD in kinds):
        return
    if is_directory(value):
        card = check_directory(config, f"{name}.{key}", value)
        if not any(CARDS.get(kind) == card.kind for kind in kinds):
            raise UserError(f"{name}.{key}={value!r} holds a {card.kind}, expected the model of a {' or '.join(kinds)}")
        return
    before = config.stages[: config.stages.index(name)]
    fit = [n for n in before if config[n].kind in kinds] + [repr(w) for w in (GOLD,) if w in kinds]
    fit += ["'' for none"] if NONE in kinds else []
    expected = (
        f"expected one of: {', '.join(fit)}" if fit else f"no stage before {name} is of kind {' or '.join(kinds)}"
    )
    if value not in config.stages:
        raise UserError(f"{name}.{key}={value!r} is not among the stages; {expected}")
    if value not in before:
        raise UserError(f"{name}.{key}={value!r} does not run before {name}; change the order of stages, or {expected}")
    if config[value].kind not in kinds:
        raise UserError(f"{name}.{key}={value!r} is a {config[value].kind} stage; {expected}")


def _check_lora(config: ConfigDict, name: str) -> None:
    section = config[name]
    if section.lora.rank < 0:
        raise UserError(f"{name}.lora.rank={section.lora.rank}, expected at least 0 (0 trains the whole model)")
    if section.lora.rank:
        with naming(name):
            lora_config(section)
        if section.kind == "ppo" and section.lora.dropout:
            raise UserError(
                f"{name}.lora.dropout={section.lora.dropout}: PPO has none, it would move the ratios; set 0"
            )
        if section.kind != "ppo" and not section.init_from:
            raise UserError(f"{name}.lora: adapters need a model to adapt; name one in {name}.init_from")


def _check_accumulation(config: ConfigDict, name: str) -> None:
    section = config[name]
    if section.accumulate > section.batch_size:
        raise UserError(f"{name}.accumulate={section.accumulate}, expected at most batch_size={section.batch_size}")


def _check_result(config: ConfigDict, name: str) -> None:
    section, key = config[name], "evaluation.every" if config[name].kind == "ppo" else "evaluate_every"
    if section.result == "best" and not to_steps(value_at(section, key), key=f"{name}.{key}", total=1):
        raise UserError(f"{name}.result='best': nothing is evaluated ({name}.{key}={value_at(section, key)!r})")


def _check_temperature(config: ConfigDict, name: str) -> None:
    with naming(name):
        SamplingConfig(1, (0,), 0, temperature=config[name].temperature)


def _check_anchors(config: ConfigDict, name: str) -> None:
    section = config[name]
    if section.choice == "best_of_n" and section.keep > section.samples:
        raise UserError(f"{name}.keep={section.keep}, expected at most samples={section.samples}")


def _check_ppo(config: ConfigDict, name: str) -> None:
    section = config[name]
    with naming(f"{name}.algorithm"):
        algorithm = PPOConfig(**section.algorithm.to_dict(), temperature=section.temperature)
    if not (algorithm.dual == 0 or algorithm.dual > 1):
        raise UserError(f"{name}.algorithm.dual={algorithm.dual}, expected 0 (none) or a number above 1")
    sampling = SamplingConfig(1, (0,), 0, temperature=section.temperature, top_k=section.top_k, top_p=section.top_p)
    if sampling.truncates:
        raise UserError(
            f"{name}: top_k={section.top_k}, top_p={section.top_p}: PPO's ratio needs the log-probs of the "
            "distribution that was sampled; set top_k=0 and top_p=1"
        )
    rows = section.prompts_per_step * section.group_size
    if rows % algorithm.minibatches or algorithm.accumulate > rows // algorithm.minibatches:
        raise UserError(
            f"{name}: {rows} rows a step (prompts_per_step * group_size) do not divide into "
            f"{algorithm.minibatches} minibatches of at least accumulate={algorithm.accumulate} rows"
        )
    if section.reward == "score":
        _check_reference(config, name, "judge", section.judge, ("bradley_terry",))
    elif section.opponents in ("peer", "group") and (
        section.group_size < 2 or (section.opponents == "peer" and section.group_size % 2)
    ):
        raise UserError(
            f"{name}.group_size={section.group_size}: opponents={section.opponents!r} needs at least 2 samples a "
            "prompt, and peers an even number"
        )
    meets_anchors = section.reward == "pairwise" and section.opponents in ("anchor", "pool")
    needs_anchor = section.critic_sees_anchor or meets_anchors
    if needs_anchor and not section.anchors:
        raise UserError(f"{name}: needs anchors; name the anchors stage in {name}.anchors")
    if section.anchors and not _covers(config[section.anchors].prompts, section.prompts):
        raise UserError(
            f"{name}.prompts reads prompts that {section.anchors}.prompts does not; give both the same source"
        )


def _covers(whole: ConfigDict, part: ConfigDict) -> bool:
    """Whether every record of one source is surely a record of another."""
    if any(whole[key] != part[key] for key in ("kind", "path", "split")) or whole.skip > part.skip:
        return False
    return not whole.limit or bool(part.limit and part.skip + part.limit <= whole.skip + whole.limit)


def _check_evaluation(config: ConfigDict, name: str) -> None:
    section = config[name]
    for judge in section.judges:
        _check_reference(config, name, "judges", judge, JUDGES)
    for stage, arm in section.arms.items():
        _check_reference(config, name, "arms", stage, POLICIES)
        _conform(dict(arm.items()), {"title": "", "judge": ""}, f"{name}.arms.{stage}.")
        if arm.judge not in ("", GOLD, *section.judges):
            raise UserError(f"{name}.arms.{stage}.judge={arm.judge!r}, expected one of {name}.judges, 'gold' or ''")
    if section.arms and not section.baseline:
        raise UserError(f"{name}.baseline: empty, expected the policy that the arms are compared with")
    if section.baseline:
        rows = arm_rows(section)
        for i, (title, stage, *_) in enumerate(rows):
            if title in [row[0] for row in rows[:i]]:
                raise UserError(f"{name}.arms.{stage}.title: another row is called {title!r} too; choose another title")


_FURTHER: Mapping[str, Sequence[Callable[[ConfigDict, str], None]]] = {
    "sft": (check_context, _check_accumulation, _check_lora, _check_result),
    "bradley_terry": (check_context, _check_accumulation, _check_lora, _check_result),
    "generative": (check_context, _check_accumulation, _check_lora, _check_result),
    "anchors": (_check_temperature, _check_anchors),
    "ppo": (_check_ppo, check_context, _check_lora, _check_result),
    "evaluation": (_check_temperature, _check_evaluation),
}
