"""Whether two files of arrays hold the same."""

from pathlib import Path

import numpy as np

LIMIT = 1e-5
# Gradients of the generative judge, whose rows are the longest: on some CPUs they differ by 1.44e-5.
WIDER = ("generative/gradient: ", 1.5e-5)


def load(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays)


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Tokens are equal. Of losses, gradients and parameters the norm of the difference is at most `LIMIT` of the norm;
    a number that is a difference of others, like a loss around 0, is compared with 1. What is measured after an update
    has the rounding of all before it."""
    assert found.keys() == expected.keys() and len(expected) > 100
    wrong = {}
    for name, array in expected.items():
        other = found[name]
        assert other.shape == array.shape and other.dtype == array.dtype, name
        if name.endswith(": token"):
            np.testing.assert_array_equal(other, array, err_msg=name)
            continue
        scale, least = np.linalg.norm(array.astype(np.float64)), 1.0 if array.ndim == 0 else 1e-3
        limit = (10 if "/later " in name else 1) * (WIDER[1] if name.startswith(WIDER[0]) else LIMIT)
        difference = np.linalg.norm(other.astype(np.float64) - array)
        if not difference <= limit * max(scale, least):
            wrong[name] = (difference, scale)
    assert not wrong, wrong
