"""Notebooks run from top to bottom, hold the outputs that they give, and define nothing that belongs into the package.

They are committed with outputs, so that they can be read without being run. Of pictures only the number is compared,
since matplotlib's versions draw differently; what a plot shows is printed beside it as well.
"""

import ast
import base64
import builtins
import importlib
import io
import os
import re
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import prl_jax

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LIBRARIES = {"jax", "matplotlib", "numpy", "prl_jax"}
MAX_BYTES = 1_000_000
SECONDS_A_CELL = 300  # against a cell that hangs; nothing here is a timed assertion
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
STALE = "the stored output is not what the notebook gives; run: jupyter execute --inplace "

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode, stream: str = "stdout") -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == stream)


def images(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    """Pictures of a cell's output, `[height, width, 4]` in [0, 1]."""
    found = [out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png") for png in found]


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that the source binds, in whatever scope."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def import_violations(tree: ast.AST) -> list[str]:
    """Imports of other libraries, or of what a `prl_jax` module doesn't list in `__all__`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"imports {a.name}" for a in node.names if a.name.split(".")[0] not in LIBRARIES - {"prl_jax"}]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module.split(".")[0] not in LIBRARIES:
                found.append(f"imports {node.module}")
            elif node.module.split(".")[0] == "prl_jax":
                public = getattr(importlib.import_module(node.module), "__all__", ())
                found += [f"{node.module}.{a.name} is not public" for a in node.names if a.name not in public]
    return found


def violations(sources: list[str]) -> list[str]:
    """What is wrong with the code cells of a notebook, the first of which is its setup."""
    trees = [ast.parse(source) for source in sources]
    shared = bound_names(trees[0]) | set(dir(builtins))
    found = []
    for number, tree in enumerate(trees, 1):
        kinds = [type(node) for node in ast.walk(tree)]
        found += [f"cell {number} {line}" for line in import_violations(tree)]
        if number > 1 and (ast.Import in kinds or ast.ImportFrom in kinds):
            found.append(f"cell {number} imports outside the setup")
        if ast.ClassDef in kinds or (number == 1 and ast.FunctionDef in kinds):
            found.append(f"cell {number} defines what belongs into the package")
        loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in sorted(loaded - bound_names(tree) - shared):
            found.append(f"cell {number} takes {name} from another cell")
    return found


def test_there_are_notebooks():
    assert "losses" in [path.stem for path in NOTEBOOKS]


@each_notebook
def test_the_file_is_valid_small_and_executed_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]


@each_notebook
def test_it_defines_nothing_reusable_and_uses_only_what_is_public(path):
    assert violations([cell.source for cell in code_cells(nbformat.read(path, as_version=4))]) == []


def test_violations_are_found():
    setup = "import jax\nfrom prl_jax.losses import bt_loss"
    assert violations([setup, "def f(x):\n    return bt_loss(x, x)\n\nprint(f(jax.numpy.ones(1)))"]) == []
    broken = {
        "imports optax": ["import optax"],
        "imports os.path": ["from os.path import join"],
        "imports prl_jax.losses.preference": ["import prl_jax.losses.preference"],
        "soft_cross_entropy is not public": ["from prl_jax.losses.preference import soft_cross_entropy"],
        "imports outside the setup": [setup, "import numpy as np"],
        "belongs into the package": ["def helper():\n    pass"],
        "defines what": [setup, "class Judge:\n    pass"],
        "takes f from another cell": [setup, "def f():\n    pass", "f()"],
        "takes x from another cell": [setup, "x = 1", "print(x)"],
    }
    for expected, sources in broken.items():
        found = violations(sources)
        assert len(found) == 1 and expected in found[0], (expected, found)


LONG = ("direct",)  # compiles many small loops
each_run = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (path.stem in LONG)) for path in NOTEBOOKS]
)


@pytest.mark.slow
@each_run
def test_it_runs_and_gives_what_it_stores(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    kernel = {
        "PYTHONPATH": str(Path(prl_jax.__file__).parents[1]),  # the package under test, wherever the kernel starts
        "IPYTHONDIR": str(tmp_path),  # no start-up files or history of whoever runs the tests
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JAX_PLATFORMS": "cpu",
    }
    client = NotebookClient(
        fresh, timeout=SECONDS_A_CELL, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, **kernel})

    assert len(code_cells(fresh)) > 1
    for before, after in zip(code_cells(stored), code_cells(fresh), strict=True):
        where = f"{path.name}, cell {after.id}: "
        assert printed(after, "stderr") == "", where + "it warns"
        assert NUMBER.sub("#", printed(before)) == NUMBER.sub("#", printed(after)), where + STALE + str(path)
        for old, new in zip(NUMBER.findall(printed(before)), NUMBER.findall(printed(after)), strict=True):
            last_digit = 10.0 ** -len(old.partition(".")[2])
            assert abs(float(old) - float(new)) < 2.5 * last_digit, where + STALE + str(path)
        assert len(images(after)) == len(images(before)) == after.source.count("plt.show()"), where + "figures"
        for image in images(before) + images(after):
            assert np.ptp(image[..., :3]) > 0.5, where + "an empty figure"
    assert sum(len(images(cell)) for cell in code_cells(fresh)) > 0
