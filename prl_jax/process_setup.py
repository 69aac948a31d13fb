"""What a command does with its own process before anything else.

It checks that flax and JAX go together, quiets libraries, and has the heap keep its pages.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from importlib import metadata

from absl import logging

from prl_jax.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def check_versions() -> None:
    """Refuses releases of flax and JAX that cannot be imported together, before anything imports them.

    An installation of prl_jax never ends with such a pair (pyproject.toml); a later one of something else may.

    Raises:
      UserError: flax is older than 0.12.9 and jax is 0.11.1 or newer.
    """
    flax, jax = metadata.version("flax"), metadata.version("jax")
    if _release(flax) < (0, 12, 9) and _release(jax) >= (0, 11, 1):
        raise UserError(f"flax {flax} cannot be imported with jax {jax}; run: pip install --upgrade flax")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def quiet() -> None:
    """Libraries keep to themselves: what they log is not for the user's terminal, which shows the error itself."""
    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def keep_heap() -> None:
    """Tells glibc to keep freed memory instead of handing it back to the kernel after every step.

    XLA's CPU backend allocates a step's buffers anew each time; clearing and mapping fresh pages took half of the time
    of a training step of the built-in configs. Other C libraries have no such call, and nothing happens there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    largest = 2**31 - 1
    mallopt(_M_MMAP_THRESHOLD, largest)
    mallopt(_M_TRIM_THRESHOLD, largest)
    mallopt(_M_ARENA_MAX, 1)  # the arenas of further threads are too small for such buffers and map each one anew
