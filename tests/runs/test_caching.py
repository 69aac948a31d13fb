"""Where compiled programs are kept, and that whatever is there does no harm."""

import os
import subprocess
import sys

import jax
import pytest
from running import ROOT, environment_of

from prl_jax.runs import caching
from prl_jax.runs.caching import MAX_BYTES, default_directory, host, use_compilation_cache

OPTIONS = ("enable_compilation_cache", "compilation_cache_dir", "compilation_cache_max_size")
OPTIONS += ("persistent_cache_min_compile_time_secs",)


@pytest.fixture
def on():
    """JAX as it comes, with the cache allowed and nothing said about it; the tests have it off."""
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in OPTIONS}
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def folder() -> str | None:
    return jax.config.jax_compilation_cache_dir


def test_the_users_cache_folder_is_the_default_and_made_when_needed(on, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache(None)
    assert folder() == str(tmp_path / "prl_jax" / "jax" / host()) and list(tmp_path.iterdir()) == []
    assert jax.config.jax_compilation_cache_max_size == MAX_BYTES
    assert capfd.readouterr() == ("", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_directory() == tmp_path / "home" / ".cache" / "prl_jax" / "jax"


def test_it_can_be_turned_off_and_elsewhere(on, tmp_path):
    use_compilation_cache("")
    assert folder() is None
    use_compilation_cache(str(tmp_path / "here"))
    assert folder() == str(tmp_path / "here" / host())


def test_what_the_user_told_jax_stays(on, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_compilation_cache(None)
    assert folder() == str(tmp_path)
    jax.config.update("jax_enable_compilation_cache", False)
    use_compilation_cache(str(tmp_path / "other"))
    assert folder() == str(tmp_path)


def test_a_folder_that_cannot_be_written_is_told_in_one_line(on, tmp_path, capfd, monkeypatch):
    (tmp_path / "file").touch()
    use_compilation_cache(str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(caching.os, "access", lambda path, mode: False)
    use_compilation_cache(str(tmp_path / "cache"))
    lines = capfd.readouterr().err.splitlines()
    assert folder() is None and len(lines) == 2
    assert lines[0].startswith(f"prl: {tmp_path}/file: cannot keep compiled programs there; name another --compil")


def test_what_a_killed_process_left_half_is_dropped(on, tmp_path):
    path = tmp_path / host()
    path.mkdir()
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (path / name).write_bytes(bytes(8))
    use_compilation_cache(str(tmp_path))
    assert {p.name for p in path.iterdir() if p.name[0] != "."} == {"whole-cache", "whole-atime"}


def test_machines_of_another_kind_have_another_folder(monkeypatch):
    here = host()
    assert here == host()
    monkeypatch.setattr(caching.Path, "read_text", lambda _: "flags\t\t: fpu sse9\n")
    assert host() != here


SCRIPT = """
import sys, jax, jax.numpy as jnp
from prl_jax.runs.caching import use_compilation_cache
use_compilation_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
assert float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(5))) > 4
print(len(hits))
"""


@pytest.mark.slow
def test_programs_come_back_and_damaged_ones_do_no_harm(tmp_path):
    environment = {**environment_of(1), "JAX_ENABLE_COMPILATION_CACHE": "true"}

    def hits() -> int:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        # As the command line, without an option about warnings.
        warned = [line for line in done.stderr.splitlines() if "UserWarning" in line]
        assert len(warned) == done.stderr.count("Error reading persistent compilation cache"), done.stderr
        return int(done.stdout)

    assert (hits(), hits() > 0) == (0, True)
    entries = list((tmp_path / host()).glob("*-cache"))
    assert entries
    for path in entries:
        os.truncate(path, path.stat().st_size // 2)
    assert hits() == 0
