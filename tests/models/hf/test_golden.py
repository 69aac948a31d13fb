"""Logits that transformers computed for checkpoints whose weights follow from their names (parity/hf_golden.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_checkpoints import CASES, rows, write

from prl_jax.models import ScalarModel, from_hf
from prl_jax.types import TokenRows

FILES = sorted(Path(__file__).with_name("golden").glob("*.json"))
GOLDEN = {name: case for path in FILES for name, case in json.loads(path.read_text()).items()}


def test_every_family_and_option_has_a_golden_file():
    assert len(FILES) == 6 and set(CASES) < set(GOLDEN)
    assert sum(name.endswith("-reward") for name in GOLDEN) == 6
    assert sum(path.stat().st_size for path in FILES) < 200_000


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_transformers(name, tmp_path):
    model, case = from_hf(write(tmp_path, GOLDEN[name]["config"])), GOLDEN[name]
    tokens = jnp.asarray(rows(), jnp.int32)
    with jax.disable_jit():  # op by op: one case's ops are the next one's, so that nothing is compiled anew
        if isinstance(model, ScalarModel):
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            actual = model.score(TokenRows(tokens, positions, jnp.ones_like(tokens)))
        else:
            actual = model(tokens)[:, -3:]
    assert isinstance(model, ScalarModel) == name.endswith("-reward") and np.std(case["logits"]) > 0.05
    np.testing.assert_allclose(actual, case["logits"], atol=1e-4, rtol=0)
