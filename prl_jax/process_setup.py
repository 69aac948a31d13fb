"""What a command tells its own process before anything else: quiet libraries, and a heap that keeps its pages."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings

from absl import logging

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


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
