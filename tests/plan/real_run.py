"""Runs a config on virtual devices, plans it for the same devices, and writes what each of them lowered and compiled.

python real_run.py WORKDIR    writes WORKDIR/found.json
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax._src import jaxpr_util
from ml_collections import ConfigDict
from plan.jaxpr_text import canonical
from running import MICRO, prl

from prl_jax.costs.models import held_bytes
from prl_jax.plan.functions import abstract_steps
from prl_jax.plan.memory import memory_of
from prl_jax.sharding import make_mesh

MESH = dict(data=2, fsdp=2, tensor=2)
OVERRIDES = {
    "model.kv_heads": 2,
    "anchors.keep": 1,  # of several some may be alike, and a run then asks about fewer than the plan expects
    **{f"mesh.{axis}": size for axis, size in MESH.items()},
    **{f"{stage}.duration": "2 steps" for stage in ("sft", "bt", "genrm", "pairwise_ppo")},
}
SIZES = ("argument_size", "output_size", "alias_size", "temp_size", "peak_memory")


def sizes(stats: Any) -> list[int]:
    """Of a compiled program's memory."""
    return [getattr(stats, f"{name}_in_bytes") for name in SIZES]


def record_lowered() -> list[tuple[str, str]]:
    """Grows by the name of each function that is lowered from here on, and a digest of its jaxpr."""
    lowered, dump = [], jaxpr_util.maybe_dump_jaxpr_to_file

    def record(name: str, jaxpr: Any) -> str | None:
        lowered.append((name, hashlib.sha256(canonical(jaxpr).encode()).hexdigest()))
        return dump(name, jaxpr)

    jaxpr_util.maybe_dump_jaxpr_to_file = record
    return lowered


def run_it(workdir: Path) -> list[tuple[str, list[int]]]:
    """Names of the functions that a run compiles, with the memory of their programs."""
    # All programs are kept: the id of one that is gone would be given to another.
    compiled, seen, client = [], {}, jax.devices()[0].client

    def on_compile(event: str, _: float, **labels: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            for one in client.live_executables():
                if id(one) not in seen:
                    compiled.append((labels["fun_name"], sizes(one.get_compiled_memory_stats())))
                    seen[id(one)] = one

    jax.monitoring.register_event_duration_secs_listener(on_compile)
    flags = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    done = prl("run", "--config", f"{MICRO}:short", "--workdir", workdir, "--compilation_cache_dir=", *flags)
    assert done.code == 0, done
    return compiled


def micro() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("micro", MICRO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("short")
    config.update_from_flattened_dict(OVERRIDES)
    return config


def plan_it(lowered: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """What a plan lowers and compiles, and what it makes of it."""
    mesh = make_mesh(**MESH)
    with jax.set_mesh(mesh):
        for step in abstract_steps(micro(), mesh):
            jax.clear_caches()  # what has been lowered before would not be again
            before = len(lowered)
            stats = step.traced.lower().compile().memory_analysis()
            yield {
                "step": step.name,
                "lowered": lowered[before:],
                "sizes": sizes(stats),
                "memory": memory_of(step, stats, on_cpu=True)._asdict(),
                "held": held_bytes(step.held),
            }


if __name__ == "__main__":
    work = Path(sys.argv[1])
    lowered = record_lowered()
    found = {"compiled": run_it(work / "micro")}
    found["lowered"] = list(lowered)
    found["planned"] = list(plan_it(lowered))
    (work / "found.json").write_text(json.dumps(found))
