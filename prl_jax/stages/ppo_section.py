"""What a stage of PPO may be given, and what is checked of it before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled, lora, optimizer, source
from prl_jax.config.rules import GOLD, NONE, RESULTS, Rules
from prl_jax.errors import UserError, naming
from prl_jax.losses.advantages import KL_KINDS
from prl_jax.losses.pairwise_ppo import OPPONENTS, REWARD_MAPS
from prl_jax.losses.ppo import REDUCTIONS
from prl_jax.sampling import SamplingConfig
from prl_jax.stages.kind import Checking, Reads, check_lora
from prl_jax.training.ppo import PPOConfig

_LEAD = 8  # tokens that introduce the anchor to a critic, at most


def declare(**values: Any) -> dict[str, Any]:
    """The section of PPO, on scores or on win probabilities."""
    defaults = dict(
        kind="ppo",
        policy="sft",  # where policy and critic start, and the reference of the KL
        judge="genrm",  # a stage, or "gold"
        reward="pairwise",  # win probability against the opponents; or "score", of a scalar judge
        reward_form="id",  # of the win probability: id, centred, logit or log
        opponents="anchor",  # all anchors of the prompt, or peer, group, pool (some of the anchors, drawn each step)
        opponent_draws=1,  # from the pool
        judge_batch_size=256,  # rows that a judge reads at once
        anchors="anchors",  # the stage that made them
        prompts=source(),
        group_size=1,
        prompts_per_step=256,
        duration="60 steps",
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        critic_warmup="5 steps",
        critic_sees_anchor=False,
        lora=lora(),  # policy and critic have adapters of their own on one frozen decoder, which is the reference too
        value_init=0.0,
        policy_optimizer=optimizer(learning_rate=5e-4, schedule="constant", warmup="0 steps"),
        critic_optimizer=optimizer(learning_rate=1e-3, schedule="constant", warmup="0 steps"),
        algorithm=dict(
            epochs=2,
            minibatches=2,
            accumulate=1,
            gamma=1.0,
            lam_actor=0.95,
            lam_critic=1.0,
            clip_low=0.2,
            clip_high=0.2,
            dual=0.0,
            clip_value=0.2,
            value_weight=1.0,
            entropy_weight=0.0,
            reduce="token_mean",
            whiten=True,
            kl_placement="reward",
            kl_estimator="k1",
            kl_coef=0.05,
            kl_target=0.0,
            kl_horizon=10_000.0,
            missing_eos_penalty=0.0,
            mask_truncated=False,
            bootstrap_truncated=False,
        ),
        # One sample a prompt against one of `policy`, which is the same for every arm and step; batch_size: rows that
        # are sampled at once.
        evaluation=dict(
            every="20%",
            prompts=source(split="validation", limit=256),
            judge="gold",
            temperature=1.0,
            batch_size=256,
        ),
        log_every="1 steps",
        save_every="20%",
        result="last",  # the parameters of the last step, or of that with the "best" evaluation: the largest win rate
    )
    return filled(defaults, values, "ppo")


RULES = Rules(
    stages={
        "policy": ("policy",),
        "judge": ("judge", GOLD),
        "anchors": ("anchors", NONE),
        "evaluation.judge": ("judge", GOLD),
    },
    sources={"prompts": "prompt", "evaluation.prompts": "prompt"},
    choices={
        "reward": ("pairwise", "score"),
        "reward_form": REWARD_MAPS,
        "opponents": OPPONENTS,
        "algorithm.reduce": REDUCTIONS,
        "algorithm.kl_estimator": KL_KINDS,
        "result": RESULTS,
    },
    lengths=("duration",),
    durations=(
        "critic_warmup",
        "policy_optimizer.warmup",
        "critic_optimizer.warmup",
        "evaluation.every",
        "log_every",
        "save_every",
    ),
    optimizers=("policy_optimizer", "critic_optimizer"),
    at_least={
        "group_size": 1,
        "opponent_draws": 1,
        "judge_batch_size": 1,
        "prompts_per_step": 1,
        "evaluation.batch_size": 1,
        "evaluation.temperature": 0,
        "algorithm.kl_coef": 0,
        "algorithm.kl_horizon": 1,
    },
    models=("policy", "judge", "evaluation.judge"),
    batches={"prompts": "prompts_per_step"},
    evaluates="evaluation.every",
)


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the records of a source: the policy that samples and the judge of its responses."""
    yield Reads(section.policy)
    if key == "prompts":
        yield Reads(section.judge, section.policy)
        if section.anchors:  # a prompt that has no anchors cannot be used
            yield Reads(section.anchors)
    else:
        yield Reads(section.evaluation.judge, section.policy)


def batch_rows(section: ConfigDict) -> tuple[str, int]:
    """How the rows of a batch are called, and how many there are."""
    return "prompts_per_step * group_size", section.prompts_per_step * section.group_size


def check_algorithm(check: Checking, name: str) -> None:
    """Raises `UserError` for an update that cannot be made."""
    section = check.config[name]
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


def check_reward(check: Checking, name: str) -> None:
    """Raises `UserError` where the judge, the opponents or the anchors do not suit the reward."""
    section = check.config[name]
    if section.reward == "score":
        check.reference(name, "judge", section.judge, ("scalar_judge",))
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
    if section.anchors and not _covers(check.config[section.anchors].prompts, section.prompts):
        raise UserError(
            f"{name}.prompts reads prompts that {section.anchors}.prompts does not; give both the same source"
        )


def check_context(check: Checking, name: str) -> None:
    """Raises `UserError` where a critic that sees an anchor reads more than its model's context."""
    section = check.config[name]
    if section.critic_sees_anchor:
        card = check.card(section.policy)
        needed = card.max_prompt + 2 * card.max_response + _LEAD
        keys = f"{name}.critic_sees_anchor, with a prompt of {card.max_prompt} tokens, a response and an anchor of "
        check.fits_context(name, needed, f"{keys}{card.max_response}")


def check_adapters(check: Checking, name: str) -> None:
    """Raises `UserError` for adapters that cannot be made, or whose dropout would move the ratios."""
    section = check.config[name]
    if check_lora(section, name) and section.lora.dropout:
        raise UserError(f"{name}.lora.dropout={section.lora.dropout}: PPO has none, it would move the ratios; set 0")


CHECKS = (check_algorithm, check_reward, check_context, check_adapters)


def _covers(whole: ConfigDict, part: ConfigDict) -> bool:
    """Whether every record of one source is surely a record of another."""
    if any(whole[key] != part[key] for key in ("kind", "path", "split")) or whole.skip > part.skip:
        return False
    return not whole.limit or bool(part.limit and part.skip + part.limit <= whole.skip + whole.limit)
