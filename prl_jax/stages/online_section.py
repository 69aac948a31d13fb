"""The section of a stage that trains a policy on its own samples: its keys, and what follows from them alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled, lora, optimizer, sampling, source
from prl_jax.config.durations import to_steps
from prl_jax.config.rules import RESULTS, Rules, names_at
from prl_jax.errors import UserError
from prl_jax.methods import METHODS, SLOTS, Method, method_of, piece_of, section_of
from prl_jax.runs.judges import behind
from prl_jax.sampling import WHOLE, Support
from prl_jax.stages.kind import Reads
from prl_jax.training.schedule import FLAT_GROUPS, Schedule


def critic(**values: Any) -> dict[str, Any]:
    """Returns the section of a critic, for methods that have one."""
    defaults = dict(
        optimizer=optimizer(learning_rate=1e-3, schedule="constant", warmup="0 steps"),
        # Where it starts: as the "policy" does, with a head that knows nothing; as the "judge", which scores single
        # responses; or as the critic of an earlier stage, by its name.
        init_from="policy",
        warmup="5 steps",  # in which it learns alone, and the policy stays what it is
    )
    return filled(defaults, values, "critic")


def declare(method: str = "pairwise_rl", **values: Any) -> dict[str, Any]:
    """Returns the section of a stage that trains a policy on its own samples.

    Args:
      method: a row of `prl_jax.methods.METHODS`, whose pieces, number of responses to a prompt and further keys are the
        defaults.
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
        judge="genrm",  # a stage, a model directory, or one of `judges`; "" where the reward names several
        watch="",  # one of `judges` that is believed: every logged step says how right the judge is (README)
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
        # Whether the responses of a step are sampled while the one before is judged and learned from: devices do not
        # wait for judges that are asked over the network, and the policy that samples is one step older.
        rollouts_ahead=False,
        importance_cap=2.0,  # with it, how much a token weighs at most that has become likelier since; 0: all weigh 1
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
    return filled({**defaults, **preset.values}, values, "online")


def _piece(slot: str, piece: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a piece of a method, changed by what is given."""
    same = given.get("kind", piece.kind) == piece.kind
    return section_of(piece_of(slot, {**section_of(piece), **given} if same else given))


RULES = Rules(
    stages={"policy": ("policy",), "judge": ("judge",), "evaluation.judge": ("judge",)},
    sources={"prompts": "prompt", "evaluation.prompts": "prompt"},
    choices={"result": RESULTS, "flat_groups": FLAT_GROUPS},
    lengths=("duration",),
    durations=("optimizer.warmup", "evaluation.every", "log_every", "save_every", "reference_every"),
    optimizers=("optimizer",),
    at_least={
        "judge_batch_size": 1,
        "prompts_per_step": 1,
        "evaluation.batch_size": 1,
        "evaluation.temperature": 0,
    },
    models=("policy", "judge", "reward.judges", "evaluation.judge"),
    batches={"prompts": "prompts_per_step"},
    evaluates="evaluation.every",
    unions=(*SLOTS, "critic"),
    unused=lambda section: () if section.judge else ("judge",),
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


def critic_source(config: ConfigDict, section: ConfigDict) -> str:
    """The name of the model that the critic starts as; "" where it starts from the policy."""
    start = section.critic.init_from
    if start == "policy":
        return ""
    return behind(config.judges, section.judge)[0] if start == "judge" else start


def reference_every(section: ConfigDict, name: str, total: int) -> int:
    """After how many of `total` steps the reference becomes the policy; 0 where it does not."""
    return to_steps(section.reference_every, key=f"{name}.reference_every", total=total)


def only_warms_up(section: ConfigDict, name: str, total: int) -> str:
    """A line about a stage whose critic learns alone in all `total` steps; "" where the policy learns too."""
    if not 0 < total <= warmup_of(section, name, total):
        return ""
    return f"critic.warmup={section.critic.warmup!r} takes all {total} steps; the policy stays what it was"


def judges_of(section: ConfigDict) -> tuple[str, ...]:
    """The judges that the reward asks."""
    return names_at(section, "reward.judges") or names_at(section, "judge")


def watched_by(section: ConfigDict) -> str:
    """The judge that is believed about the responses: the one that the section names, else the exact one on prompts of
    the built-in tasks, where it does not give the reward itself; "" where nobody is."""
    exact = "gold" if section.prompts.kind == "gold" and "gold" not in judges_of(section) else ""
    return section.watch or exact


def anchors_stage(section: ConfigDict) -> str:
    """The stage whose anchors are the opponents; "" where they are none."""
    return section.opponents.get("stage", "")


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the records of a source: the policy that samples and the judge of its responses."""
    yield Reads(section.policy)
    if key == "prompts":
        yield from (Reads(judge, section.policy) for judge in judges_of(section))
        if section.watch:
            yield Reads(section.watch, section.policy)
        if anchors_stage(section):  # a prompt that has no anchors cannot be used
            yield Reads(anchors_stage(section))
    else:
        yield Reads(section.evaluation.judge, section.policy)


def batch_rows(section: ConfigDict) -> tuple[str, int]:
    """How the rows of a batch are called, and how many there are."""
    return "prompts_per_step * group_size", section.prompts_per_step * section.group_size
