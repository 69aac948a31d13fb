"""The words of the package: docstrings are sentences."""

import ast
from pathlib import Path

import prl_jax

ROOT = Path(prl_jax.__file__).parent
RIDDLES = ("Of", "What")  # the subject stands elsewhere, or nowhere


def riddles_in(source: str) -> list[str]:
    """Returns the docstrings of modules, classes, functions and names that open with a word of `RIDDLES`."""
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(getattr(node, "body", None), list)]
    texts = [line.value for body in bodies for line in body if isinstance(line, ast.Expr)]
    texts = [text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str)]
    return [text for text in texts if text.split(maxsplit=1)[:1] and text.split(maxsplit=1)[0] in RIDDLES]


def test_no_docstring_opens_with_a_riddle():
    found = {str(path.relative_to(ROOT)): riddles_in(path.read_text()) for path in ROOT.rglob("*.py")}
    assert not {name: texts for name, texts in found.items() if texts}


def test_riddles_are_found_wherever_a_docstring_stands():
    riddle, sentence = '"""What it is."""', '"""Returns it."""'
    assert (
        riddles_in(f"{riddle}\nx = 1\n{riddle}\nclass A:\n    {riddle}\n    def f(self):\n        {riddle}\n")
        == ["What it is."] * 4
    )
    assert riddles_in(f"def f():\n    {sentence}\n    return 'What it is.'\n") == []
