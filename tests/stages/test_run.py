"""What stops a run in the middle, and what is left of it then."""

import fcntl
import json

import pytest
from running import MICRO, prl, read_rows, refused, says, unoptimised, write_rows

from prl_jax.checkpoint import Checkpoints
from prl_jax.metrics import MetricsWriter


@pytest.fixture(autouse=True)
def fast_compilation():
    with unoptimised():
        yield


def start(tmp_path, *overrides):
    """`prl run` of SFT alone."""
    own = ("--config.stages=('sft',)", "--config.sft.log_every=1 steps", "--config.sft.evaluate_every=0 steps")
    return ("run", "--config", MICRO, "--workdir", tmp_path / "run", *own, *(f"--config.{o}" for o in overrides))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    argv = start(tmp_path, "sft.optimizer.learning_rate=1e30", "sft.save_every=1 steps")
    assert says(refused(*argv), "sft:", "not finite at step 2", "lower the learning rate")
    stage = tmp_path / "run" / "sft"
    assert [path.name for path in (stage / "checkpoints").iterdir()] == ["1"] and not (stage / "result.json").exists()
    assert [row["step"] for row in read_rows(stage / "metrics.jsonl")] == [1]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "sort ba."}])
    assert prl("generate", "--model", stage, "--prompts", prompts, "--out", tmp_path / "out.jsonl").code == 0
    assert says(refused(*argv), "not finite at step 2")  # the same command comes to the same end


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    """A finite loss at the last step before them is not enough: 1e39 is infinite in float32."""
    line = refused(*start(tmp_path, "sft.optimizer.learning_rate=1e39", "sft.save_every=1 steps"))
    assert says(line, "sft/checkpoints", "not finite after step 1", "lower the learning rate")
    assert list((tmp_path / "run" / "sft" / "checkpoints").iterdir()) == []


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path):
    argv = start(tmp_path, "sft.duration=1 steps")
    assert prl(*argv).code == 0
    with open(tmp_path / "run" / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert says(refused(*argv), "another run is at work here", str(tmp_path / "run"))
    assert prl(*argv).code == 0


def test_a_full_disk_is_told_wherever_it_is_met(tmp_path, monkeypatch):
    """Whoever meets it first, the package or a library."""

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "file"))

    for where in (Checkpoints, MetricsWriter):
        with monkeypatch.context() as patch:
            patch.setattr(where, "__init__", full)
            assert says(refused(*start(tmp_path)), "No space left on device", str(tmp_path / "file"))


def test_another_error_of_the_system_keeps_its_traceback(tmp_path, monkeypatch):
    """It may be a mistake of ours, and whoever reports it needs the place."""

    def broken(*_, **__):
        raise ConnectionError(111, "Connection refused")

    monkeypatch.setattr(Checkpoints, "__init__", broken)
    with pytest.raises(ConnectionError):
        prl(*start(tmp_path))


def test_an_interrupt_says_how_to_continue(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "__init__", interrupt)
    done = prl(*start(tmp_path))
    assert done.code == 130 and says(done.err, "interrupted", "the same command continues")


def test_a_run_stopped_before_its_config_was_written_starts_anew(tmp_path):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / ".config.json.0123456789abcdef.tmp").write_text('{"config": {"se')
    done = prl(*start(tmp_path, "sft.duration=1 steps"))
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["sft"]["duration"] == "1 steps" and (tmp_path / "run" / "sft" / "result.json").is_file()
