"""A program that starts anew with a heap in huge pages, once."""

import os
import subprocess
import sys

import pytest

from prl_jax import process_setup

PROGRAM = """
import os, sys
from prl_jax.process_setup import _has_huge_pages, in_huge_pages
in_huge_pages()
began = open("/proc/self/environ", "rb").read().split(b"\\0") if sys.platform == "linux" else []
given = [part.decode() for part in began if part.startswith(b"GLIBC_TUNABLES=")]
print(sys.argv[1:], _has_huge_pages(), given, os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda path, argv: calls.append((path, argv, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "prl_jax", "run"])
    return calls


@pytest.mark.parametrize(("before", "after"), [("", ""), ("glibc.malloc.check=0", "glibc.malloc.check=0:")])
def test_a_program_starts_anew_once_and_tells_its_own_programs_nothing(monkeypatch, started, before, after):
    monkeypatch.setenv("GLIBC_TUNABLES", before)
    monkeypatch.setattr(process_setup, "_has_huge_pages", lambda: True)
    process_setup.in_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-m", "prl_jax", "run"], f"{after}glibc.malloc.hugetlb=1")]
    process_setup.in_huge_pages()
    assert len(started) == 1 and os.environ["GLIBC_TUNABLES"] == before


@pytest.mark.parametrize(
    ("told", "there"), [("glibc.malloc.hugetlb=2", True), ("glibc.malloc.hugetlb=0", True), ("", False)]
)
def test_what_the_user_has_set_stays_and_other_systems_go_on(monkeypatch, started, told, there):
    monkeypatch.setenv("GLIBC_TUNABLES", told)
    monkeypatch.setattr(process_setup, "_has_huge_pages", lambda: there)
    process_setup.in_huge_pages()
    assert not started and os.environ["GLIBC_TUNABLES"] == told


def test_the_arguments_arrive_and_the_heap_has_the_setting():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "a b", "--c"], env=environment, capture_output=True, text=True
    )
    given, now = (["GLIBC_TUNABLES=glibc.malloc.hugetlb=1"], "") if process_setup._has_huge_pages() else ([], None)
    assert done.stdout == f"{['a b', '--c']} {process_setup._has_huge_pages()} {given} {now}\n", done.stderr
