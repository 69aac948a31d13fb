"""What cannot be cut over a mesh is refused before anything runs, with the arithmetic."""

import importlib.util

import pytest
from jax.sharding import AbstractMesh
from running import MICRO, ROOT, refused, says

from prl_jax.errors import UserError
from prl_jax.inputs.layout import check_layout
from prl_jax.sharding import AXES


@pytest.fixture
def config():
    spec = importlib.util.spec_from_file_location("micro", MICRO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().unlock()
    config.model.update(heads=4, kv_heads=2, mlp_width=12)
    config.sft.update(batch_size=16, max_prompt=12, max_response=8)
    config.bt.update(batch_size=16, max_prompt=12, max_response=8)
    config.genrm.update(batch_size=16, max_length=24)
    config.ppo.update(prompts_per_step=16, group_size=1)
    config.ppo.minibatches = 2
    return config


def mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


@pytest.mark.parametrize(
    ("stage", "sizes", "words"),
    [
        ("sft", dict(data=3), ("sft: batch_size = 16", "data=3 * fsdp=1")),
        ("genrm", dict(data=4, fsdp=8), ("genrm: batch_size = 16", "data=4 * fsdp=8")),
        ("ppo", dict(data=32), ("ppo: prompts_per_step * group_size = 16", "data=32")),
        ("bt", dict(sequence=8), ("bt: max_prompt = 12", "mesh.sequence=8")),
        ("bt", dict(sequence=3), ("bt: max_response = 8", "mesh.sequence=3")),
        ("genrm", dict(sequence=5), ("genrm: max_length = 24", "mesh.sequence=5")),
        ("sft", dict(tensor=8), ("sft: model: heads=4", "mesh.tensor=8")),
        ("sft", dict(tensor=4), ("sft: model: kv_heads=2", "mesh.tensor=4")),
        ("sft", dict(decode=32), ("sft: batch_size = 16", "fsdp=1 * decode=32")),
        ("ppo", dict(decode=4), ("ppo: model: kv_heads=2", "mesh.tensor * mesh.decode = 4")),
    ],
)
def test_what_does_not_divide_is_named(config, stage, sizes, words):
    with pytest.raises(UserError) as error:
        check_layout(config, stage, mesh(**sizes))
    assert says(str(error.value), *words) and "\n" not in str(error.value)


def test_the_feed_forward_width_and_the_models_of_directories_are_looked_at(config):
    config.model.mlp_width = 13
    with pytest.raises(UserError, match="mlp_width=13 does not divide by mesh.tensor=2"):
        check_layout(config, "sft", mesh(tensor=2))
    config.sft.init_from = str(ROOT / "tests" / "configs" / "models" / "gemma3_4b")
    with pytest.raises(UserError, match="sft: .*gemma3_4b: heads=8 does not divide by mesh.tensor=3"):
        check_layout(config, "sft", mesh(tensor=3))


def test_models_of_finished_stages_are_looked_at_too(config):
    """They may have been trained on another mesh."""
    for stage, where in (("pairwise_ppo", "model"), ("evaluation", "model"), ("anchors", "model")):
        with pytest.raises(UserError, match=f"{stage}: {where}: heads=4 does not divide by mesh.tensor=8"):
            check_layout(config, stage, mesh(tensor=8))
    config.ppo.evaluation.judge = str(ROOT / "tests" / "configs" / "models" / "gemma3_4b")
    with pytest.raises(UserError, match="ppo: .*gemma3_4b: kv_heads=4 does not divide by mesh.tensor=8"):
        config.model.update(heads=8, kv_heads=8, mlp_width=16)
        check_layout(config, "ppo", mesh(tensor=8))


def test_what_divides_is_taken(config):
    for stage in config.stages:
        others = dict(sequence=4), dict(tensor=2), dict(fsdp=2, sequence=2, tensor=2), dict(fsdp=2, decode=2)
        for sizes in ({}, dict(data=2, fsdp=4), *others):
            if config[stage].kind != "anchors":
                check_layout(config, stage, mesh(**sizes))


def test_a_run_says_it_in_one_line(tmp_path):
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "run", "--config.mesh.sequence=2")
    assert says(line, "mesh: sizes", "sequence=2", "1 devices")
