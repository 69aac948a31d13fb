"""Lowers every step function of a config on virtual devices, compiles those that are named, prints one JSON line each.

python ahead_of_time.py CONFIG ARGUMENTS DEVICES FUNCTION...
"""

import importlib.util
import json
import os
import sys

if __name__ == "__main__":
    path, arguments, devices, *compiled = sys.argv[1:]
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Memory and collectives are decided before machine code is made, which need not be good then.
    flags = ("host_platform_device_count=" + devices, "backend_optimization_level=0")
    os.environ["XLA_FLAGS"] = f"--xla_force_{flags[0]} --xla_{flags[1]}"
    import jax

    from prl_jax.sharding import make_mesh
    from prl_jax.stages.abstract import lowered_steps

    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arguments)
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        for name, lowered in lowered_steps(config, mesh):
            row = {"function": name}
            if name in compiled:
                memory = lowered.compile().memory_analysis()
                row["bytes"] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            print(json.dumps(row), flush=True)
