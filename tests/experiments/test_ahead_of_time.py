"""The configs of real models for GPUs: every step function lowers at its real size, and the largest compile and fit.

Those for TPU slices are in test_pods.py, with the TPU compiler.
"""

import importlib.util
import json
from pathlib import Path

import jax
import pytest
from running import ROOT, on_virtual_devices

from prl_jax.artifacts.cards import read_card
from prl_jax.inputs.checks import check_config
from prl_jax.models import Decoder

pytestmark = pytest.mark.slow
MODELS = ROOT / "tests" / "configs" / "models"  # the config.json alone
TRAIN, UPDATE = "genrm/train_step", "pairwise_ppo/update"
# Config, its model's size in parameters, devices, bytes of each.
CASES = [
    ("qwen3_0_6b_lora_gpu", "qwen3_0_6b", 596e6, 1, 24e9),
    ("gemma3_4b_h100x8", "gemma3_4b", 3.88e9, 8, 80e9),
]
MARKS = {"qwen3_0_6b_lora_gpu": pytest.mark.long, "gemma3_4b_h100x8": pytest.mark.nightly}
# Lengths that a config takes from its data, where there are no data.
LENGTHS = {
    "qwen3_0_6b_lora_gpu": (
        "genrm.max_length=1536",
        "referee.max_length=1536",
        "huggingface.max_prompt=512",
        "huggingface.max_response=512",
    )
}
# More of them, by name, and their sizes.
SIZES = [case[:3] for case in CASES] + [
    ("llama3_2_1b_v5e_4x4", "llama3_2_1b", 1.236e9),
    ("llama3_8b_v5e_8x8", "llama3_8b", 8.03e9),
]


@pytest.mark.parametrize(
    ("name", "model", "parameters", "devices", "room"),
    [pytest.param(*case, id=case[0], marks=MARKS[case[0]]) for case in CASES],
)
def test_it_compiles_ahead_of_time_and_fits(name, model, parameters, devices, room):
    path = ROOT / "experiments" / f"{name}.py"
    arguments = f"{MODELS / model},pairs.jsonl"
    lengths = LENGTHS.get(name, ())
    script = Path(__file__).with_name("ahead_of_time.py")
    printed = on_virtual_devices(script, path, arguments, *lengths, TRAIN, UPDATE, devices=devices)
    rows = {row["function"]: row.get("bytes") for row in map(json.loads, printed.splitlines())}
    steps = {"prefill", "decode", "judge", "prepare", "update"}
    assert {f"pairwise_ppo/{step}" for step in steps} < set(rows) and TRAIN in rows
    # At least the parameters and, at most, what a device has.
    config = read_card(MODELS / model).config
    assert config.param_dtype == "bfloat16"
    for function in (TRAIN, UPDATE):
        assert 2 * parameters / devices < rows[function] < room, (function, rows[function])


@pytest.mark.parametrize(("name", "model", "parameters"), SIZES, ids=[size[0] for size in SIZES])
def test_its_model_has_the_size_it_says(name, model, parameters):
    shapes = jax.eval_shape(lambda: Decoder(read_card(MODELS / model).config, key=jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("name", [size[0] for size in SIZES] + ["own_model"])
def test_it_wants_a_model_and_pairs(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError, match="expected MODEL,PAIRS"):
        module.get_config("model")
    check_config(module.get_config(f"{MODELS / 'qwen3_0_6b'},pairs.jsonl"))
