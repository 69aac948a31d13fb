"""The section of a stage that trains a policy on its own samples, and its checks before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.conform import conform
from prl_jax.config.declare import filled, lora, optimizer, sampling, source
from prl_jax.config.durations import to_steps
from prl_jax.config.rules import RESULTS, Rules
from prl_jax.errors import UserError, naming
from prl_jax.methods import METHODS, SLOTS, Critic, Method, method_of, piece_of, section_of
from prl_jax.optim import make_optimizer
from prl_jax.sampling import WHOLE, Support
from prl_jax.stages.kind import Checking, Reads, check_lora, check_sampling
from prl_jax.training.schedule import Schedule, check_together

_LEAD = 8  # tokens that introduce the opponent to a critic, at most


def critic(**values: Any) -> dict[str, Any]:
    """Returns the section of a critic, for methods that have one."""
    defaults = dict(
        optimizer=optimizer(learning_rate=1e-3, schedule="constant", warmup="0 steps"),
        warmup="5 steps",  # in which it learns alone, and the policy stays what it is
    )
    return filled(defaults, values, "critic")


def declare(method: str = "pairwise_rl", **values: Any) -> dict[str, Any]:
    """Returns the section of a stage that trains a policy on its own samples.

    Args:
      method: a row of `prl_jax.methods.METHODS`, whose pieces and number of responses to a prompt are the defaults.
      values: what is to be otherwise. A piece is a section: with another `kind` than that of the method it replaces the
        piece, without one it changes the fields that it names.

    Raises:
      UserError: there is no such method, key, piece or field.
    """
    if method not in METHODS:
        raise UserError(f"method={method!r}, expected one of {', '.join(METHODS)}")
    preset = METHODS[method]
    pieces = {slot: _piece(slot, getattr(preset.method, slot), values.pop(slot, {})) for slot in SLOTS}
    has_critic = piece_of("baseline", pieces["baseline"]).reads_values
    given = dict(values.pop("critic", {}))
    if given and not has_critic:
        raise UserError(f"critic: the baseline {pieces['baseline']['kind']!r} has none; leave the section out")
    defaults = dict(
        kind="online",
        policy="sft",  # where policy and critic start, and the reference of the divergence
        judge="genrm",  # a stage, a model directory, or one of `judges`
        judge_batch_size=256,  # rows that a judge reads at once
        prompts=source(),
        prompts_per_step=256,
        group_size=preset.group_size,  # responses to a prompt
        duration="60 steps",
        temperature=1.0,  # of sampling
        sampling=sampling(),  # what cuts or bends the distribution is refused: ratios need the one that was sampled
        epochs=2,  # passes over the responses of a step
        minibatches=2,  # parts of a pass, each of them an update
        accumulate=1,  # microbatches of an update
        missing_eos_penalty=0.0,  # subtracted from the reward of a response that ran out of room
        mask_truncated=False,  # whether such responses are left out of what trains the policy
        stop_kl=0.0,  # nats a token from the policy that sampled: beyond it the rest of a step is left out; 0: never
        skip_updates=0,  # updates that may be left out for a gradient that is not finite or spikes; with more it ends
        spike=0.0,  # a gradient spikes where its norm is above so many times the running mean; 0: never
        overlong=(),  # (buffer, penalty): what a response pays that takes so many of its last tokens of room
        length_weight=0.0,  # of a reward for being shorter than the other responses to the prompt
        flat_groups="keep",  # responses to a prompt that all earn the same: "keep" them, "drop" or "redraw" them
        redraws=1,  # how often such responses are sampled again, at most; those that remain flat are dropped
        reference_every="0 steps",  # after so many steps the reference becomes what the policy is, again and again
        reference_ema=0.0,  # or the share of the way to the policy that it goes in each step; with neither it stays
        # Pieces of the method (`prl_jax.methods`): each has a kind, and the fields of that kind.
        **pieces,
        critic=critic(**given) if has_critic else {},
        lora=lora(),  # policy and critic have adapters of their own on one frozen decoder, which is the reference too
        optimizer=optimizer(learning_rate=5e-4, schedule="constant", warmup="0 steps"),
        # One sample a prompt against one of `policy`, which is the same for every arm and step; batch_size: rows that
        # are sampled at once.
        evaluation=dict(
            every="20%",
            prompts=source(split="validation", limit=256),
            judge="gold",
            temperature=1.0,
            sampling=sampling(),
            batch_size=256,
        ),
        log_every="1 steps",
        save_every="20%",
        result="last",  # the parameters of the last step, or of that with the "best" evaluation: the largest win rate
    )
    return filled(defaults, values, "online")


def _piece(slot: str, piece: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a piece of a method, changed by what is given."""
    same = given.get("kind", piece.kind) == piece.kind
    return section_of(piece_of(slot, {**section_of(piece), **given} if same else given))


RULES = Rules(
    stages={"policy": ("policy",), "judge": ("judge",), "evaluation.judge": ("judge",)},
    sources={"prompts": "prompt", "evaluation.prompts": "prompt"},
    choices={"result": RESULTS},
    lengths=("duration",),
    durations=("optimizer.warmup", "evaluation.every", "log_every", "save_every", "reference_every"),
    optimizers=("optimizer",),
    at_least={
        "judge_batch_size": 1,
        "prompts_per_step": 1,
        "evaluation.batch_size": 1,
        "evaluation.temperature": 0,
    },
    models=("policy", "judge", "evaluation.judge"),
    batches={"prompts": "prompts_per_step"},
    evaluates="evaluation.every",
    unions=(*SLOTS, "critic"),
)


def method_in(section: ConfigDict) -> Method:
    """The method whose pieces a section holds."""
    return method_of({slot: section[slot].to_dict() for slot in SLOTS})


def schedule_in(section: ConfigDict, support: Support = WHOLE) -> Schedule:
    """The schedule that a section asks for, with the tokens that its sampling leaves."""
    names = [field.name for field in dataclasses.fields(Schedule) if field.name != "support"]
    return Schedule(support=support, **{name: section[name] for name in names})


def steps_of(section: ConfigDict, name: str, examples: int) -> int:
    """Steps of a stage with so many prompts."""
    return to_steps(
        section.duration, key=f"{name}.duration", batch_size=section.prompts_per_step, examples=examples
    )  # fmt: skip


def warmup_of(section: ConfigDict, name: str, total: int) -> int:
    """The first steps of `total`, in which the critic learns alone; 0 without one."""
    if not section.critic:
        return 0
    return min(to_steps(section.critic.warmup, key=f"{name}.critic.warmup", total=total), total)


def reference_every(section: ConfigDict, name: str, total: int) -> int:
    """After how many of `total` steps the reference becomes the policy; 0 where it does not."""
    return to_steps(section.reference_every, key=f"{name}.reference_every", total=total)


def only_warms_up(section: ConfigDict, name: str, total: int) -> str:
    """A line about a stage whose critic learns alone in all `total` steps; "" where the policy learns too."""
    if not 0 < total <= warmup_of(section, name, total):
        return ""
    return f"critic.warmup={section.critic.warmup!r} takes all {total} steps; the policy stays what it was"


def anchors_stage(section: ConfigDict) -> str:
    """The stage whose anchors are the opponents; "" where they are none."""
    return section.opponents.get("stage", "")


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the records of a source: the policy that samples and the judge of its responses."""
    yield Reads(section.policy)
    if key == "prompts":
        yield Reads(section.judge, section.policy)
        if anchors_stage(section):  # a prompt that has no anchors cannot be used
            yield Reads(anchors_stage(section))
    else:
        yield Reads(section.evaluation.judge, section.policy)


def batch_rows(section: ConfigDict) -> tuple[str, int]:
    """How the rows of a batch are called, and how many there are."""
    return "prompts_per_step * group_size", section.prompts_per_step * section.group_size


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
