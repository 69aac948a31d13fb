"""Checks of the section of a stage that trains a policy on its own samples, before anything runs."""

from __future__ import annotations

from ml_collections import ConfigDict

from prl_jax.config.conform import conform
from prl_jax.config.durations import to_steps
from prl_jax.errors import UserError, naming
from prl_jax.methods import Critic, Method
from prl_jax.optim import make_optimizer
from prl_jax.stages.kind import Checking, check_lora, check_sampling
from prl_jax.stages.online_section import anchors_stage, critic, method_in, reference_every, schedule_in
from prl_jax.training.schedule import check_together

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
    if method.reward.asks == "scores":
        check.reference(name, "judge", section.judge, ("scalar_judge",))


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


def check_anchors(check: Checking, name: str) -> None:
    """Raises `UserError` where the opponents' stage makes no anchors, or none for these prompts."""
    section = check.config[name]
    stage = anchors_stage(section)
    if section.opponents.kind in ("anchors", "pool"):
        check.reference(name, "opponents.stage", stage, ("anchors",))
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


CHECKS = (
    check_method,
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
