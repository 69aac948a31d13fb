"""What a run says of memory and time before its first stage."""

from pathlib import Path

import pytest
from experiments.test_configs import config_of
from running import MICRO, ROOT, prl, says

from prl_jax.costs.work import flops, parameters
from prl_jax.errors import UserError
from prl_jax.inputs.measurements import Measurements
from prl_jax.plan import expected
from prl_jax.plan.expected import Rates, amount, announce, available_memory, expected_seconds, span
from prl_jax.plan.work import expected_work
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages.online_section import only_warms_up, warmup_of

QUICKSTART = str(ROOT / "experiments" / "quickstart.py")


def contexts(path: Path, config=None):
    config = config_of(QUICKSTART) if config is None else config
    return [StageContext(name, config, Workdir(path, config), make_mesh()) for name in config.stages]


def told(path: Path, config=None) -> list[str]:
    lines: list[str] = []
    announce(contexts(path / "none", config), Measurements(), lines.append)
    return lines


def test_each_stage_says_its_memory_and_time_and_nothing_is_written(tmp_path):
    lines = told(tmp_path)
    assert says(lines[0], "each device", "factor of two", "are free", "compiled programs take about 1.0 GiB more")
    assert says(lines[-1], "together", " to ")
    assert [line.split()[0] for line in lines[1:-1]] == list(config_of(QUICKSTART).stages)
    assert says(lines[1], "models", "optimizer", "activations", "MiB", ";")
    assert not any("warning" in line for line in lines) and not list(tmp_path.iterdir())


def test_a_backend_that_cannot_run_here_is_told_once(tmp_path):
    config = config_of(QUICKSTART)
    config.model.attention = "splash"
    line, header, *_ = told(tmp_path, config)
    assert line == "model.attention: splash runs on TPUs alone: chunked instead" and "each device" in header
    config.model.attention = "chunked"
    assert "each device" in told(tmp_path, config)[0]


def test_what_cannot_fit_is_refused_and_what_may_not_is_one_line_with_the_keys_that_help(tmp_path, monkeypatch):
    monkeypatch.setattr(expected, "memory_of_device", lambda mesh: 60 * 2.0**20)
    warnings = [line for line in told(tmp_path) if "warning" in line]
    assert says(warnings[0], "prl: warning: sft/train_step may not fit", "of 60 MiB", "sft.accumulate up")
    assert says(warnings[0], "model.remat=True", "sft.max_prompt or sft.max_response down")
    monkeypatch.setattr(expected, "memory_of_device", lambda mesh: 1000.0)
    with pytest.raises(UserError, match="sft: its models and optimizers take .* MiB of each device.*sft.lora.rank=16"):
        told(tmp_path)


def test_processes_refuse_together(tmp_path, monkeypatch):
    """One that has room enough does not go on to wait for one that has not."""
    monkeypatch.setattr(expected, "least", lambda here: min(here, 1000.0))
    with pytest.raises(UserError, match="of each device, which has"):
        told(tmp_path)


def test_work_grows_with_what_a_config_asks_for():
    mesh, examples = make_mesh(), lambda stage, key: 1000
    config = config_of(QUICKSTART)
    before = {work.stage: work for work in expected_work(config, mesh, examples)}
    config.update_from_flattened_dict(
        {"sft.duration": "1600 steps", "genrm.max_length": 72, "pairwise_ppo.prompts_per_step": 512}
    )
    after = {work.stage: work for work in expected_work(config, mesh, examples)}
    assert 1.9 < after["sft"].flops / before["sft"].flops < 2.1
    assert 1.9 < after["genrm"].largest.temporary / before["genrm"].largest.temporary < 4
    assert 1.5 < after["pairwise_ppo"].flops / before["pairwise_ppo"].flops < 2.6
    assert after["bt"] == before["bt"] and before["sft"].held.keys() == {"parameters", "optimizer"}
    assert before["sft"].held["optimizer"] == pytest.approx(2 * before["sft"].held["parameters"], rel=0.01)
    rates = Rates(1e11, 1e10)
    low, high = expected_seconds(before["sft"], rates, mesh)
    assert 0 < low < high and expected_seconds(after["sft"], rates, mesh)[0] == pytest.approx(2 * low, rel=0.1)


def test_a_warm_up_takes_its_steps_from_the_updates_and_may_take_all_of_them():
    config, parts = config_of(QUICKSTART), 2 * 2
    section = config.pairwise_ppo

    def calls(warmup: str, duration: str) -> dict[str, float]:
        section.critic.warmup, section.duration = warmup, duration
        work = {work.stage: work for work in expected_work(config, make_mesh(), lambda stage, key: 1000)}
        return {c.function: c.calls for c in work["pairwise_ppo"].calls if c.function in ("warm_up", "update")}

    assert calls("5 steps", "20 steps") == {"warm_up": 5 * parts, "update": 15 * parts}
    assert only_warms_up(section, "pairwise_ppo", 20) == ""
    assert calls("0 steps", "20 steps") == {"update": 20 * parts}
    assert calls("5 steps", "3 steps") == {"warm_up": 3 * parts} and warmup_of(section, "pairwise_ppo", 3) == 3
    line = "critic.warmup='5 steps' takes all 3 steps; the policy stays what it was"
    assert only_warms_up(section, "pairwise_ppo", 3) == line


def test_a_forward_pass_is_two_operations_a_parameter_and_token():
    from prl_jax.models import DecoderConfig

    decoder = DecoderConfig(vocab_size=1000, width=256, layers=4, heads=4, kv_heads=2, head_dim=64, mlp_width=512)
    assert flops(decoder, 8, 8) == pytest.approx(2 * 8 * parameters(decoder), rel=0.02)


def test_numbers_read_as_people_say_them():
    assert [amount(size) for size in (3.2e9, 5e7, 3e5)] == ["3.0 GiB", "48 MiB", "0.3 MiB"]
    assert [span(*pair) for pair in ((0.04, 8.0), (3.0, 9.0), (70.0, 130.0), (4e3, 9e3), (1e5, 3e5))] == [
        "up to 8 seconds", "3 to 9 seconds", "1.2 to 2 minutes", "1.1 to 2 hours", "1.2 to 3 days",
    ]  # fmt: skip
    assert 2**28 < available_memory() < 2**50


def test_a_run_says_it_first(tmp_path):
    """A stage that only copies text has nothing to say."""
    done = prl("run", "--config", MICRO, "--config.stages=('references',)", "--workdir", tmp_path / "run")
    assert done.code == 0 and "Expected" not in done.err, "it holds nothing on a device"
