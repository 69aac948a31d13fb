"""Lowers every step function of a config on the devices there are, compiles those named, prints a JSON line each.

python ahead_of_time.py CONFIG ARGUMENTS FUNCTION...
"""

import importlib.util
import json
import sys

import jax

from prl_jax.sharding import make_mesh
from prl_jax.stages.abstract import lowered_steps

if __name__ == "__main__":
    path, arguments, *compiled = sys.argv[1:]
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
