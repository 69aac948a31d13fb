"""Breaks the details of the correctness list one by one and shows that their tests notice.

    .venv/bin/python tests/mutants/run.py [--jobs N] [WORD ...]

Each file row_NN.toml belongs to one row of the list, and each table in it is a mutant: one way to break that detail.

    wrong     what is then wrong, as a sentence
    function  whose source is changed: `module:name` or `module:Class.method`; a class or a module's variable too
    old       what stands there once, however it is broken into lines
    new       what takes its place

A function that has moved to another module is found by its name, if only one module has that name.

A mutant is applied to a copy, and the tests in tests/correctness that are named after its row have to fail there, by an
assertion. Words choose the mutants whose names (such as 06_old_at_one) hold one of them. Exit code 1: a mutant survived
or does not apply, or the tests fail without any.
"""

import argparse
import ast
import concurrent.futures
import itertools
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPIED = ("prl_jax", "tests", "pyproject.toml")
ROW_TESTS = "tests/correctness"
LIMIT_S = 900


class Mutant(NamedTuple):
    """One way to break the detail of a row; the module's docstring says what the fields hold."""

    row: int
    name: str
    wrong: str
    function: str
    old: str
    new: str

    @property
    def title(self) -> str:
        return f"{self.row:02d}_{self.name}"


class Source(NamedTuple):
    """Where a definition stands: the text of a file from `start` to `end`."""

    path: str
    start: int
    end: int


class Result(NamedTuple):
    mutant: str
    verdict: str  # killed, SURVIVED, ERROR
    seconds: float
    detail: str  # the test that noticed, or what went wrong


def mutants(folder: Path = HERE) -> list[Mutant]:
    """All mutants, in the order of rows and names."""
    found = []
    for path in sorted(folder.glob("row_*.toml")):
        for name, fields in tomllib.loads(path.read_text()).items():
            found.append(Mutant(row_of(path.stem), name, **fields))
    return sorted(found)


def row_of(name: str) -> int:
    """The row of the list that a file of mutants breaks or a test protects."""
    return int(re.match(r"(?:test_)?row_(\d\d)(?:_|$)", name)[1])


def definitions(text: str, names: list[str]) -> Iterator[tuple[int, int]]:
    """The places of a text that define a qualified name, decorators included."""
    lines = [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]

    def below(node: ast.AST, names: list[str]) -> Iterator[ast.stmt]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    bound = {child.name}
                case ast.Assign():
                    bound = {target.id for target in child.targets if isinstance(target, ast.Name)}
                case ast.AnnAssign(target=ast.Name()):
                    bound = {child.target.id}
                case _:
                    continue
            if names[0] in bound:
                yield from below(child, names[1:]) if len(names) > 1 else [child]

    for node in below(ast.parse(text), names):
        first = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
        yield lines[first - 1], lines[node.end_lineno]


def locate(root: Path, function: str) -> Source:
    """Finds `module:name` below a root: in the module, or else in the one module of the package that defines the name.

    Raises:
      ValueError: the name is defined nowhere, or in several places.
    """
    module, name = function.split(":")
    stem = module.replace(".", "/")
    named = [root / f"{stem}.py", root / stem / "__init__.py"]
    for files in (named, sorted((root / module.split(".")[0]).rglob("*.py"))):
        found = [
            Source(str(path.relative_to(root)), *place)
            for path in files
            if path.is_file()
            for place in definitions(path.read_text(), name.split("."))
        ]
        if len(found) > 1:
            raise ValueError(
                f"{name} is defined in {', '.join(source.path for source in found)}: name the module of one"
            )
        if found:
            return found[0]
    raise ValueError(f"{name} is defined nowhere in {module.split('.')[0]}: name the function that does its work now")


def pattern(code: str) -> re.Pattern[str]:
    """Matches a piece of code however it is spread over lines, with or without commas before closing brackets."""
    words = re.findall(r"\w+|[^\w\s]", re.sub(r",(?=\s*[])}])", "", code))
    closing = {bracket: rf",?\s*{re.escape(bracket)}" for bracket in ")]}"}
    whole = [rf"\b{word}\b" if word.isalnum() or "_" in word else closing.get(word, re.escape(word)) for word in words]
    return re.compile(r"\s*".join(whole))


def mutated(root: Path, mutant: Mutant) -> tuple[str, str]:
    """The path of the file that a mutant changes, and its text, changed.

    Raises:
      ValueError: its function is not found, or its old code stands there not at all or several times.
    """
    source = locate(root, mutant.function)
    text = (root / source.path).read_text()
    matches = list(pattern(mutant.old).finditer(text, source.start, source.end))
    if len(matches) != 1:
        raise ValueError(f"its code stands {len(matches)} times in {mutant.function} ({source.path}), expected once")
    start, end = matches[0].span()
    line = text[text.rfind("\n", 0, start) + 1 : start]
    indent = line[: len(line) - len(line.lstrip())]
    new = mutant.new.replace("\n", "\n" + indent)
    return source.path, text[:start] + new + text[end:]


def run_tests(root: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs row tests in a copy, without checks of annotations, as a user's run has none."""
    environment = {
        **os.environ,
        "COLUMNS": "400",
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        # What a mutant leaves alone compiles once.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=--import-mode=importlib", ROW_TESTS, *options]
    return subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S
    )


def judge(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Verdict and detail: a test has to fail because it noticed, and not because the mutant broke the program."""
    if done.returncode == 0:
        return "SURVIVED", "its row's tests pass"
    found = re.search(r"^(FAILED|ERROR) \S*?::(\S+?)(?:\[.*?\])? - (.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        return "ERROR", f"pytest ended with {done.returncode}: {done.stdout[-600:]}"
    kind, test, reason = found.groups()
    if kind == "FAILED" and reason.startswith(("assert ", "AssertionError", "Failed: DID NOT RAISE")):
        return "killed", test
    return "ERROR", f"{test} did not get to its assertion: {reason}"


def run_mutant(root: Path, cache: Path, mutant: Mutant) -> Result:
    """Applies a mutant to a copy, runs the tests of its row there, and takes it back."""
    start = time.monotonic()
    try:
        path, text = mutated(root, mutant)
    except ValueError as error:
        return Result(mutant.title, "ERROR", 0.0, str(error))
    before = (root / path).read_text()
    try:
        (root / path).write_text(text)
        verdict, detail = judge(run_tests(root, cache, "-x", "-k", f"row_{mutant.row:02d}"))
    except subprocess.TimeoutExpired:
        verdict, detail = "ERROR", f"its row's tests take more than {LIMIT_S} s"
    finally:
        (root / path).write_text(before)
    return Result(mutant.title, verdict, time.monotonic() - start, detail)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="parts of the names of mutants; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    args = parser.parse_args()
    chosen = [m for m in mutants() if not args.words or any(word in m.title for word in args.words)]
    if not chosen:
        parser.error(f"no mutant is named like {' or '.join(args.words)}")
    with tempfile.TemporaryDirectory(prefix="prl_mutants_") as folder:
        return run_all(Path(folder), chosen, args.jobs)


def run_all(folder: Path, chosen: list[Mutant], jobs: int) -> int:
    start, cache, free = time.monotonic(), folder / "cache", queue.SimpleQueue()
    for i in range(jobs):
        copy = folder / str(i)
        for name in COPIED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
        free.put(copy)
    rows = sorted({mutant.row for mutant in chosen})
    done = run_tests(folder / "0", cache, "-n", str(jobs), "-k", " or ".join(f"row_{row:02d}" for row in rows))
    if done.returncode:
        print(done.stdout)
        print("The tests fail without any mutant.")
        return 1
    print(f"{'-':<44} {'pass':<9} {time.monotonic() - start:5.0f} s  rows {', '.join(map(str, rows))}", flush=True)

    def one(mutant: Mutant) -> Result:
        root = free.get()
        try:
            return run_mutant(root, cache, mutant)
        finally:
            free.put(root)

    results = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(one, mutant) for mutant in chosen]):
            result = future.result()
            results.append(result)
            print(f"{result.mutant:<44} {result.verdict:<9} {result.seconds:5.0f} s  {result.detail}", flush=True)
    count = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("killed", "SURVIVED", "ERROR")}
    print(", ".join(f"{n} {verdict}" for verdict, n in count.items()), f"in {time.monotonic() - start:.0f} s")
    return int(count["killed"] < len(results))


if __name__ == "__main__":
    sys.exit(main())
