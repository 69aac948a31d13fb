"""Pages of documentation as data: their sections, and the code in them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """`docs/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_page", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections(page: str) -> dict[str, str]:
    """The text below each heading of a Markdown file, up to the next heading of any level."""
    parts = re.split(r"^#+ (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code(text: str, language: str = "python") -> list[str]:
    """The blocks of one language in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_block(block: str, **names: object) -> dict[str, object]:
    """Runs one block, and returns the names that it has bound."""
    namespace = {"__name__": "example", **names}
    exec(compile(block, "a block of a page", "exec"), namespace)
    return namespace


def run(text: str) -> dict[str, object]:
    """Runs the Python blocks of a text, one after the other, and returns the names that they have bound."""
    namespace: dict[str, object] = {}
    for block in code(text):
        namespace = run_block(block, **namespace)
    return namespace
