"""`prl plan`: what it prints and returns, on the micro config and on a model that does not fit."""

import json
import os
import subprocess
import sys

import pytest
from experiments.test_configs import config_of
from running import MICRO, ROOT, refused, says

from prl_jax.plan import as_json, as_text, plan_config
from prl_jax.plan.advice import knobs, largest_consumer
from prl_jax.plan.chips import TPUS
from prl_jax.stages import config as c

WIDTH, LAYERS, HEAD, MLP, VOCAB = 8192, 8, 128, 28672, 272
LENGTH, ROWS = 96, 16


def large_model(**overrides):
    """SFT of a model of 8 layers of 70B's width, as adapters or whole."""
    model = dict(
        width=WIDTH, layers=LAYERS, heads=64, kv_heads=8, head_dim=HEAD, mlp_width=MLP, dtype="bfloat16", remat=True
    )
    lengths = dict(max_prompt=LENGTH // 2, max_response=LENGTH // 2)
    stages = dict(
        sft=c.sft(batch_size=ROWS, duration="10 steps", **lengths),
        ppo=c.online("pairwise_rl", judge="gold", opponents=dict(kind="group"), group_size=2, prompts_per_step=8),
    )
    mesh = dict(data=1, fsdp=-1, tensor=1)
    return c.build(stages, model=model, mesh=mesh, **overrides)


def parameters() -> int:
    layer = WIDTH * (2 * 64 * HEAD + 2 * 8 * HEAD) + 3 * WIDTH * MLP
    norms = (2 * LAYERS + 1) * WIDTH
    return LAYERS * layer + norms + VOCAB * WIDTH


def test_memory_is_that_of_the_arrays():
    """Nothing is compiled: the arrays that a stage holds, cut in four."""
    plan = plan_config(large_model(), "v5p:2x2x1", functions=["none"][:0])
    assert (plan.devices, plan.mesh["fsdp"], plan.chip) == (4, 4, TPUS["v5p"])
    share = 4 * parameters() / 4  # float32, on 4 devices
    uncut = (2 * LAYERS + 1) * WIDTH * 4  # what the rules may leave whole: norms
    sft, update = plan.function("sft/train_step"), plan.function("ppo/update")
    for found, times in [
        (sft.memory.parameters, 1), (sft.memory.optimizer, 2), (sft.held["parameters"], 1),
        (update.memory.parameters, 3), (update.memory.optimizer, 4),
        *((update.held[name], 1) for name in ("policy", "critic", "reference")),
    ]:  # fmt: skip
        assert times * share <= found <= times * (share + uncut) + 1000, (found / share, times)
    assert sft.memory.judge == 0 and sft.cost is None and sft.fits is None
    # Token rows (3), targets and mask of 16 rows, 4 on a device.
    assert sft.memory.rows == 4 * LENGTH * (4 * 4 + 1)
    # A key and a value of each layer, head and position, in bfloat16; a mask, a position and a slot beside them.
    decode = plan.function("ppo/decode")
    rows = 16 // 4
    cache = rows * LAYERS * 2 * 8 * HEAD * LENGTH * 2
    assert cache <= decode.memory.cache <= cache + rows * (LENGTH + 4) + 4
    # On one chip of v5e such a model can't be held, let alone trained.
    assert plan.fits


def test_what_does_not_fit_is_told_without_compiling():
    config = large_model()
    plan = plan_config(config, "v5e:2x2", functions=[])
    sft = plan.function("sft/train_step")
    assert sft.memory.known > TPUS["v5e"].hbm and sft.fits is False and not plan.fits
    assert largest_consumer(sft)[0] == "optimizer"
    assert any("sft.lora.rank" in key for key in knobs(plan, sft, config))
    text = as_text(plan, config)
    says(text, "sft/train_step does not fit", "the largest part is the optimizer", "What helps:", "larger --topology")


def test_what_only_evaluations_ask_is_planned():
    """More responses at once than in training, another judge, all records of a source."""
    config = config_of(f"{MICRO}:short")

    def functions(**values) -> set[str]:
        config.update_from_flattened_dict(values)
        return {function.name for function in plan_config(config, "cpu:1", functions=[]).functions}

    step = {"pairwise_ppo.evaluation.batch_size": 8, "pairwise_ppo.evaluation.prompts.limit": 8}
    asked = {"pairwise_ppo.evaluation.judge": "genrm", "evaluation.judges": ("bt", "genrm")}
    plain = functions(**step, **asked)
    assert "pairwise_ppo/judge" in plain and not any("/evaluation_" in name for name in plain)
    assert {"evaluation/bt_judge", "evaluation/genrm_judge"} <= plain and "evaluation/judge" not in plain
    other = functions(**{"pairwise_ppo.evaluation.judge": "bt"})
    assert other - plain == {"pairwise_ppo/evaluation_judge"}
    many = functions(**{"pairwise_ppo.evaluation.judge": "genrm", "pairwise_ppo.evaluation.prompts.limit": 0})
    assert many - plain == {"pairwise_ppo/evaluation_judge"}, "in batches of 8, as in a step"
    more = functions(**{"pairwise_ppo.evaluation.batch_size": 16})
    assert more - many == {"pairwise_ppo/evaluation_prefill", "pairwise_ppo/evaluation_decode"}
    told = {"evaluation.judge": "genrm", "evaluation.judges": ("bt",), "evaluation.arms.pairwise_ppo.judge": "bt"}
    judged = functions(**told)
    assert judged - more == {"evaluation/judge"} and more - judged == {"evaluation/genrm_judge"}


def test_the_knobs_of_an_evaluation_and_of_small_microbatches():
    config = large_model()
    config.ppo.evaluation.batch_size = 32
    plan = plan_config(config, "v5e:2x2", functions=[])
    called = {name: plan.function(f"ppo/{name}") for name in ("evaluation_decode", "update")}
    # As if temporary arrays were all that it needs.
    called = {name: one._replace(held={}, memory=one.memory._replace(temporary=1e12)) for name, one in called.items()}
    assert "ppo.evaluation.batch_size down" in knobs(plan, called["evaluation_decode"], config)
    up = "ppo.accumulate up"
    assert up in knobs(plan, called["update"], config)
    config.ppo.accumulate = 2  # 16 rows, 2 minibatches, 4 devices: one row
    assert up not in knobs(plan, called["update"], config)


def test_flops_follow_the_formula():
    plan = plan_config(large_model(), "v5e:2x2", functions=[])
    matrices, down = parameters() - (2 * LAYERS + 1) * WIDTH, LAYERS * WIDTH * MLP
    # Forward, backward (twice that), and remat's second forward pass, in which nobody needs what a layer gives.
    least = (6 * matrices + 2 * (matrices - down)) * ROWS * LENGTH / 4
    assert least <= plan.function("sft/train_step").flops <= 1.02 * least


def test_unused_devices_are_the_first_thing_to_change():
    config = large_model()
    config.mesh.data, config.mesh.fsdp = -1, 1
    plan = plan_config(config, "v5e:2x2", functions=[])
    helps = knobs(plan, plan.function("sft/train_step"), config)
    says(helps[0], "mesh.fsdp up", "1 parts on 4 devices")


@pytest.fixture(scope="module")
def compiled():
    """One small function, compiled for TPUs."""
    config = large_model()
    config.model.width, config.model.mlp_width, config.model.layers = 256, 512, 2
    config.sft.batch_size = 16
    said = []
    plan = plan_config(config, "v5e:2x2", functions=["sft/train_step"], tell=said.append)
    return config, plan, said


def test_a_compiled_function(compiled):
    config, plan, said = compiled
    found = plan.function("sft/train_step")
    assert [line.split(" in ")[0] for line in said] == ["sft/train_step: compiling", "sft/train_step: compiled"]
    assert found.fits and plan.fits and found.cost and found.cost.open_loops == 0 and found.seconds
    assert found.memory.peak == pytest.approx(found.memory.known + found.memory.temporary)
    # Hidden states of both layers are kept for the backward pass, in bfloat16.
    hidden = 2 * 16 // 4 * LENGTH * 256 * 2
    assert hidden <= found.memory.activations <= 2 * hidden
    kinds = found.cost.by_kind()
    assert "all-gather" in kinds and found.stack_gathers == ()
    chip, sent = plan.chip, sum(sent for _, sent in kinds.values())
    assert found.seconds == (
        found.flops / chip.flops, found.cost.moved / chip.bandwidth, sent / chip.interconnect
    )  # fmt: skip
    assert found.seconds.step == max(found.seconds)
    # What is not compiled is lowered, and has what is known without a compiler.
    other = plan.function("ppo/update")
    assert other.cost is None and other.fits is None and other.memory.temporary == 0 < other.memory.known


def test_the_table(compiled):
    config, plan, _ = compiled
    text = as_text(plan, config)
    says(text, "v5e:2x2: 4 devices (TPU v5e) with 15.75 GiB each", "fsdp=4", "sft/train_step", "all-gather")
    assert all(len(line) < 200 for line in text.splitlines())
    document = json.loads(json.dumps(as_json(plan, config)))
    found = document["functions"]["sft/train_step"]
    assert (document["fits"], document["devices"], document["hbm"]) == (True, 4, TPUS["v5e"].hbm)
    assert found["memory"] == plan.function("sft/train_step").memory._asdict()
    assert set(found["roofline_seconds"]) == {"compute", "memory", "communication", "step"}


def prl_plan(*flags: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, as on a machine without accelerators."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-W", "error", "-m", "prl_jax", "plan", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def test_the_command_prints_one_document():
    done = prl_plan("--config", f"{MICRO}:short", "--topology", "cpu:2", "--json", "--functions=sft/train_step")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert found["mesh"]["data"] == 2 and found["hbm"] is None
    assert found["functions"]["sft/train_step"]["collectives"]["all-reduce"]["count"] > 0
    assert "pairwise_ppo/update" in found["functions"] and "evaluation/log_ratio" in found["functions"]
    lines = done.stderr.splitlines()
    assert lines[0] == "sft/train_step: compiling" and len(lines) == 2, lines


def test_the_command_fails_where_it_does_not_fit():
    """A judge that takes more rows at once than the chip has room for: the compiler itself refuses."""
    done = prl_plan(
        *("--config", f"{MICRO}:short", "--topology", "v5e:2x2", "--functions=sft/train_step"),
        *("--config.sft.batch_size=65536", "--config.sft.max_prompt=2048", "--config.model.width=2048"),
    )
    assert done.returncode == 1, done
    says(done.stdout, "sft/train_step does not fit", "temporary memory", "RESOURCE_EXHAUSTED", "sft.accumulate up")
    # Prompts of that length leave no room in the rows of this config's judges, as the plan says too.
    others = [line for line in done.stderr.splitlines() if "may cut comparisons" not in line]
    assert others and all(line.startswith("sft/train_step: ") for line in others), done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e:8"], ["v5e:8", "16x16 at most"]),
        ([], ["--topology is missing"]),
        (["--topology=cpu:1", "--functions=sft/steps"], ["no 'sft/steps'", "sft/train_step"]),
        (["--topology=cpu:1", "--config.mesh.fsdp=3"], ["mesh", "1 devices"]),
        (["--topology=v5e:2x2", "--config.sft.batch_size=3"], ["sft: batch_size = 3", "data=4"]),
        (["--topology=cpu:1", "--config.sft.batch=3"], ["no such key"]),
        (["--topology=cpu:1", "--config.sft.lora.rank=4"], ["sft.lora"]),
    ],
)
def test_what_is_refused(flags, words):
    says(refused("plan", "--config", f"{MICRO}:short", *flags), *words)
