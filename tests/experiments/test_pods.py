"""The configs for TPU slices, compiled by the TPU compiler: they fit, and nothing is laid out as it should not be."""

import re

import jax
import pytest
from experiments.test_configs import config_of
from plan.gathers import laid_out_anew
from running import ROOT

from prl_jax.artifacts.cards import read_card
from prl_jax.plan import Plan, plan_config
from prl_jax.plan.plan import _compile
from prl_jax.plan.topology import find_topology

pytestmark = pytest.mark.slow
MODELS = ROOT / "tests" / "configs" / "models"  # the config.json alone
# Config, its model, slice.
PODS = [
    ("llama3_2_1b_v5e_4x4", "llama3_2_1b", "v5e:4x4"),
    ("llama3_8b_v5e_8x8", "llama3_8b", "v5e:8x8"),
    ("llama3_8b_v5p_4x4x4", "llama3_8b", "v5p:4x4x4"),
    ("gemma3_4b_v6e_4x4", "gemma3_4b", "v6e:4x4"),
]
FASTEST = "pairwise_ppo/prefill"
TRAINING = {"sft/train_step", "genrm/train_step", "pairwise_ppo/update"}
STEPS = TRAINING | {f"pairwise_ppo/{function}" for function in ("prefill", "decode", "judge", "prepare")}


def pods(**marks):
    """The configs as cases: those that are named with their own marks, the others `nightly`."""
    return [pytest.param(*pod, id=pod[0], marks=marks.get(pod[0], pytest.mark.nightly)) for pod in PODS]


@pytest.fixture(autouse=True)
def quick():
    """XLA tries less hard and compiles in a quarter of the time; the memory it plans was up to a tenth more or less."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O1")
    yield
    jax.config.update("jax_optimization_level", before)


def plan(name: str, model: str, topology: str, functions: list[str] | None) -> Plan:
    config = config_of(f"{ROOT / 'experiments' / name}.py:{MODELS / model},pairs.jsonl")
    return plan_config(config, topology, functions=functions)


def check(planned: Plan, names: set[str]) -> None:
    """What was compiled fits, gathers no parameter of all layers at once, and copies no array to lay it out anew."""
    for name in names:
        function = planned.function(name)
        peak = function.memory.peak
        assert function.cost is not None and function.fits, f"{name}: {peak} bytes; {function.refused}"
        assert peak < 0.9 * planned.chip.hbm, f"{name}: {peak} bytes; where XLA tries harder it may be a tenth more"
        assert not function.stack_gathers, f"{name}: gathers whole stacks: {function.stack_gathers}"
        assert not function.warnings, f"{name}: {function.warnings}"


def test_the_compiler_says_what_it_has_to_copy_in_whole():
    """In this very process: else nobody would know that warnings are silenced."""
    warned = _compile("copied", laid_out_anew(find_topology("v5e:2x4").devices), lambda line: None).warnings
    assert len(warned) == 1 and "Involuntary full rematerialization" in warned[0], warned


def test_all_configs_for_slices_are_here():
    slices = {path.stem for path in (ROOT / "experiments").glob("*.py") if re.search(r"_v\d[a-z]*_\d+x", path.stem)}
    assert slices == {name for name, _, _ in PODS}


@pytest.mark.parametrize(("name", "model", "topology"), pods(llama3_8b_v5e_8x8=()))
def test_every_function_lowers_and_one_compiles_and_fits(name, model, topology):
    planned = plan(name, model, topology, [FASTEST])
    assert {function.name for function in planned.functions} > STEPS
    check(planned, {FASTEST})
    assert planned.fits  # as far as arguments tell it, of the others too


@pytest.mark.parametrize(("name", "model", "topology"), pods(llama3_2_1b_v5e_4x4=pytest.mark.long))
def test_every_function_compiles_and_fits(name, model, topology):
    planned = plan(name, model, topology, None)
    check(planned, {function.name for function in planned.functions})
    # While tokens are decoded the weights stay where they are; what travels are the activations of a few tokens.
    config = read_card(MODELS / model).config
    smallest = config.width * config.kv_heads * config.head_dim
    loop = [one for one in planned.function("pairwise_ppo/decode").cost.collectives if one.times > 1]
    assert loop
    for one in loop:
        assert one.kind == "all-to-all" or all(shape.elements < smallest for shape in one.full_shapes), one
