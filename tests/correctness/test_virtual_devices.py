"""Rows 12, 13 and 17 of the correctness list on eight devices: data, parameters and matrices cut in two each."""

from pathlib import Path

import numpy as np
import pytest
from running import on_virtual_devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one PPO update gave on one device, and on eight in two microbatches."""
    path = tmp_path_factory.mktemp("devices") / "runs.npz"
    on_virtual_devices(Path(__file__).with_name("sharded_update.py"), path)
    with np.load(path) as arrays:
        sides = [{k[2:]: arrays[k] for k in arrays if k.startswith(side)} for side in ("1:", "8:")]
        return *sides, float(arrays["clip_norm"])


def test_row_12_whitening_is_over_the_global_batch(runs):
    alone, together, _ = runs
    mask = alone["mask"]
    for run in (alone, together):
        valid = run["advantages"][mask]
        np.testing.assert_allclose([valid.mean(), valid.std()], [0.0, 1.0], atol=1e-4)
    np.testing.assert_allclose(together["advantages"], alone["advantages"], atol=1e-4)
    np.testing.assert_allclose(together["returns"], alone["returns"], atol=1e-4)


def test_row_13_devices_add_sums_and_counts_before_anyone_divides(runs):
    alone, together, _ = runs
    assert alone.keys() == together.keys() and alone["metrics/clip_fraction"] > 0.1
    for name in alone:
        if name.startswith("metrics/"):
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=1e-6, err_msg=name)
        if name.startswith(("policy/", "critic/")):
            scale = np.abs(alone[name]).max()
            np.testing.assert_allclose(together[name], alone[name], atol=1e-3 * scale + 1e-9, err_msg=name)


def test_row_17_the_norm_is_that_of_the_whole_sharded_tree(runs):
    """The first moment is a tenth of the clipped gradient, whose norm is the limit."""
    *sides, clip_norm = runs
    for run in sides:
        for part, norm in (("policy/", "grad_norm"), ("critic/", "critic_grad_norm")):
            assert run[f"metrics/{norm}"] > 2 * clip_norm
            squares = sum(np.square(x).sum() for name, x in run.items() if name.startswith(part))
            np.testing.assert_allclose(np.sqrt(squares), 0.1 * clip_norm, rtol=1e-3)
