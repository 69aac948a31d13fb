"""Compiled programs are kept on disk, so that the same command compiles once."""

from __future__ import annotations

import os
import platform
import re
import sys
import zlib
from pathlib import Path

import filelock
import jax

from prl_jax.files import local_path, user_cache

MAX_BYTES = 4 * 2**30  # then the least recently used go
_MIN_COMPILE_SECONDS = 0.2


def use_compilation_cache(directory: str | None) -> None:
    """Turns on JAX's persistent compilation cache, unless the user has set JAX up otherwise.

    Args:
      directory: "" for no cache, None for a folder of the user's. A folder that cannot be written is no error: one line
        says that nothing is kept.
    """
    if directory:
        local_path(directory)
    if directory == "" or not jax.config.jax_enable_compilation_cache:
        return
    if directory is None and jax.config.jax_compilation_cache_dir:
        return
    path = (default_directory() if directory is None else Path(directory)).absolute() / host()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        line = f"{existing}: cannot keep compiled programs there; name another --compilation_cache_dir"
        print(f"prl: {line}", file=sys.stderr)
        return
    if path.is_dir():
        _drop_half_written(path)
    jax.config.update("jax_compilation_cache_dir", str(path))  # JAX makes it with the first program
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def default_directory() -> Path:
    """The user's cache folder."""
    return user_cache() / "jax"


def host() -> str:
    """The kind of this machine. Programs for the CPU use whatever instructions it has, and JAX's names of programs
    don't tell; home folders are shared between machines."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        flags = [platform.processor()]
    return f"{platform.machine()}-{zlib.crc32(' '.join(sorted(set(flags))).encode()):08x}"


def _drop_half_written(path: Path) -> None:
    """A killed process may leave a program without the file that tells its last use: JAX would write no more."""
    try:
        with filelock.FileLock(path / ".lockfile", timeout=10):
            for program in path.glob("*-cache"):
                if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                    program.unlink()
    except (OSError, filelock.Timeout):
        pass  # then this run compiles what it needs
