"""Every key that a config can set, with its default. Experiments call `build` with their stages.

Durations are strings: "300 steps", "2 epochs", "20000 examples", "10%" (of the stage). Lengths (`max_prompt`,
`max_response`, `max_length`) are in tokens; 0 is as long as the data need, at most the model's context.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.errors import UserError
from prl_jax.models import preset
from prl_jax.models.config import LORA_TARGETS


def build(stages: dict[str, dict[str, Any]], **values: Any) -> ConfigDict:
    """A locked config: the stages, run in the order given, and the root's values.

    Raises:
      UserError: a value has no such key.
    """
    root = _filled(
        dict(
            title="",
            seed=0,
            # Rows of a file that cannot be read (malformed, or refused by the chat template) that each source may have:
            # they are left out and counted. `skip` and `limit` of a source count them too.
            skip_invalid=0,
            # Run in this order. Each name is a section of the config, whose `kind` says what it does.
            stages=tuple(stages),
            tokenizer=dict(
                kind="byte",  # byte, bpe (trained on `data`), or huggingface (read from `path`)
                path="",
                vocab_size=4096,
                data=source(),
            ),
            model={
                **preset("tiny"),
                "rope_theta": 10_000.0,
                "tied_embeddings": True,
                "dtype": "float32",
                "remat": False,
            },
            # Tokens that Hugging Face models are used with, whose directories do not say (0: as many as the data need),
            # and what their chat templates are given beside the conversation, such as dict(enable_thinking=False);
            # their activations have the `dtype` of `model`, and its `remat`.
            huggingface=dict(max_prompt=1024, max_response=1024, template_args={}),
            # The built-in tasks, for sources of kind "gold" (`GoldArguments`); () and 0 rows keep its defaults.
            gold=dict(
                seed=0,
                families=(),
                difficulties=(0,),
                train_rows=0,
                validation_rows=1000,
                test_rows=1000,
                form_ignored=0.65,
                filler=0.65,
                slip=0.6,
                noise=0.05,
                ties=0.1,
                intransitivity=0.0,
                reference="demonstration",
            ),
            # Sizes of the axes of the device mesh (`sharding.make_mesh`); one may be -1, the rest.
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1),
            logging=dict(progress=True),
            # Of files of rows, in MiB: what a gzip file may unpack to, and the length of a line.
            limits=dict(max_unpacked_mib=2048, max_line_mib=64),
            profile=dict(steps=""),  # of each training stage, "10-12" or "10": jax.profiler traces them
        ),
        values,
        "config",
    )
    return ConfigDict({**root, **stages}).lock()


def source(**values: Any) -> dict[str, Any]:
    """Where records come from: kind "gold" (built-in tasks), "jsonl" (files) or "tfds" (a prepared builder)."""
    return _filled(dict(kind="gold", path="", split="train", limit=0, skip=0), values, "source")


def lora(**values: Any) -> dict[str, Any]:
    """Low-rank adapters on a frozen model: all that the stage trains. Rank 0 trains the whole model.

    Dropout is for SFT and judges: never in rollouts or scoring, nor in PPO, whose ratios it would move.
    """
    return _filled(dict(rank=0, alpha=16.0, targets=LORA_TARGETS, dropout=0.0), values, "lora")


def optimizer(**values: Any) -> dict[str, Any]:
    """AdamW behind global-norm clipping."""
    defaults = dict(
        learning_rate=1e-3,
        schedule="cosine",
        warmup="5%",
        weight_decay=0.0,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    return _filled(defaults, values, "optimizer")


def _supervised() -> dict[str, Any]:
    """What SFT and reward models share."""
    return dict(
        # A stage, or the directory of one or of a Hugging Face model, whose decoder to start from; "": from scratch.
        init_from="",
        lora=lora(),
        data=source(),
        validation=source(split="validation", limit=512),
        duration="2 epochs",
        batch_size=128,
        accumulate=1,
        optimizer=optimizer(),
        log_every="10 steps",
        save_every="25%",
        evaluate_every="25%",
        result="last",  # the parameters of the last step, or of that with the "best" evaluation: the least loss
    )


def sft(**values: Any) -> dict[str, Any]:
    """Supervised fine-tuning."""
    defaults = dict(
        kind="sft",
        max_prompt=32,
        max_response=32,
        train_on="last",  # what counts of a conversation: its last response, or "all" turns of the assistant
    )
    return _filled({**_supervised(), **defaults}, values, "sft")


def bradley_terry(**values: Any) -> dict[str, Any]:
    """A scalar reward model."""
    defaults = dict(
        kind="bradley_terry", max_prompt=32, max_response=32, label_smoothing=0.0, center=0.0, soft_labels=False
    )
    return _filled({**_supervised(), **defaults}, values, "bradley_terry")


def generative(**values: Any) -> dict[str, Any]:
    """A generative pairwise reward model."""
    defaults = dict(
        kind="generative",
        max_length=64,
        template="compact-v1",
        verdicts=("Y", "N"),
        shared_positions=False,
        form="antisymmetric",
        w_ce=0.05,
        w_cons=0.0,
        soft_labels=False,
    )
    return _filled({**_supervised(), **defaults}, values, "generative")


def anchors(**values: Any) -> dict[str, Any]:
    """One or more anchors a prompt."""
    defaults = dict(
        kind="anchors",
        prompts=source(),
        choice="best_of_n",  # or "reference": the gold or demonstration answer that the prompt's record carries
        policy="sft",
        judge="bt",  # ranks the samples: by score (scalar), or by pairwise wins (generative)
        samples=4,
        keep=1,
        temperature=1.0,
        batch_size=512,
    )
    return _filled(defaults, values, "anchors")


def ppo(**values: Any) -> dict[str, Any]:
    """PPO, on scores or on win probabilities."""
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
    return _filled(defaults, values, "ppo")


def evaluation(**values: Any) -> dict[str, Any]:
    """Judges on labelled pairs, policies against a baseline and anchors, and the final table."""
    defaults = dict(
        kind="evaluation",
        judges=(),
        pairs=source(split="test"),
        baseline="sft",  # the policy that the arms are compared with; "" evaluates judges only
        # Stage of a trained policy -> dict(title=, judge=): its one name in every table, and whom it learned from.
        arms={},
        prompts=source(split="test", limit=512),
        samples=4,  # a prompt
        judge="gold",  # tells the win rates
        anchors="reference",  # what prompts carry as their reference, where they do; "" for none
        temperature=1.0,
        batch_size=512,
        bootstrap=2000,
    )
    return _filled(defaults, values, "evaluation")


def _filled(defaults: dict[str, Any], values: dict[str, Any], what: str) -> dict[str, Any]:
    """Defaults with some values replaced, one level deep; a key that is not among them is a `UserError`."""
    out = dict(defaults)
    for name, value in values.items():
        if name not in defaults:
            raise UserError(f"{what}: no key {name!r}; known: {', '.join(sorted(defaults))}")
        current = defaults.get(name)
        if isinstance(current, dict) and isinstance(value, dict):
            unknown = sorted(set(value) - set(current)) if current else []
            if unknown:
                raise UserError(f"{what}.{name}: no key {unknown[0]!r}; known: {', '.join(sorted(current))}")
            out[name] = {**current, **value}
        else:
            out[name] = value
    return out
