"""Imports run downward only. The rules are read off the source, so that an import inside a function counts as well."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import prl_jax

PACKAGE = "prl_jax"
ROOT = Path(prl_jax.__file__).parent

# A room is a module or a folder right under the package. It imports rooms of lower layers, and itself.
LAYERS = {
    "errors": 0, "files": 0, "memory": 0, "process_setup": 0, "types": 0, "masked": 0, "tree": 0,
    "streams": 0, "file_names": 0, "gguf_file": 0,
    "losses": 1, "text": 1, "sharding": 1, "processes": 1, "integrity": 1, "models": 1,
    "methods": 2, "data": 2, "sampling": 2, "judges": 2, "optim": 2, "checkpoint": 2, "metrics": 2, "progress": 2,
    "training": 3, "evaluation": 3, "measuring": 3,
    "artifacts": 4, "config": 4, "reporting": 4,
    "runs": 5, "costs": 6, "stages": 7, "comparing": 8, "inputs": 8, "recipes": 9, "plan": 9, "commands": 10, "cli": 11,
    "__main__": 12,
}  # fmt: skip
SIDEWAYS = {
    # User-facing messages exist in every room.
    ("files", "errors"), ("process_setup", "errors"), ("gguf_file", "errors"),
    ("models", "sharding"), ("processes", "sharding"),  # arrays are born on the mesh
    ("losses", "sharding"),  # chunks of the vocabulary are cut like it
}  # fmt: skip
# Room -> libraries that nothing in it, nor anything it reaches inside the package, may import.
FORBIDDEN = {"reporting": {"jax", "jaxlib", "flax", "optax", "orbax"}}
CONFIG_LIBRARY, CONFIG_LAYER = "ml_collections", 3  # config objects stop at layer 3
LOSSES_FORBIDDEN = {"flax", "ml_collections", "optax"}  # arrays in, LossOutput out


def room_of(module: str) -> str:
    """`prl_jax.data.gold.families -> "data"`; the package itself has no room."""
    return module.split(".")[1] if "." in module else ""


def imports_of(module: str, source: str, known: Iterable[str]) -> set[str]:
    """Modules that the source imports, anywhere in it. `known` tells submodules from names inside a module."""
    is_package = any(name.startswith(module + ".") for name in known)
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            if base == PACKAGE:  # `from prl_jax import losses` names rooms, known or not
                found |= {name for name in submodules if not name.endswith(".__version__")}
            else:
                found |= {name if name in known else base for name in submodules}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the rules in `module name -> source`, one line each."""
    graph = {module: imports_of(module, source, sources) for module, source in sources.items()}
    found = []
    for module, targets in sorted(graph.items()):
        room = room_of(module)
        if room and room not in LAYERS:
            found.append(f"{module}: the room {room!r} has no layer")
            continue
        for target in sorted(targets):
            top = target.split(".")[0]
            if top == CONFIG_LIBRARY and room and LAYERS[room] < CONFIG_LAYER:
                found.append(f"{module} imports {target}: config objects stop at layer {CONFIG_LAYER}")
            if room == "losses" and top in LOSSES_FORBIDDEN:
                found.append(f"{module} imports {target}: losses know arrays only")
            if top != PACKAGE or room_of(target) in ("", room):
                continue
            below = LAYERS.get(room_of(target), 99) < LAYERS.get(room, -1)
            if not below and (room, room_of(target)) not in SIDEWAYS:
                found.append(f"{module} imports {target}: not below it")
        for top in sorted(reached(module, graph) & FORBIDDEN.get(room, set())):
            found.append(f"{module} reaches {top}")
    return found


def reached(module: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Top-level libraries that importing the module brings in through the package, parent packages included."""
    seen, todo, libraries = set(), [module], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name.split(".")[0] != PACKAGE:
            libraries.add(name.split(".")[0])
            continue
        todo += [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
        todo += graph.get(name, ())
    return libraries


def package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def test_the_package_keeps_its_layers():
    sources = package_sources()
    assert len(sources) > 5 and f"{PACKAGE}.errors" in sources
    assert violations(sources) == []


def test_every_folder_of_the_package_has_a_layer():
    rooms = {room_of(module) for module in package_sources()} - {""}
    assert rooms <= set(LAYERS)


def _broken(**sources: str) -> list[str]:
    """Violations of a synthetic package: `training__loop="..."` is the module `prl_jax.training.loop`."""
    named = {f"{PACKAGE}.{name.replace('__', '.')}": source for name, source in sources.items()}
    return violations({PACKAGE: "", **named})


def test_allowed_imports_pass():
    assert _broken(errors="", files="from prl_jax.errors import UserError\nimport jax") == []
    assert _broken(training__loop="from prl_jax.losses.ppo import x\nfrom prl_jax import metrics", metrics="") == []
    assert _broken(training__loop="from . import step\nfrom .step import f", training__step="", training="") == []
    assert _broken(cli="from prl_jax.stages.sft import run\nfrom prl_jax import __version__, reporting") == []
    assert _broken(reporting__tables="from prl_jax.evaluation import win_rate", evaluation="import numpy") == []
    assert _broken(stages__sft="import ml_collections", training__ppo="from ml_collections import ConfigDict") == []


def test_upward_and_sideways_imports_are_found():
    upward = [
        {"losses__ppo": "from prl_jax.models import decoder"},  # sideways inside layer 1
        {"losses__ppo": "from prl_jax.data.records import x"},
        {"types": "from prl_jax import losses"},
        {"errors": "import prl_jax.types"},
        {"data__rows": "import prl_jax.sampling.decode as d"},
        {"evaluation__judging": "from prl_jax.training.step import f"},
        {"training__loop": "from prl_jax.evaluation import judge_metrics"},
        {"reporting__page": "from prl_jax.stages import workdir"},
        {"stages__sft": "from prl_jax import cli"},
        {"cli": "from prl_jax import __main__"},
        {"models__heads": "def f():\n    from prl_jax.judges import scalar"},
        {"models__heads": "if TYPE_CHECKING:\n    from prl_jax.judges import scalar"},
        {"models__heads": "import importlib\nx = importlib.import_module('prl_jax.judges')"},
        {"models__heads": "from ..judges import scalar"},
        {"models__heads": "from .. import judges"},
        {"models__hf__config": "from ... import judges", "models__hf": ""},
        {"models": "from ..judges import scalar", "models__heads": ""},
    ]
    for sources in upward:
        found = _broken(**sources)
        assert len(found) == 1 and "not below it" in found[0], (sources, found)


def test_unknown_rooms_are_found():
    assert "has no layer" in _broken(helpers="import os")[0]
    assert "not below it" in _broken(stages__sft="from prl_jax import helpers")[0]


def test_jax_in_the_report_is_found_even_through_other_modules():
    assert _broken(reporting__figures="import matplotlib\nfrom prl_jax.metrics import read_metrics", metrics="") == []
    assert "reaches jax" in _broken(reporting__figures="import jax.numpy as jnp")[0]
    through = _broken(
        reporting__figures="from prl_jax.metrics import f", metrics="from prl_jax.types import g", types="import jax"
    )
    assert through == ["prl_jax.reporting.figures reaches jax"]
    parent = _broken(
        reporting__figures="from prl_jax.evaluation.win_rate import f",
        evaluation="import flax",
        evaluation__win_rate="",
    )
    assert parent == ["prl_jax.reporting.figures reaches flax"]


def test_config_objects_below_training_are_found():
    assert "config objects stop" in _broken(judges__scalar="import ml_collections")[0]
    assert "config objects stop" in _broken(optim="from ml_collections import ConfigDict")[0]
    assert any("arrays only" in line for line in _broken(losses__ppo="from flax import nnx"))


def test_the_report_and_metrics_run_without_jax():
    modules = "prl_jax.metrics, prl_jax.evaluation, prl_jax.reporting"
    code = f"import sys, {modules}; print(sorted({{'jax', 'flax'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
