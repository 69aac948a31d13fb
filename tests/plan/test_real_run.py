"""A plan lowers and compiles the very functions that a run does: on 8 devices, both are made and compared."""

import json
from pathlib import Path

import pytest
from running import on_virtual_devices

pytestmark = pytest.mark.long
STEPS = {
    *(f"{stage}/{name}" for stage in ("sft", "bt", "genrm") for name in ("train_step", "validation")),
    *(f"anchors/{name}" for name in ("prefill", "decode", "judge")),
    *(f"pairwise_ppo/{name}" for name in ("prefill", "decode", "judge", "prepare", "warm_up", "update")),
    *(f"pairwise_ppo/evaluation_{name}" for name in ("prefill", "decode", "judge")),
    *(f"evaluation/{name}" for name in ("bt_judge", "genrm_judge", "prefill", "decode", "log_ratio")),
}
# What a run compiles besides: making and checking models.
BESIDES = {"init_fn", "<lambda>", "_all_sums", "_all_finite", "copy", "scatter-add", "gather", "slice"}
# How fast a device is, before the first stage.
BESIDES |= {"broadcast_in_dim", "convert_element_type", "matmul", "softmax", "sum"}
SMALL = 1_000  # bytes of arguments or results of what is left: keys, metrics, orders of rows


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("real")
    on_virtual_devices(Path(__file__).with_name("real_run.py"), directory)
    return json.loads((directory / "found.json").read_text())


def test_every_function_has_the_jaxpr_of_the_run(found):
    lowered = {tuple(one) for one in found["lowered"]}
    assert {step["step"] for step in found["planned"]} == STEPS
    for step in found["planned"]:
        (one,) = step["lowered"]
        assert tuple(one) in lowered, step["step"]
    assert len({step["lowered"][0][1] for step in found["planned"]}) > 12  # digests tell functions apart


def test_every_function_has_the_memory_of_the_run(found):
    """Arguments, results, what they share, temporary arrays and the peak, byte for byte."""
    compiled: dict[str, list[list[int]]] = {}
    for name, sizes in found["compiled"]:
        compiled.setdefault(name, []).append(sizes)
    for step in found["planned"]:
        name = f"jit({step['lowered'][0][0]})"
        assert step["sizes"] in compiled[name], (step["step"], step["sizes"], compiled[name])


def test_the_parts_add_up_to_what_the_run_compiled(found):
    for step in found["planned"]:
        arguments, results, shared, temporary, _ = step["sizes"]
        memory = step["memory"]
        known = sum(memory[key] for key in ("parameters", "optimizer", "judge", "cache", "rows"))
        assert memory["peak"] == known + temporary
        if step["step"].endswith("train_step"):  # it reads all that its stage holds
            assert known == pytest.approx(arguments + results - shared, abs=64), step["step"]
        else:
            assert known >= arguments
    (update,) = [step for step in found["planned"] if step["step"] == "pairwise_ppo/update"]
    assert set(update["held"]) == {"policy", "policy optimizer", "critic", "critic optimizer", "reference", "judge"}
    # Adam: two moments of each parameter.
    assert update["held"]["policy optimizer"] == pytest.approx(2 * update["held"]["policy"], abs=32)


def test_no_large_function_of_the_run_is_missing(found):
    planned = {step["lowered"][0][0] for step in found["planned"]}
    large = {name[4:-1] for name, (arguments, results, *_) in found["compiled"] if max(arguments, results) > SMALL}
    assert large - BESIDES == planned
