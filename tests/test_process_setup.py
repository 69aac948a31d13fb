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
    """What is executed, and with which setting; execution comes back here, as it does where it fails."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda path, argv: calls.append((path, argv, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "prl_jax", "run", "--x"])
    monkeypatch.setattr(sys, "argv", ["prl_jax", "run", "--x"])
    monkeypatch.setattr(process_setup, "_has_huge_pages", lambda: True)
    return calls


@pytest.mark.parametrize(("before", "added"), [(None, ""), ("glibc.malloc.check=0", "glibc.malloc.check=0:")])
def test_a_program_starts_anew_with_the_setting(monkeypatch, started, before, added):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    process_setup.in_huge_pages()
    arguments = [sys.executable, "-m", "prl_jax", "run", "--x"]
    assert started == [(sys.executable, arguments, f"{added}glibc.malloc.hugetlb=1")]
    assert os.environ.get("GLIBC_TUNABLES") == before and process_setup._STARTED_ANEW not in os.environ


def test_it_does_so_once_even_where_the_setting_is_lost_on_the_way(monkeypatch, started):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv(process_setup._STARTED_ANEW, "glibc.malloc.check=0")
    process_setup.in_huge_pages()
    assert not started and os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"
    assert process_setup._STARTED_ANEW not in os.environ  # programs that this one starts are not told


@pytest.mark.parametrize(
    ("told", "exists", "argv"),
    [
        ("glibc.malloc.hugetlb=2", True, ["prl_jax", "run", "--x"]),
        ("glibc.malloc.hugetlb=0", True, ["prl_jax", "run", "--x"]),
        ("", False, ["prl_jax", "run", "--x"]),
        ("", True, ["prl_jax", "judge"]),  # in a notebook: the kernel was started with other arguments
    ],
)
def test_what_the_user_has_set_and_where_it_cannot_be_stays(monkeypatch, started, told, exists, argv):
    monkeypatch.setenv("GLIBC_TUNABLES", told)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(process_setup, "_has_huge_pages", lambda: exists)
    process_setup.in_huge_pages()
    assert not started and os.environ["GLIBC_TUNABLES"] == told


def test_the_arguments_arrive_and_the_heap_has_the_setting():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "a b", "--c"], env=environment, capture_output=True, text=True
    )
    given = ["GLIBC_TUNABLES=glibc.malloc.hugetlb=1"] if process_setup._has_huge_pages() else []
    assert done.stdout == f"{['a b', '--c']} {process_setup._has_huge_pages()} {given} None\n", done.stderr
