"""Run by models/hf/test_load.py on eight virtual devices: a checkpoint goes straight to its shards, and back."""

import tempfile
from pathlib import Path

import hf_checkpoints
import jax
import numpy as np

from prl_jax.models import LOGICAL_AXES, from_gguf, from_hf, to_gguf, to_hf
from prl_jax.models.hf import read_config
from prl_jax.models.hf.files import Tensors
from prl_jax.sharding import make_mesh, tree_shardings
from prl_jax.tree import flatten


def check(folder: Path, config: dict, dtype: str) -> None:
    source = hf_checkpoints.write(folder / "source", config, dtype)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    read = Tensors.read

    def recorded(self, name, index=()):
        out = read(self, name, index)
        shapes.setdefault(name, []).append(out.shape)
        return out

    Tensors.read = recorded
    try:
        model = from_hf(source, mesh=mesh)
    finally:
        Tensors.read = read
    # Each part of a tensor is read once, though two devices hold it.
    assert set(shapes["model.layers.0.self_attn.q_proj.weight"]) == {(32, 16)}, shapes
    assert len(shapes["model.layers.0.self_attn.q_proj.weight"]) == 4
    assert shapes["model.embed_tokens.weight"] == [(20, 16)] * 4
    assert shapes["model.norm.weight"] == [(32,)]
    alone, shardings = flatten(from_hf(source)), flatten(tree_shardings(model, mesh, LOGICAL_AXES))
    for name, array in flatten(model).items():
        assert array.sharding == shardings[name] and array.dtype == dtype, name
        np.testing.assert_array_equal(np.asarray(array, np.float32), np.asarray(alone[name], np.float32), err_msg=name)
    to_hf(model, folder / "out", source=read_config(source))
    weights = "model.safetensors"
    with Tensors(source) as one, Tensors(folder / "out") as other:
        assert one.index.keys() == other.index.keys()
        for name in one.index:
            assert one.read(name).tobytes() == other.read(name).tobytes(), (weights, name)
    # The same by a file of llama.cpp, whose permuted rows and quantised blocks are cut as well.
    to_gguf(model, folder / "model.gguf", kind="q8_0", source=read_config(source))
    alone, cut = (flatten(from_gguf(folder / "model.gguf", mesh=where)) for where in (None, mesh))
    for name, array in cut.items():
        assert array.sharding == shardings[name], name
        np.testing.assert_array_equal(np.asarray(array), np.asarray(alone[name]), err_msg=name)


if __name__ == "__main__":
    assert jax.device_count() == 8
    for case, dtype in (("llama-head-dim", "bfloat16"), ("gemma3", "float32")):
        config = {**hf_checkpoints.CASES[case], "head_dim": 16}
        if "query_pre_attn_scalar" in config:
            config["query_pre_attn_scalar"] = 16  # which a file of llama.cpp can say
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), config, dtype)
    print("equal")
