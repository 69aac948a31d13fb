"""Configs that several experiments share: their stages, with the numbers left to the experiment."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.runs.context import is_directory
from prl_jax.stages import config as c


def full_training(
    arguments: str, *, title: str, batch_size: int, accumulate: int, mesh: dict[str, int], length: int = 512
) -> ConfigDict:
    """`own_pairs` with SFT on the chosen responses first, every parameter trained in every stage.

    Args:
      arguments: see `own_pairs`.
      title: of the report.
      batch_size: rows of an update; a PPO step, which samples and judges, has those of two, and an evaluation too, so
        that the same compiled functions serve both.
      accumulate: microbatches of an update.
      mesh: sizes of the axes of the device mesh.
      length: tokens of a prompt, and of a response.
    """
    lengths, step = dict(max_prompt=length, max_response=length), 2 * batch_size
    supervised = dict(duration="1 epochs", batch_size=batch_size, accumulate=accumulate)
    return own_pairs(
        arguments,
        title=title,
        holdout=step,
        sft=dict(**supervised, **lengths, optimizer=dict(learning_rate=1e-5)),
        # A prompt, two responses, and half a response for the words around them.
        generative=dict(**supervised, max_length=length * 7 // 2, optimizer=dict(learning_rate=5e-6)),
        ppo=dict(
            prompts_per_step=step,
            judge_batch_size=step,
            duration="500 steps",
            critic_warmup="20 steps",
            policy_optimizer=dict(learning_rate=1e-6, warmup="10 steps"),
            critic_optimizer=dict(learning_rate=5e-6, warmup="10 steps"),
            algorithm=dict(accumulate=accumulate, clip_high=0.28, kl_coef=0.03),
        ),
        evaluation_batch=step,
        mesh=mesh,
        huggingface=lengths,
    )


def own_pairs(
    arguments: str,
    *,
    holdout: int,
    generative: dict[str, Any],
    ppo: dict[str, Any],
    sft: dict[str, Any] | None = None,
    evaluation_batch: int,
    **root: Any,
) -> ConfigDict:
    """Pairwise-RL on a model directory and a file of preference pairs.

    A generative judge on the pairs, their chosen responses as anchors, pairwise PPO and an evaluation by that judge.

    Args:
      arguments: `MODEL,PAIRS`, the part of `--config FILE.py:MODEL,PAIRS`.
      holdout: first rows of PAIRS, for validation and the final table; the others train.
      generative, ppo: values of these sections.
      sft: values of a stage of SFT on the chosen responses, which the policy then starts from; None starts from MODEL.
      evaluation_batch: rows that are generated and judged at once in the evaluation.
      root: values of the config's root.

    Lengths that are not given are as long as the data need.

    Raises:
      ValueError: other arguments.
    """
    model, separator, pairs = arguments.partition(",")
    if not (model and separator and pairs):
        raise ValueError(
            f"{arguments!r}: expected MODEL,PAIRS (--config FILE.py:MODEL,PAIRS): a model directory and a file of pairs"
        )
    model = model if is_directory(model) else f"./{model}"
    held_out, train = (c.source(kind="jsonl", path=pairs, **rows) for rows in (dict(limit=holdout), dict(skip=holdout)))
    data = dict(init_from=model, data=train, validation=held_out)
    stages = {} if sft is None else {"sft": c.sft(**{"max_prompt": 0, "max_response": 0, **data, **sft})}
    policy = "sft" if stages else model
    stages |= dict(
        genrm=c.generative(**{"template": "question-v1", "w_cons": 0.05, "max_length": 0, **data, **generative}),
        anchors=c.anchors(prompts=train, choice="reference"),
        pairwise_ppo=c.ppo(
            policy=policy,
            judge="genrm",
            prompts=train,
            value_init=0.5,
            evaluation=dict(every="10%", prompts=held_out, judge="genrm"),
            **ppo,
        ),
        evaluation=c.evaluation(
            judges=("genrm",),
            pairs=held_out,
            prompts=held_out,
            baseline=policy,
            judge="genrm",
            batch_size=evaluation_batch,
            arms=dict(pairwise_ppo=dict(title="Pairwise-RL", judge="genrm")),
        ),
    )
    root["huggingface"] = dict(max_prompt=0, max_response=0) | root.get("huggingface", {})
    return c.build(stages, **{"model": dict(dtype="bfloat16", remat=True), **root})
