"""Traces every function of a config for the devices there are, compiles those named, prints a JSON line each.

python ahead_of_time.py CONFIG ARGUMENTS [SECTION.KEY=LENGTH ...] FUNCTION...
"""

import importlib.util
import json
import sys

import jax

from prl_jax.plan import plan_config

if __name__ == "__main__":
    path, arguments, *words = sys.argv[1:]
    lengths, compiled = ([word for word in words if ("=" in word) == given] for given in (True, False))
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arguments)
    for name, _, length in (word.partition("=") for word in lengths):
        section, key = name.split(".")
        config[section][key] = int(length)
    planned = plan_config(config, f"cpu:{jax.device_count()}", functions=compiled)
    for function in planned.functions:
        peak = function.memory.peak if function.cost is not None else None
        print(json.dumps({"function": function.name, "bytes": peak}), flush=True)
