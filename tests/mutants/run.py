"""Breaks the details of the correctness list one by one and shows that their tests notice.

    .venv/bin/python tests/mutants/run.py [--jobs N] [WORD ...]

Each patch in this folder breaks one detail of prl_jax; the number that its name begins with is the row of the list. It
is applied to a copy, and the tests in tests/correctness that are named after the row have to fail there, by an
assertion. Words choose the patches whose names hold one of them. Exit code 1: a patch survived or does not apply, or
the tests fail without any.
"""

import argparse
import concurrent.futures
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPIED = ("prl_jax", "tests", "pyproject.toml")
ROW_TESTS = "tests/correctness"
LIMIT_S = 900


class Change(NamedTuple):
    """One hunk: the lines that it expects, and those it puts in their place."""

    path: str
    old: str
    new: str


class Result(NamedTuple):
    patch: str
    verdict: str  # killed, SURVIVED, ERROR
    seconds: float
    detail: str  # the test that noticed, or what went wrong


def patches() -> list[Path]:
    return sorted(HERE.glob("*.patch"))


def row_of(name: str) -> int:
    """The row of the list that a patch breaks or a test protects."""
    return int(re.match(r"(?:test_row_)?(\d\d)_", name)[1])


def read_patch(path: Path) -> list[Change]:
    """The hunks of a unified diff."""
    changes, target = [], ""
    for line in path.read_text().splitlines(keepends=True):
        if line.startswith("+++ b/"):
            target = line[len("+++ b/") :].strip()
        elif line.startswith("@@"):
            changes.append(Change(target, "", ""))
        elif changes and line[0] in " +-" and not line.startswith("---"):
            where, old, new = changes[-1]
            changes[-1] = Change(where, old + line[1:] * (line[0] != "+"), new + line[1:] * (line[0] != "-"))
    return changes


def patched(root: Path, patch: Path) -> dict[str, str]:
    """The texts of the files that a patch changes, changed.

    Raises:
      ValueError: lines that it expects stand nowhere, or in several places; line numbers don't matter.
    """
    texts: dict[str, str] = {}
    for path, old, new in read_patch(patch):
        text = texts[path] if path in texts else (root / path).read_text()
        if text.count(old) != 1:
            raise ValueError(f"its lines stand {text.count(old)} times in {path}, expected once: write it anew")
        texts[path] = text.replace(old, new)
    if not texts:
        raise ValueError("holds no change")
    return texts


def run_tests(root: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs row tests in a copy, without checks of annotations, as a user's run has none."""
    environment = {
        **os.environ,
        "COLUMNS": "400",
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        # What a patch leaves alone compiles once.
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
    """Verdict and detail: a test has to fail because it noticed, and not because the patch broke the program."""
    if done.returncode == 0:
        return "SURVIVED", "its row's tests pass"
    found = re.search(r"^(FAILED|ERROR) \S*?::(\S+?)(?:\[.*?\])? - (.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        return "ERROR", f"pytest ended with {done.returncode}: {done.stdout[-600:]}"
    kind, test, reason = found.groups()
    if kind == "FAILED" and reason.startswith(("assert ", "AssertionError", "Failed: DID NOT RAISE")):
        return "killed", test
    return "ERROR", f"{test} did not get to its assertion: {reason}"


def run_mutant(root: Path, cache: Path, patch: Path) -> Result:
    """Applies a patch to a copy, runs the tests of its row there, and takes the patch back."""
    start = time.monotonic()
    try:
        texts = patched(root, patch)
    except (OSError, ValueError) as error:
        return Result(patch.stem, "ERROR", 0.0, str(error))
    before = {path: (root / path).read_text() for path in texts}
    try:
        for path, text in texts.items():
            (root / path).write_text(text)
        verdict, detail = judge(run_tests(root, cache, "-x", "-k", f"row_{row_of(patch.stem):02d}"))
    except subprocess.TimeoutExpired:
        verdict, detail = "ERROR", f"its row's tests take more than {LIMIT_S} s"
    finally:
        for path, text in before.items():
            (root / path).write_text(text)
    return Result(patch.stem, verdict, time.monotonic() - start, detail)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="parts of the names of patches; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    args = parser.parse_args()
    chosen = [p for p in patches() if not args.words or any(word in p.stem for word in args.words)]
    if not chosen:
        parser.error(f"no patch is named like {' or '.join(args.words)}")
    with tempfile.TemporaryDirectory(prefix="prl_mutants_") as folder:
        return run_all(Path(folder), chosen, args.jobs)


def run_all(folder: Path, chosen: list[Path], jobs: int) -> int:
    start, cache, free = time.monotonic(), folder / "cache", queue.SimpleQueue()
    for i in range(jobs):
        copy = folder / str(i)
        for name in COPIED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
        free.put(copy)
    rows = sorted({row_of(patch.stem) for patch in chosen})
    done = run_tests(folder / "0", cache, "-n", str(jobs), "-k", " or ".join(f"row_{row:02d}" for row in rows))
    if done.returncode:
        print(done.stdout)
        print("The tests fail without any patch.")
        return 1
    print(f"{'-':<44} {'pass':<9} {time.monotonic() - start:5.0f} s  rows {', '.join(map(str, rows))}", flush=True)

    def one(patch: Path) -> Result:
        root = free.get()
        try:
            return run_mutant(root, cache, patch)
        finally:
            free.put(root)

    results = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(one, patch) for patch in chosen]):
            result = future.result()
            results.append(result)
            print(f"{result.patch:<44} {result.verdict:<9} {result.seconds:5.0f} s  {result.detail}", flush=True)
    count = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("killed", "SURVIVED", "ERROR")}
    print(", ".join(f"{n} {verdict}" for verdict, n in count.items()), f"in {time.monotonic() - start:.0f} s")
    return int(count["killed"] < len(results))


if __name__ == "__main__":
    sys.exit(main())
