"""Where a function does not fit: what takes the most, and which keys of the config change that."""

from __future__ import annotations

from ml_collections import ConfigDict

from prl_jax.plan.plan import Function, Plan


def largest_consumer(function: Function) -> tuple[str, float]:
    """What takes the most of a device's memory, and its bytes."""
    memory = function.memory
    found = {**function.held, "rows": memory.rows, "cache": memory.cache, "temporary memory": memory.temporary}
    name = max(found, key=lambda what: found[what])
    return name, found[name]


def knobs(plan: Plan, function: Function, config: ConfigDict) -> list[str]:
    """Keys that help where a function does not fit, with the direction; those that help most come first."""
    stage, _, called = function.name.partition("/")
    what = largest_consumer(function)[0]
    if what == "temporary memory" or what in ("rows", "cache"):
        found = _smaller_batches(plan, stage, called, config[stage]) + _shorter(stage, config)
        if not config.model.remat and called in ("train_step", "update"):
            found.insert(0, "model.remat=True (recompute activations)")
    else:
        found = _fewer_parameters(stage, config[stage])
        if plan.chip is not None and function.memory.known - function.memory.cache < plan.chip.hbm:
            found += _smaller_batches(plan, stage, called, config[stage])
    cut = plan.mesh["fsdp"] * plan.mesh["tensor"]
    if cut < plan.devices:
        found.insert(0, f"mesh.fsdp up (parameters are cut in {cut} parts on {plan.devices} devices)")
    else:
        found.append("a larger --topology with mesh.fsdp=-1")
    if what == "temporary memory" and plan.mesh["tensor"] == 1:
        found.append("mesh.tensor up")
    return found


def _smaller_batches(plan: Plan, stage: str, called: str, section: ConfigDict) -> list[str]:
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    if section.kind == "ppo":
        if called.endswith("judge"):
            return [f"{stage}.judge_batch_size down"]
        if called.startswith("evaluation"):
            return [f"{stage}.evaluation.batch_size down"]
        rows = f"{stage}.prompts_per_step or {stage}.group_size down"
        size, algorithm = section.prompts_per_step * section.group_size, section.algorithm
        more = called == "update" and size > shards * algorithm.minibatches * algorithm.accumulate
        return [*([f"{stage}.algorithm.accumulate up"] if more else []), rows]
    # A microbatch of one row a device is as small as it gets.
    more = called == "train_step" and section.batch_size > shards * section.accumulate
    return [*([f"{stage}.accumulate up"] if more else []), f"{stage}.batch_size down"]


def _shorter(stage: str, config: ConfigDict) -> list[str]:
    section = config[stage]
    if "max_length" in section:
        return [f"{stage}.max_length down"]
    if "max_prompt" in section:
        return [f"{stage}.max_prompt or {stage}.max_response down"]
    return ["the lengths of the policy down (max_prompt and max_response of its SFT stage, or huggingface.*)"]


def _fewer_parameters(stage: str, section: ConfigDict) -> list[str]:
    trains = "lora" in section and not section.lora.rank
    return [f"{stage}.lora.rank=16 (train adapters; the models share their frozen parameters)"] if trains else []
