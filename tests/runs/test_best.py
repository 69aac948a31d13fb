"""The best evaluation so far, and stages whose result is its parameters."""

import json
import math

import jax.numpy as jnp
import pytest
from running import MICRO, prl, read_rows, refused, says, unoptimised

from prl_jax.checkpoint import Checkpoints
from prl_jax.runs.best import BestSoFar


def steps_of(best: BestSoFar, values: list[float]) -> list[int]:
    return [n for n, value in enumerate(values, 1) if best.improved(n, {"loss": value, "other": -value})]


def test_the_first_of_equal_ones_is_the_best_and_what_is_not_finite_is_never():
    values = [math.nan, 3.0, 2.0, 2.0, math.inf, -math.inf, 2.5, 1.0]
    best = BestSoFar("best", "loss", larger=False)
    assert steps_of(best, values) == [2, 3, 8] and best.step == 8
    assert steps_of(BestSoFar("best", "other", larger=True), values) == [2, 3, 8]
    assert steps_of(BestSoFar("best", "loss", larger=True), [1.0, 0.5, 2.0]) == [1, 3]


def test_with_last_there_is_none():
    best = BestSoFar("last", "loss", larger=False)
    assert steps_of(best, [2.0, 1.0]) == [] and best.step is None


def test_it_goes_on_from_a_record_whose_checkpoint_is_there(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, model={"x": jnp.ones(1)}, train={"y": jnp.ones(1)}, data={})
        for step, expected in ((2, 2), (1, None)):
            before, best = BestSoFar("best", "loss", larger=False), BestSoFar("best", "loss", larger=False)
            before.improved(step, {"loss": 1.5})
            best.restore(before.state(), checkpoints)
            assert best.step == expected
            # Of the one that is gone nothing is remembered.
            assert best.improved(3, {"loss": 1.75}) == (expected is None)


@pytest.fixture
def bouncing(tmp_path):
    """SFT with a learning rate that makes its loss go up and down; `(workdir, figures of its evaluations)`."""
    workdir = tmp_path / "run"
    flags = {"stages": "('sft',)", "sft.evaluate_every": "1 steps", "sft.optimizer.learning_rate": "0.3"}
    flags |= {"sft.result": "best", "sft.optimizer.schedule": "constant", "sft.save_every": "4 steps"}
    with unoptimised():
        done = prl("run", f"--config={MICRO}", "--workdir", workdir, *(f"--config.{k}={v}" for k, v in flags.items()))
    assert done.code == 0, done.err
    return workdir / "sft", read_rows(workdir / "sft" / "metrics.jsonl")


def test_the_result_of_a_stage_are_the_parameters_of_its_best_evaluation(bouncing):
    stage, rows = bouncing
    losses = {row["step"]: row["validation_loss"] for row in rows if row["step"]}
    best = min(losses, key=losses.get)
    assert 1 < best < max(losses) == 6  # else the case would show nothing
    assert [path.name for path in (stage / "checkpoints").iterdir()] == [str(best)]
    found = json.loads((stage / "result.json").read_text())["metrics"]
    assert found["best_step"] == best and found["validation_loss"] == losses[best]
    assert found["loss"] == next(row["loss"] for row in rows if row["step"] == best)


def test_either_all_processes_save_or_none_does(monkeypatch):
    """Where the last bit differs, the first one decides."""
    best = BestSoFar("best", "loss", larger=False)
    assert best.improved(1, {"loss": 1.0})
    monkeypatch.setattr("prl_jax.runs.best.as_leader", lambda here: not here)
    assert not best.improved(2, {"loss": 0.5}) and best.step == 1
    assert best.improved(3, {"loss": 2.0}) and best.step == 3


@pytest.mark.parametrize(("stage", "key"), [("sft", "evaluate_every"), ("ppo", "evaluation.every")])
def test_without_evaluations_there_is_no_best_one(tmp_path, stage, key):
    flags = (f"--config.{stage}.result=best", f"--config.{stage}.{key}=0 steps")
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "run", *flags)
    says(line, f"{stage}.result='best'", f"{stage}.{key}='0 steps'")
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "run", f"--config.{stage}.result=first")
    says(line, f"{stage}.result='first'", "'last', 'best'")
