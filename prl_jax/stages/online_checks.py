"""Checks of the section of a stage that trains a policy on its own samples, before anything runs."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from prl_jax.config.conform import conform
from prl_jax.config.durations import to_steps
from prl_jax.errors import UserError, naming
from prl_jax.methods import Critic, Method
from prl_jax.optim import make_optimizer
from prl_jax.runs.context import root_of
from prl_jax.stages.kind import Checking, check_lora, check_sampling
from prl_jax.stages.online_section import (
    anchors_stage,
    critic,
    critic_source,
    judges_of,
    method_in,
    reference_every,
    schedule_in,
)
from prl_jax.training.schedule import check_together

# Fields of a decoder that two models of one architecture may differ in.
_FREE = ("dtype", "remat", "attention", "param_dtype", "lora", "unused", "unsampled")
_LEAD = 8  # tokens that introduce the opponent to a critic, at most


def check_method(check: Checking, name: str) -> None:
    """Raises `UserError` for pieces, or a schedule, that cannot work together."""
    section = check.config[name]
    try:
        method, schedule = method_in(section), schedule_in(section)
        check_together(method, schedule)
    except UserError as error:  # it begins with the key
        raise UserError(f"{name}.{error}") from error
    _check_critic(section, name, method)
    rows, unit = section.prompts_per_step * section.group_size, method.surrogate.unit
    if rows % (schedule.minibatches * unit) or schedule.accumulate * unit > rows // schedule.minibatches:
        units = "rows" if unit == 1 else f"units of {unit} rows"
        raise UserError(
            f"{name}: {rows} rows a step (prompts_per_step * group_size) do not divide into {schedule.minibatches} "
            f"minibatches of at least accumulate={schedule.accumulate} {units}"
        )
    _check_judges(check, name, method)


def _check_judges(check: Checking, name: str, method: Method) -> None:
    section, families = check.config[name], ("scalar_judge",) if method.reward.asks == "scores" else ("judge",)
    if "judges" not in section.reward:
        return check.reference(name, "judge", section.judge, families)
    if section.judge:
        raise UserError(f"{name}.judge={section.judge!r}: the reward names its judges in reward.judges; set it to ''")
    if not section.reward.judges:
        raise UserError(f"{name}.reward.judges: empty, expected the names of the judges to ask")
    for judge in section.reward.judges:
        check.reference(name, "reward.judges", judge, families)


def _check_critic(section: ConfigDict, name: str, method: Method) -> None:
    given = section.critic.to_dict()
    if not method.baseline.reads_values:
        if given:
            raise UserError(f"{name}.critic: the baseline {method.baseline.kind!r} has none; set it to {{}}")
        return
    if not given:
        raise UserError(f"{name}.critic: is missing; the baseline {method.baseline.kind!r} has a critic")
    conform(given, critic(), f"{name}.critic.")
    to_steps(section.critic.warmup, key=f"{name}.critic.warmup", total=1)
    to_steps(section.critic.optimizer.warmup, key=f"{name}.critic.optimizer.warmup", total=1)
    with naming(f"{name}.critic.optimizer"):
        make_optimizer(**{k: v for k, v in given["optimizer"].items() if k != "warmup"}, total_steps=1)


def check_start(check: Checking, name: str) -> None:
    """Raises `UserError` where a critic cannot start as the model that it names."""
    section = check.config[name]
    start = section.critic.get("init_from", "policy")
    if start == "policy":
        return
    key = f"{name}.critic.init_from={start!r}"
    if section.lora.rank:
        raise UserError(f"{key}: with adapters the critic stands on the policy's base; set 'policy', or lora.rank=0")
    if start == "judge":
        if not section.judge:
            raise UserError(f"{key}: the reward names several judges; set 'policy', or the stage of an earlier critic")
        names = check.behind(section.judge)
        if len(names) > 1 or not check.makes_model(names[0]) or check.card(names[0]).kind != "scalar_judge":
            raise UserError(f"{key}: the judge {section.judge!r} is no model that scores responses; set 'policy'")
    else:
        before = check.config.stages[: check.config.stages.index(name)]
        fit = [n for n in before if check.config[n].get("critic") and not check.config[n].lora.rank]
        if start not in fit:
            words = ", ".join(map(repr, ("policy", "judge", *fit)))
            raise UserError(f"{key}: expected one of {words}; stages are earlier ones that train a whole critic")
    differing = _differing(check, critic_source(check.config, section), section.policy)
    if differing:
        raise UserError(f"{key}: is of another architecture than {name}.policy={section.policy!r} ({differing})")


def _differing(check: Checking, one: str, other: str) -> str:
    """How the architectures of two models differ; "" where they are the same."""
    roots = [root_of(check.config, name) for name in (one, other)]
    if roots[0] == roots[1]:
        return ""
    if "" in roots:
        return f"one descends from {max(roots)}, the other is made from scratch"
    first, second = (dataclasses.asdict(check.card(root).config) for root in roots)
    return ", ".join(f"{k}: {first[k]} and {second[k]}" for k in first if k not in _FREE and first[k] != second[k])


def check_anchors(check: Checking, name: str) -> None:
    """Raises `UserError` where the opponents' stage makes no anchors, or none for these prompts."""
    section = check.config[name]
    stage = anchors_stage(section)
    if section.opponents.kind in ("anchors", "pool"):
        check.reference(name, "opponents.stage", stage, ("anchors",))
    anchors = check.config[stage] if stage else None
    kept = 0 if anchors is None else 1 if anchors.choice == "reference" else anchors.keep
    try:
        method_in(section).check_opponents(section.group_size, kept)
    except UserError as error:  # it begins with the key
        raise UserError(f"{name}.{error}") from error
    if stage and not _covers(check.config[stage].prompts, section.prompts):
        raise UserError(f"{name}.prompts reads prompts that {stage}.prompts does not; give both the same source")


def check_context(check: Checking, name: str) -> None:
    """Raises `UserError` where a critic that sees an opponent reads more than its model's context."""
    section = check.config[name]
    baseline = method_in(section).baseline
    if isinstance(baseline, Critic) and baseline.sees_opponent:
        card = check.card(section.policy)
        needed = card.max_prompt + 2 * card.max_response + _LEAD
        keys = f"{name}.baseline.sees_opponent, with a prompt of {card.max_prompt} tokens, a response and an opponent "
        check.fits_context(name, needed, f"{keys}of {card.max_response}")


def check_overlong(check: Checking, name: str) -> None:
    """Raises `UserError` where the penalty of long responses begins before the first token."""
    section = check.config[name]
    room = check.card(section.policy).max_response
    if section.overlong and 0 < room < section.overlong[0]:
        given = tuple(section.overlong)
        raise UserError(f"{name}.overlong={given}: the buffer is longer than the room of a response, {room} tokens")


def check_reference(check: Checking, name: str) -> None:
    """Raises `UserError` where the reference follows the policy in two ways, or cannot follow it."""
    section = check.config[name]
    # A part of the stage, however small, is a step at least.
    given = {"reference_every": reference_every(section, name, 100), "reference_ema": section.reference_ema}
    keys = [key for key, value in given.items() if value]
    if len(keys) > 1:
        raise UserError(f"{name}.reference_ema={section.reference_ema} with reference_every: give one of them")
    method = method_in(section)
    if keys and not (method.regulariser.reads_reference or method.opponents.sampler == "mixture"):
        raise UserError(
            f"{name}.{keys[0]}={section[keys[0]]!r}: nothing holds the policy to the reference, which would "
            f"follow it for nothing (regulariser={method.regulariser.kind!r}); leave it out"
        )
    if keys and section.lora.rank:
        raise UserError(
            f"{name}.{keys[0]}={section[keys[0]]!r}: with adapters the reference is the frozen base below them; leave "
            "it out, or set lora.rank=0"
        )


def check_adapters(check: Checking, name: str) -> None:
    """Raises `UserError` for adapters that cannot be made, or whose dropout would move the ratios."""
    section = check.config[name]
    if check_lora(section, name) and section.lora.dropout:
        raise UserError(f"{name}.lora.dropout={section.lora.dropout}: it would move the ratios; set 0")


def check_sampled(check: Checking, name: str) -> None:
    """Raises `UserError` for ways to sample that cannot be, or from whose responses the policy cannot learn."""
    section = check.config[name]
    for key in check_sampling(check, name, section, section.policy).unmatched:
        raise UserError(
            f"{name}.sampling.{key}={section.sampling[key]}: the update's ratios need the distribution that was "
            f"sampled, and training computes none with {key}; leave it out, or set it in {name}.evaluation.sampling"
        )
    check_sampling(check, f"{name}.evaluation", section.evaluation, section.policy)
    if section.sampling.repetition_ngram and method_in(section).baseline.bootstraps:
        raise UserError(
            f"{name}.sampling.repetition_ngram={section.sampling.repetition_ngram}: with baseline.bootstrap_truncated "
            "a response that is ended for its repetitions would earn what might have followed; leave one of them out"
        )


def check_watch(check: Checking, name: str) -> None:
    """Raises `UserError` where the judge that is to be believed is none of the config, gives the reward itself, or is
    a model."""
    section, judges = check.config[name], check.config.judges
    if not section.watch:
        return
    exact = [one for one in judges if not any(map(check.makes_model, check.behind(one)))]
    why = "gives the reward itself, and would always be right" if section.watch in judges_of(section) else ""
    if section.watch not in exact:
        why = "is a model, which may be wrong" if section.watch in judges else "is none of judges"
    if why:
        fit = [repr(one) for one in exact if one not in judges_of(section)]
        expected = ", ".join([*fit, "'' for none"])
        raise UserError(f"{name}.watch={section.watch!r}: {why}; expected one of {expected}")


CHECKS = (
    check_method,
    check_watch,
    check_start,
    check_sampled,
    check_anchors,
    check_context,
    check_overlong,
    check_reference,
    check_adapters,
)


def _covers(whole: ConfigDict, part: ConfigDict) -> bool:
    """Whether every record of one source is surely a record of another."""
    if any(whole[key] != part[key] for key in ("kind", "path", "split")) or whole.skip > part.skip:
        return False
    return not whole.limit or bool(part.limit and part.skip + part.limit <= whole.skip + whole.limit)
