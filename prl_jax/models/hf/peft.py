"""Low-rank adapters in the format of the PEFT library: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prl_jax.errors import UserError
from prl_jax.files import appearing, parse_json, write_json
from prl_jax.gguf_file import is_gguf
from prl_jax.models.config import LoraConfig
from prl_jax.models.decoder import LOGICAL_AXES, Decoder
from prl_jax.models.hf.files import not_finite
from prl_jax.models.hf.tensors import LINEAR
from prl_jax.models.hf.values import short
from prl_jax.models.lora import with_adapters
from prl_jax.sharding import tree_shardings
from prl_jax.tree import flatten, unflatten

CONFIG, WEIGHTS, _PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model.model.layers"
_MODULES = {path.rpartition(".")[2]: name for name, path in LINEAR.items()}  # q_proj -> attention.q
# What has no effect on the function, and the only values that are understood of what has.
_INERT = frozenset(
    "base_model_name_or_path revision inference_mode auto_mapping lora_dropout init_lora_weights".split()
    + "peft_version loftq_config eva_config corda_config runtime_config megatron_config megatron_core".split()
)
_UNDERSTOOD: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {"peft_type": ("LORA",), "bias": ("none",), "task_type": ("CAUSAL_LM",)}
)
_USED = ("r", "lora_alpha", "target_modules", "use_rslora")
_EVERY_LINEAR = "all-linear"  # PEFT's word for every linear map of the decoder's layers
_ADVICE = (
    "merge the adapter into its base with PEFT (model.merge_and_unload().save_pretrained(DIRECTORY)) and give that "
    "directory"
)


def save_adapters(decoder: Decoder, path: Path | str, *, base: str) -> None:
    """Writes the adapters of a decoder, float32.

    Args:
      decoder: one with adapters.
      path: directory to write.
      base: name or path of the model that they belong to, for whoever loads them.

    Raises:
      UserError: the decoder has no adapters, or the directory is not empty.
    """
    lora, directory = decoder.config.lora, Path(path)
    if lora is None:
        raise UserError(f"{path}: the model has no adapters to save; export the whole model")
    tensors = {}
    for name, array in flatten(decoder).items():
        if ".lora." not in name:
            continue
        target, part = name.removeprefix("blocks.").split(".lora.")
        for layer, matrix in enumerate(np.asarray(array, np.float32)):
            key = f"{_PREFIX}.{layer}.{LINEAR[target]}.lora_{part.upper()}.weight"
            tensors[key] = np.ascontiguousarray(matrix.T)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: is there already; delete it or name another directory")
    names = {name.rpartition(".")[2]: path.rpartition(".")[2] for name, path in LINEAR.items()}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": [names[target] for target in lora.targets],
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with appearing(directory) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, values, indent=2)


def load_adapters(decoder: Decoder, path: Path | str, mesh: Mesh) -> Decoder:
    """A decoder with the adapters of a directory; its other arrays are not copied.

    Raises:
      UserError: an option that is not supported, by name; tensors that are missing, left over, misshapen or not finite.
    """
    directory = Path(path)
    lora = _read_config(directory)
    like = with_adapters(decoder, lora, mesh, key=jax.random.key(0))
    shardings = flatten(tree_shardings(like, mesh, LOGICAL_AXES))
    if not (directory / WEIGHTS).is_file() and (directory / _PICKLED).is_file():
        raise UserError(
            f"{directory / _PICKLED}: pickled weights can run code and are not read; convert them where you trust "
            "them: PEFT's save_pretrained writes safetensors"
        )
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError, KeyError, AttributeError) as error:  # the latter: numpy has no such dtype
        raise UserError(f"{directory / WEIGHTS}: cannot be read ({error})") from error
    _check_finite(directory / WEIGHTS, tensors)
    arrays, wrong = flatten(like), []
    for name in [name for name in arrays if ".lora." in name]:
        target, part = name.removeprefix("blocks.").split(".lora.")
        layers, expected = arrays[name].shape[0], arrays[name].shape[:0:-1]
        keys = [f"{_PREFIX}.{layer}.{LINEAR[target]}.lora_{part.upper()}.weight" for layer in range(layers)]
        found = [tensors.pop(key, None) for key in keys]
        wrong += [
            f"{key} is missing" if tensor is None else f"{key} has shape {tensor.shape}, expected {expected}"
            for key, tensor in zip(keys, found, strict=True)
            if tensor is None or tensor.shape != expected
        ]
        if not wrong:
            stack = np.stack([np.asarray(tensor, np.float32).T for tensor in found])
            arrays[name] = jax.device_put(jnp.asarray(stack), shardings[name])
    wrong += [f"{key} has no place" for key in tensors]
    if wrong:
        raise UserError(f"{directory / WEIGHTS}: {'; '.join(wrong[:20])}{' ...' if len(wrong) > 20 else ''}")
    return unflatten(like, arrays)


def _check_finite(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    broken = {name: not_finite(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
    names = [f"{name} ({count})" for name, count in broken.items() if count]
    if names:
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise UserError(
            f"{path}: {sum(broken.values())} weights are not finite (NaN or infinity): {', '.join(names[:20])}{more}"
        )


def adapter_base(path: Path | str) -> Path | None:
    """The model directory that the adapters of a directory belong to; None for a directory of something else.

    Raises:
      UserError: the directory that `adapter_config.json` names is not on this machine, or leads back to these
        adapters.
    """
    directory = Path(path)
    base, seen = _named_base(directory), {directory.resolve()}
    further = base
    while further is not None:  # adapters may belong to a model with adapters
        if further.resolve() in seen:
            raise UserError(f"{directory / CONFIG}: base_model_name_or_path leads back to it; set it to the model's")
        seen.add(further.resolve())
        further = _named_base(further)
    return base


def _named_base(directory: Path) -> Path | None:
    """The directory, or GGUF file, that the `adapter_config.json` of a directory names; None where there is none."""
    if not (directory / CONFIG).is_file():
        return None
    try:
        name = parse_json((directory / CONFIG).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / CONFIG}: cannot be read ({type(error).__name__}: {error})") from error
    found = isinstance(name, str) and (directory / name).exists()
    if not found or not ((directory / name).is_dir() or is_gguf(directory / name)):
        raise UserError(
            f"{directory / CONFIG}: base_model_name_or_path={name!r} is no directory here and no GGUF file; set it to "
            "the model's"
        )
    return directory / name


def _is_idle(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key belongs to a switch that is off: `qalora_group_size` to `use_qalora`."""
    return any(
        key.startswith(f"{switch.removeprefix('use_')}_")
        for switch, value in values.items()
        if switch.startswith("use_") and not value
    )


def _read_config(directory: Path) -> LoraConfig:
    path = directory / CONFIG
    try:
        values = parse_json(path.read_text())
        targets = values["target_modules"]
        targets = list(_MODULES) if targets == _EVERY_LINEAR else targets
        unknown = [t for t in targets if t not in _MODULES] if isinstance(targets, list) else [targets]
        rank, alpha = int(values["r"]), float(values["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not (rank > 0 and math.isfinite(alpha)):
        raise UserError(f"{path}: r={rank}, lora_alpha={alpha}, expected a positive r and a finite lora_alpha")
    if unknown:
        known = f"{sorted(_MODULES)} or {_EVERY_LINEAR!r}"
        raise UserError(f"{path}: target_modules {unknown} are not supported; supported: {known}; or {_ADVICE}")
    for key, value in values.items():
        off = value is None or value is False or value in ({}, []) or _is_idle(key, values)
        if key in _INERT or key in _USED or off or value in _UNDERSTOOD.get(key, ()):
            continue
        raise UserError(f"{path}: {key}={short(value)} is not supported; {_ADVICE}")
    if values.get("use_rslora"):  # scale alpha / sqrt(r) (arXiv 2312.03732) where LoraConfig has alpha / r
        alpha *= math.sqrt(rank)
    return LoraConfig(rank, alpha, tuple(_MODULES[target].rpartition(".")[2] for target in targets))
