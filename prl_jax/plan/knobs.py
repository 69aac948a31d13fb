"""Which keys of a config change how much memory a function takes."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from prl_jax.sharding import parameter_parts
from prl_jax.stages import KINDS

ACTIVATIONS = ("temporary memory", "rows", "cache")


def helpful_keys(
    config: ConfigDict, name: str, what: str, mesh: Mapping[str, int], *, batches_too: bool = False
) -> list[str]:
    """Keys that help where a function does not fit, with the direction; those that help most come first.

    Args:
      config: the whole config.
      name: of the function, `stage/function`.
      what: takes the most: one of `ACTIVATIONS`, or a part of what the stage holds.
      mesh: sizes of the axes.
      batches_too: whether activations count where parameters take the most.
    """
    stage, _, called = name.partition("/")
    section, devices = config[stage], 1
    for size in mesh.values():
        devices *= size
    if what in ACTIVATIONS:
        found = KINDS[section.kind].costs.smaller(section, stage, called, mesh) + _shorter(stage, config)
        if not config.model.remat and called in ("train_step", "warm_up", "update"):
            found.insert(0, "model.remat=True (recompute activations)")
    else:
        found = _fewer_parameters(stage, section)
        if batches_too:
            found += KINDS[section.kind].costs.smaller(section, stage, called, mesh)
    cut = parameter_parts(mesh)
    if cut < devices:
        found.insert(0, f"mesh.fsdp up (parameters are cut in {cut} parts on {devices} devices)")
    return found


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
