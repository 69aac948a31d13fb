"""The command line from end to end, on a pipeline of a few steps: what it writes, prints and refuses."""

import gzip
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys

import jax
import numpy as np
import pytest
from running import MICRO, ROOT, prl, read_rows, refused, says, unoptimised, write_rows

from prl_jax import reporting
from prl_jax.artifacts import models as artifacts
from prl_jax.commands import outputs
from prl_jax.commands.flags import template_args
from prl_jax.errors import UserError
from prl_jax.metrics import MetricsWriter

STAGES = (
    "sft", "bt", "genrm", "anchors", "pairwise_ppo", "references", "ppo", "peer_ppo", "group_ppo", "evaluation",
)  # fmt: skip
TRAINED = ("sft", "bt", "genrm", "ppo", "pairwise_ppo", "peer_ppo", "group_ppo")
PPO = ("ppo", "pairwise_ppo", "peer_ppo", "group_ppo")
JUDGES = ("bt", "genrm")
PAIRS = [
    {"id": "sure", "prompt": "sort dcb.", "chosen": "bcd", "rejected": "dcb"},
    {"id": "soft", "prompt": "rev abc.", "chosen": "cba", "rejected": "abc~", "p_chosen": 0.8},
    {"id": "votes", "prompt": "rev bcd.", "chosen": "dcb", "rejected": "d", "meta": {"votes": [1, 3, 0], "pos": 2}},
    {"id": "tie", "prompt": "sort fe.", "chosen": "ef", "rejected": "e f", "tie": True},
    {"id": "same", "prompt": "sort ba.", "chosen": "ab", "rejected": "ab"},
    {"prompt": [{"role": "user", "content": "rev aab."}], "chosen": "baa", "rejected": "bba b"},
]
SOFT = [1.0, 0.8, 0.75, 0.5, 0.5, 1.0]  # identical responses are a tie


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Workdir and terminal of the micro pipeline, and the order of what it compiled and the steps that it logged."""
    events = []

    def on_compile(event: str, _: float, **labels: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(("compiled", labels["fun_name"], 0))

    write = MetricsWriter.write

    def on_write(self: MetricsWriter, step: int, metrics) -> None:
        write(self, step, metrics)
        events.append(("step", self.path.parent.name, step))

    workdir = tmp_path_factory.mktemp("runs") / "micro"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsWriter, "write", on_write)
        jax.monitoring.register_event_duration_secs_listener(on_compile)
        try:
            with unoptimised():
                done = prl("run", "--config", MICRO, "--workdir", workdir)
        finally:
            jax.monitoring.unregister_event_duration_listener(on_compile)
    assert done.code == 0, done.err
    return workdir, done, events


@pytest.fixture(scope="module")
def workdir(pipeline):
    return pipeline[0]


@pytest.fixture
def pairs(tmp_path):
    return write_rows(tmp_path / "pairs.jsonl", PAIRS)


def judge(model, data, out):
    done = prl("judge", "--model", model, "--data", data, "--out", out, "--overwrite")
    assert done.code == 0 and says(done.err.splitlines()[-1], "judge", f"{len(read_rows(out))}/"), done
    (line,) = done.out.splitlines()
    return read_rows(out), json.loads(line)


def generate(model, prompts, out, *flags):
    done = prl("generate", "--model", model, "--prompts", prompts, "--out", out, "--overwrite", *flags)
    assert done.code == 0 and says(done.err.splitlines()[-1], "generate", f"{len(read_rows(out))}/"), done
    return read_rows(out)


def test_run_leaves_the_files_of_a_workdir(workdir):
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["sft"]["optimizer"]["b2"] == 0.95 and config["versions"]["jax"] == jax.__version__
    assert set(config) == {"config", "versions", "git_revision", "devices", "data", "models"} and config["devices"] == [
        "cpu cpu"
    ]
    for name in ("summary.json", "report.html", "report.md", "arms.png", "reliability.png", "win_rate_vs_kl.png"):
        assert (workdir / name).stat().st_size > 500, name
    assert {path.name for path in workdir.iterdir() if path.is_dir()} == {"data", *STAGES}
    for name in STAGES:
        assert (workdir / name / "result.json").is_file(), name
    for name in TRAINED:
        stage = workdir / name
        assert {path.name for path in stage.iterdir() if "tfevents" not in path.name} == {
            "checkpoints", "metrics.jsonl", "model.json", "result.json", "samples.jsonl", "timings.jsonl", "tokenizer",
        }  # fmt: skip
        assert len(list(stage.glob("events.out.tfevents.*"))) == 1
        last = read_rows(stage / "metrics.jsonl")[-1]["step"]
        kept = json.loads((stage / "result.json").read_text())["metrics"].get("best_step", last)
        assert [path.name for path in (stage / "checkpoints").iterdir()] == [str(int(kept))]


def test_metrics_have_what_they_are_read_for(workdir):
    shared = {"loss", "grad_norm"}
    for name, keys in {
        "sft": {"validation_loss", "truncated_rows"},
        "bt": {"accuracy", "margin", "validation_accuracy", "identical_pairs_skipped", "ties"},
        "genrm": {"accuracy", "order_consistency", "position_bias", "validation_accuracy", "truncated_rows"},
        "ppo": {"reward", "kl", "kl_coef", "entropy", "win_rate", "clip_fraction", "value_loss", "response_length"},
        "pairwise_ppo": {"win_rate_anchors", "order_disagreement"},
        "peer_ppo": {"win_rate_peer"},
        "group_ppo": {"win_rate_group"},
    }.items():
        rows = read_rows(workdir / name / "metrics.jsonl")
        assert shared | keys <= set().union(*rows), name
        assert [row["step"] for row in rows] == list(range(len(rows)))
    peers = read_rows(workdir / "peer_ppo" / "metrics.jsonl")[1:]
    np.testing.assert_allclose([row["reward"] for row in peers], 0.5, atol=1e-6)  # what one wins the other loses


def test_curves_of_policies_begin_at_the_same_point(workdir):
    """Before its first step a policy is its own opponent, and these stages measure on the same prompts."""
    starts = [read_rows(workdir / name / "metrics.jsonl")[0] for name in ("ppo", "peer_ppo", "group_ppo")]
    assert starts[0] == starts[1] == starts[2]
    assert starts[0]["step"] == 0 and starts[0]["kl"] == 0 and 0 <= starts[0]["win_rate"] <= 1


def test_wins_are_kept_prompt_by_prompt(workdir):
    rows = read_rows(workdir / "evaluation" / "wins.jsonl")
    summary = json.loads((workdir / "summary.json").read_text())
    assert [row["prompt"] for row in rows] == list(range(16)) and len({row["id"] for row in rows}) == 16
    for arm in summary["arms"]:
        wins = [row["wins"][arm["name"]] for row in rows]
        assert np.shape(wins) == (16, 2) and math.isclose(np.mean(wins), arm["win_rate"], abs_tol=1e-9)


def merged(p_12, p_21):
    """The answer from both orders: the mean of logits, which the antisymmetric form fits."""
    odds = p_12 * (1 - p_21) / (p_21 * (1 - p_12))
    return np.sqrt(odds) / (1 + np.sqrt(odds))


def test_samples_of_ppo_add_up(workdir):
    for name in PPO:
        rows = read_rows(workdir / name / "samples.jsonl")
        assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
        for row in rows:
            assert set(row) == {"step", "prompt", "response", "anchor", "p_12", "p_21", "reward", "logp", "kl"}
            assert row["logp"] < 0 and (row["anchor"] is None) == (name != "pairwise_ppo")
            assert (row["p_12"] is None) == (name == "ppo")
    for row in read_rows(workdir / "peer_ppo" / "samples.jsonl"):  # one opponent, so its judgement is the reward
        assert math.isclose(row["reward"], merged(row["p_12"], row["p_21"]), abs_tol=1e-6)


def test_anchors_are_one_list_a_prompt(workdir):
    best, given = (read_rows(workdir / name / "anchors.jsonl") for name in ("anchors", "references"))
    assert len(best) == len(given) == 24
    # Two each, but where a prompt's samples are too few that are whole and different.
    assert all(1 <= len(row["anchors"]) == len(set(row["anchors"])) <= 2 for row in best)
    assert {len(row["anchors"]) for row in given} == {1}
    assert [row["id"] for row in best] == [row["id"] for row in given] and len({row["id"] for row in best}) == 24


def test_summary_is_the_final_table_as_data(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(summary["judges"]) == {"bt", "genrm"} and summary["prompts"] == 16
    assert [arm["stage"] for arm in summary["arms"]] == ["sft", "sft", "pairwise_ppo", "ppo"]
    assert [arm["name"] for arm in summary["arms"]] == ["sft, sampled", "sft, greedy", "Pairwise-RL", "BT + PPO"]
    assert summary["opponent"] == "sft" and len(summary["paired"]) == 6
    for arm in summary["arms"]:
        assert 0 <= arm["win_rate_low"] <= arm["win_rate"] <= arm["win_rate_high"] <= 1
        assert arm["response_length"] > 0 and "kl" in arm and "utility" in arm
        judged = (arm["judge_accuracy"], arm["judge_ece"], arm["judge_order_consistency"])
        assert all(v is None for v in judged) if arm["judge"] is None else all(0 <= v <= 1 for v in judged)
    assert summary["arms"][0]["kl"] == 0.0


def test_terminal_shows_stages_a_table_and_the_report_and_nothing_else(pipeline):
    workdir, done, _ = pipeline
    assert done.out.splitlines()[-1] == f"Report: {workdir / 'report.html'}" and "BT + PPO" in done.out
    expected, *stages = done.err.splitlines()
    assert says(expected, "Expected", "each device")
    assert {line.split()[0] for line in stages} == {*STAGES, "together"} - {"references"}
    last = {line.split()[0]: line for line in done.err.splitlines()}
    assert says(last["sft"], "6/6", "step/s", "ETA 0:00", "loss") and says(last["bt"], "accuracy")
    assert says(last["pairwise_ppo"], "4/4", "win rate", "kl", "reward")


def test_steps_of_ppo_compile_nothing(pipeline):
    """All is compiled by the end of the second step, whose state is the first that an update has made."""
    events = pipeline[2]
    for name in PPO:
        steps = {n: events.index(("step", name, n)) for n in range(5)}
        before = [what for kind, what, _ in events[steps[0] : steps[1]] if kind == "compiled"]
        assert sum("update" in what for what in before) == 1, f"{name}: {before}"
        late = [what for kind, what, _ in events[steps[3] : steps[4]] if kind == "compiled"]
        second = [what for kind, what, _ in events[steps[1] : steps[2]] if kind == "compiled"]
        assert late == [] and not any("update" in w or "prepare" in w or "generate" in w for w in second), name


@pytest.fixture
def no_report(monkeypatch):
    """Reports have tests of their own, and take seconds."""
    monkeypatch.setattr(reporting, "build_report", lambda paths: paths[0] / "report.html")


def test_a_second_run_skips_every_stage(workdir, no_report):
    files = [path for name in STAGES for path in (workdir / name).rglob("*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in files]
    free = ("--config.logging.progress=false", "--config.mesh.fsdp=-1", "--config.mesh.data=1")
    done = prl("run", "--config", MICRO, "--workdir", workdir, *free)
    assert done.code == 0 and f"Report: {workdir / 'report.html'}" in done.out
    assert [line.split()[0] for line in done.err.splitlines()] == list(STAGES)
    assert done.err.count("finished before, skipped") == len(STAGES)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_stage_killed_just_before_its_end_has_the_same_result(workdir, tmp_path, no_report):
    """All steps are done and saved; only the result is missing."""
    shutil.copytree(workdir, tmp_path / "run")
    stages = [tmp_path / "run" / name for name in ("sft", "genrm")]
    before = [(stage / "metrics.jsonl").read_bytes() for stage in stages]
    results = [json.loads((stage / "result.json").read_text()) for stage in stages]
    for stage in stages:
        (stage / "result.json").unlink()
    assert prl("run", "--config", MICRO, "--workdir", tmp_path / "run").code == 0
    for stage, metrics, result in zip(stages, before, results, strict=True):
        again = json.loads((stage / "result.json").read_text())
        assert (stage / "metrics.jsonl").read_bytes() == metrics
        assert again["metrics"] == result["metrics"] != {} and again["kind"] == result["kind"]


@pytest.mark.parametrize("name", JUDGES)
def test_judge_writes_both_orders_of_every_pair(workdir, pairs, tmp_path, name):
    rows, _ = judge(workdir / name, pairs, tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["sure", "soft", "votes", "tie", "same", f"{pairs}:6"]
    assert all(list(row) == ["id", "p_12", "p_21", "p_chosen"] for row in rows)
    p_12, p_21, p = (np.array([row[key] for row in rows]) for key in ("p_12", "p_21", "p_chosen"))
    np.testing.assert_allclose(p, merged(p_12, p_21), atol=1e-6)
    assert (p_12[4], p_21[4], p[4]) == (0.5, 0.5, 0.5) and ((0 < p) & (p < 1)).all()
    one_minus = np.abs(p_21 - (1 - p_12))
    assert one_minus.max() < 1e-6 if name == "bt" else one_minus.max() > 1e-4
    exchanged = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    other, _ = judge(workdir / name, write_rows(tmp_path / "other.jsonl", exchanged), tmp_path / "out.jsonl")
    np.testing.assert_allclose([row["p_12"] for row in other], p_21, atol=1e-6)
    np.testing.assert_allclose([row["p_21"] for row in other], p_12, atol=1e-6)


@pytest.mark.parametrize("name", JUDGES)
def test_judge_prints_its_metrics(workdir, pairs, tmp_path, name):
    rows, metrics = judge(workdir / name, pairs, tmp_path / "out.jsonl")
    keys = ["n", "not_finite", "accuracy", "accuracy_low", "accuracy_high", "longer_wins", "ece", "brier", "log_loss"]
    counts = ["truncated", "skipped", "invalid"]
    assert list(metrics) == [*keys, "order_consistency", "position_bias", "ties", *counts]
    assert all(metrics[key] == 0 for key in counts)
    assert (metrics["n"], metrics["ties"], metrics["not_finite"]) == (6, 2, 0)
    assert 0 <= metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"] <= 1
    p = [row["p_chosen"] for row in rows]
    right = [0.5 if q == 0.5 else float(q > 0.5) for q, soft in zip(p, SOFT, strict=True) if soft != 0.5]
    assert metrics["accuracy"] == pytest.approx(sum(right) / 4)
    # Longer, of pairs that are no tie: same length, rejected, chosen, rejected (two words).
    assert metrics["longer_wins"] == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert metrics["brier"] == pytest.approx(np.mean([(a - b) ** 2 for a, b in zip(p, SOFT, strict=True)]), abs=1e-6)
    entropy = [-(s * math.log(q) + (1 - s) * math.log(1 - q)) for q, s in zip(p, SOFT, strict=True)]
    assert metrics["log_loss"] == pytest.approx(np.mean(entropy), abs=1e-6)
    named = [np.sign(row["p_12"] - 0.5) == np.sign(0.5 - row["p_21"]) for row in rows]
    assert metrics["order_consistency"] == pytest.approx(np.mean(named)) and (name != "bt" or all(named))
    assert 0 <= metrics["ece"] <= 1


def test_judge_reads_gzip_and_any_batch_size(workdir, pairs, tmp_path):
    rows, metrics = judge(workdir / "bt", pairs, tmp_path / "out.jsonl")
    zipped = tmp_path / "zipped.jsonl.gz"
    zipped.write_bytes(gzip.compress(pairs.read_bytes()))
    done = prl(
        "judge", f"--model={workdir / 'bt'}", "--data", zipped, "--out", tmp_path / "other.jsonl", "--batch_size=4"
    )
    assert done.code == 0 and json.loads(done.out) == pytest.approx(metrics, abs=1e-6)
    for a, b in zip(rows[:5], read_rows(tmp_path / "other.jsonl")[:5], strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_rows_are_bounded_and_named_by_place_where_ids_repeat(workdir, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    write_rows(prompts, [{"id": "same", "prompt": "sort ba."}, {"id": "same", "prompt": "sort cb."}])
    rows = generate(workdir / "sft", prompts, out, "--max_new_tokens=2")
    assert [row["id"] for row in rows] == [f"{prompts}:1", f"{prompts}:2"]
    prompts.write_bytes(gzip.compress(b'{"prompt": "sort ba."}\n' * 100_000))
    flags = ("--overwrite", "--max_unpacked_mib=1")
    done = prl("generate", f"--model={workdir / 'sft'}", "--prompts", prompts, "--out", out, *flags)
    assert done.code == 2 and "unpacks to more than 1 MiB (a larger max_unpacked_mib allows it)" in done.err


def test_generate_follows_its_seed(workdir, tmp_path):
    prompts = write_rows(
        tmp_path / "prompts.jsonl", [{"id": f"p{i}", "prompt": f"sort {w}."} for i, w in enumerate(("ba", "cab", "dd"))]
    )
    flags = ("--max_new_tokens=5", "--temperature=1.0", "--batch_size=2")
    out = tmp_path / "out.jsonl"
    rows = generate(workdir / "pairwise_ppo", prompts, out, *flags, "--seed=3")
    assert [row["id"] for row in rows] == ["p0", "p1", "p2"] and rows[1]["prompt"][0]["content"] == "sort cab."
    assert all(set(row) == {"id", "prompt", "response", "logp", "truncated"} and row["logp"] < 0 for row in rows)
    assert all(len(row["response"]) <= 5 for row in rows)
    assert generate(workdir / "pairwise_ppo", prompts, out, *flags, "--seed=3") == rows
    other = generate(workdir / "pairwise_ppo", prompts, out, *flags, "--seed=4")
    assert [row["response"] for row in other] != [row["response"] for row in rows]
    zipped = tmp_path / "prompts.jsonl.gz"
    zipped.write_bytes(gzip.compress(prompts.read_bytes()))
    assert generate(workdir / "pairwise_ppo", zipped, out, *flags, "--seed=3") == rows


def test_generate_takes_the_switches_of_sampling(workdir, pairs, tmp_path):
    """A response ends before the text that stops it, was not truncated, and has none of the suppressed tokens."""
    flags = (
        "--max_new_tokens=5",
        "--batch_size=2",
        "--temperature=3",
        "--suppressed_tokens=97,98",
        "--stop=c",
        "--stop=d",
    )
    rows = generate(workdir / "sft", pairs, tmp_path / "out.jsonl", *flags, "--min_new_tokens=1")
    assert len(rows) == len(PAIRS) and not any(set(row["response"]) & set("ab") for row in rows)
    assert not any(set(row["response"][1:]) & set("cd") for row in rows)


def test_greedy_generation_needs_no_seed(workdir, pairs, tmp_path):
    flags = ("--temperature=0", "--max_new_tokens=5", "--batch_size=2")
    one, two = (generate(workdir / "sft", pairs, tmp_path / "out.jsonl", *flags, f"--seed={seed}") for seed in (0, 1))
    assert one == two and len(one) == len(PAIRS)


def test_report_of_two_workdirs_has_both(workdir, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(workdir, tmp_path / name, ignore=shutil.ignore_patterns("data", "checkpoints", "report.*"))
    done = prl("report", "--workdir", tmp_path / "one", tmp_path / "two")
    assert (done.code, done.err, done.out) == (0, "", f"Report: {tmp_path / 'one' / 'report.html'}\n")
    page = (tmp_path / "one" / "report.html").read_text()
    assert "two" in page and not (tmp_path / "two" / "report.html").exists()


def test_a_wrong_model_is_refused(workdir, pairs, tmp_path):
    out = tmp_path / "out.jsonl"

    def asked(command, model):
        data = "--data" if command == "judge" else "--prompts"
        return refused(command, "--model", model, data, pairs, "--out", out)

    assert says(asked("judge", tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such directory")
    assert says(asked("judge", workdir), str(workdir), "not a model directory", "WORKDIR/sft")
    assert says(asked("generate", workdir / "anchors"), "not a model directory")
    assert says(asked("judge", workdir / "sft"), "holds a policy", "expected a judge")
    assert says(asked("judge", workdir / "ppo"), "holds a policy", "expected a judge")
    assert says(asked("generate", workdir / "genrm"), "holds a generative_judge", "expected a policy")
    assert says(asked("generate", workdir / "bt"), "holds a scalar_judge", "expected a policy")
    assert not out.exists()


LONG = PAIRS[0] | {"id": "long one", "prompt": "sort " + "a" * 40 + "."}


@pytest.mark.parametrize("name", JUDGES)
def test_long_pairs_are_refused_cut_or_left_out(workdir, tmp_path, name):
    out = write_rows(tmp_path / "out.jsonl", [{"kept": True}])
    data = write_rows(tmp_path / "data.jsonl", [*PAIRS, LONG])
    argv = ("judge", "--model", workdir / name, "--data", data, "--out", out, "--overwrite")
    line = refused(*argv)
    assert says(line, f"{data}:7", "'long one'", "tokens", "1 of 7", "shorten", "--on_long")
    assert read_rows(out) == [{"kept": True}]
    done = prl(*argv, "--on_long", "skip")
    assert done.code == 0 and len(read_rows(out)) == 6
    assert json.loads(done.out)["skipped"] == 1 and json.loads(done.out)["truncated"] == 0
    done = prl(*argv, "--on_long", "truncate")
    assert done.code == 0 and [row["id"] for row in read_rows(out)][-1] == "long one"
    assert json.loads(done.out)["truncated"] == 1 and json.loads(done.out)["n"] == 7
    assert says(refused(*argv, "--max_length=3", "--on_long", "skip"), "none of the 7 rows can be used")


def test_long_prompts_are_refused_cut_or_left_out(workdir, tmp_path):
    out = write_rows(tmp_path / "out.jsonl", [{"kept": True}])
    data = write_rows(tmp_path / "data.jsonl", [{"prompt": "sort ba."}, {"prompt": LONG["prompt"]}])
    argv = ("generate", "--model", workdir / "sft", "--prompts", data, "--out", out, "--overwrite")
    line = refused(*argv)
    assert says(line, f"{data}:2", "tokens", "12", "1 of 2") and read_rows(out) == [{"kept": True}]
    done = prl(*argv, "--on_long=truncate")
    assert done.code == 0 and says(done.out, "2 responses, 1 prompts truncated") and len(read_rows(out)) == 2
    done = prl(*argv, "--on_long=skip", "--max_length=17")
    assert done.code == 0 and says(done.out, "1 responses, 1 prompts skipped") and len(read_rows(out)) == 1
    assert says(refused(*argv, "--max_length=6"), "max_new_tokens=6 leaves no room for a prompt", "6 tokens")


def test_rows_that_cannot_be_read_are_left_out_up_to_a_number(workdir, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", [*PAIRS, {"prompt": "a"}, {"prompt": "b", "chosen": 3, "rejected": "x"}])
    argv = ("judge", "--model", workdir / "bt", "--data", data, "--out", tmp_path / "out.jsonl")
    assert says(refused(*argv), f"{data}:7", "2 of 8 rows", "--skip_invalid=2")
    assert says(refused(*argv, "--skip_invalid=1"), f"{data}:7")
    done = prl(*argv, "--skip_invalid=2")
    assert done.code == 0 and json.loads(done.out)["invalid"] == 2 and len(read_rows(tmp_path / "out.jsonl")) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": ', ("data.jsonl:2", "malformed JSON")),
        ('{"prompt": "a", "chosen": "b"}', ("data.jsonl:1", '"rejected" is missing')),
        ('\n{"prompt": "a", "chosen": "b", "rejected": 3}', ("data.jsonl:2", '"rejected"', "is 3")),
        ('{"prompt": 1, "chosen": "b", "rejected": "c"}', ("data.jsonl:1", '"prompt"')),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "tie": "no"}', ("data.jsonl:1", '"tie"', "true or false")),
        ("[1]", ("data.jsonl", "is a JSON array")),
        ("\n\n", ("data.jsonl", "empty")),
        (None, ("data.jsonl", "no such file")),
    ],
)
def test_bad_rows_are_refused_by_file_line_and_field(workdir, tmp_path, text, words):
    if text is not None:
        (tmp_path / "data.jsonl").write_text(text)
    argv = ("judge", "--model", workdir / "bt", "--data", tmp_path / "data.jsonl", "--out", tmp_path / "out.jsonl")
    assert says(refused(*argv), *words) and not (tmp_path / "out.jsonl").exists()


def test_outputs_that_cannot_be_written_are_refused(workdir, pairs, tmp_path):
    argv = ("judge", "--model", workdir / "bt", "--data", pairs, "--overwrite", "--out")
    assert says(refused(*argv, tmp_path), "is a folder")
    assert says(refused(*argv, f"{tmp_path}/out.jsonl/"), "names a folder")
    assert says(refused(*argv, tmp_path / "nowhere" / "out.jsonl"), "no folder", "nowhere")
    assert says(refused(*argv, "-"), "--out -", "name a file")
    assert says(refused("run", "--config", MICRO, "--workdir", pairs), "is a file")
    assert says(refused("run", "--config", MICRO, "--workdir", tmp_path), "not empty", "config.json")
    assert says(refused("report", "--workdir", tmp_path / "nowhere"), "nowhere", "no such workdir")
    assert says(refused("report", "--workdir", tmp_path), "expected a workdir")
    assert read_rows(pairs) == PAIRS


def test_what_is_read_is_not_written_over(workdir, pairs, tmp_path):
    (tmp_path / "link").symlink_to(pairs.name)
    (tmp_path / "hard").hardlink_to(pairs)
    os.mkfifo(tmp_path / "fifo")
    before = {path: path.lstat().st_ino for path in tmp_path.iterdir()}
    argv = ("judge", "--model", workdir / "bt", "--data", pairs, "--overwrite", "--out")
    for out in (pairs, tmp_path / "link", tmp_path / "hard", pairs.parent / "x" / ".." / pairs.name):
        assert says(refused(*argv, out), "is the file that is read")
    assert says(refused(*argv, tmp_path / "fifo"), "is a named pipe")
    assert says(refused(*argv, "/dev/null"), "is a device")
    for name in ("model.json", "checkpoints/new", "config.json"):
        assert says(refused(*argv, workdir / "bt" / name), "is inside the model that is read")
    assert says(refused("generate", "--model", workdir / "sft", "--prompts", pairs, "--out", pairs), "that is read")
    assert read_rows(pairs) == PAIRS and before == {path: path.lstat().st_ino for path in tmp_path.iterdir()}


def test_an_output_that_is_there_is_replaced_only_when_asked(workdir, pairs, tmp_path):
    out = write_rows(tmp_path / "out.jsonl", [{"kept": True}])
    (tmp_path / "link.jsonl").symlink_to("out.jsonl")
    for flag, data, command, name in (("--data", pairs, "judge", "bt"), ("--prompts", pairs, "generate", "sft")):
        argv = (command, "--model", workdir / name, flag, data, "--out", tmp_path / "link.jsonl")
        assert says(refused(*argv), "is there already", "--overwrite") and read_rows(out) == [{"kept": True}]
    out.write_text("")  # as mktemp leaves it
    assert prl(*argv).code == 0 and (tmp_path / "link.jsonl").is_symlink() and len(read_rows(out)) == len(PAIRS)


@pytest.mark.parametrize("command", ["judge", "generate"])
def test_an_interrupted_command_goes_on_behind_its_rows(workdir, tmp_path, monkeypatch, command):
    name, flag = {"judge": ("bt", "--data"), "generate": ("sft", "--prompts")}[command]
    data, made = write_rows(tmp_path / "data.jsonl", PAIRS * 2), []
    argv = (command, "--model", workdir / name, flag, data, "--batch_size=4", "--out")
    add = outputs.RowsFile.add

    def stopping(self, rows):
        add(self, rows)
        made.append(len(rows))
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(outputs.RowsFile, "add", stopping)
    whole, out, partial = (tmp_path / name for name in ("whole.jsonl", "out.jsonl", "out.jsonl.partial"))
    done = prl(*argv, out)
    assert done.code == 75 and not out.exists() and len(read_rows(partial)) == 1 + 8
    assert says(done.err.splitlines()[-1], "stopped by SIGTERM: 8 of 12 rows are kept in", "the same command continues")
    other = ("--on_long=skip",)
    assert says(refused(*argv, out, *other), "out.jsonl.partial: holds 8 rows", "with another on_long", "--overwrite")
    with open(partial, "a") as file:
        file.write('{"id": "half')  # killed at this moment
    made.clear()
    made += [0, 0, 0]
    done = prl(*argv, out)
    assert done.code == 0 and says(done.err, "goes on behind the 8 rows", "12/12") and made[3:] == [4]
    assert not partial.exists() and prl(*argv, whole).code == 0
    assert out.read_bytes() == whole.read_bytes() and len(read_rows(out)) == 12


def test_rows_that_are_not_finished_follow_no_link(workdir, pairs, tmp_path):
    (tmp_path / "mine").write_text("precious\n")
    argv = ("judge", "--model", workdir / "bt", "--data", pairs, "--overwrite", "--out", tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl.partial").symlink_to("mine")
    assert says(refused(*argv), "out.jsonl.partial: cannot write")
    (tmp_path / "out.jsonl.partial").unlink()
    (tmp_path / "mine").rename(tmp_path / "out.jsonl.partial")
    assert says(refused(*argv), "out.jsonl.partial: is in the way")
    assert (tmp_path / "out.jsonl.partial").read_text() == "precious\n"


def spoil(monkeypatch):
    """Parameters that are not finite, whatever is loaded."""
    load = artifacts.load_model

    def spoiled(*arguments, **values):
        card, model, tokenizer = load(*arguments, **values)
        return card, jax.tree.map(lambda x: x * np.nan, model), tokenizer

    monkeypatch.setattr(artifacts, "load_model", spoiled)


def no_constant(name):
    raise ValueError(f"{name} is no JSON")


def test_numbers_that_are_not_finite_are_counted(workdir, pairs, tmp_path, monkeypatch):
    spoil(monkeypatch)
    out = tmp_path / "out.jsonl"
    line = refused("judge", "--model", workdir / "bt", "--data", pairs, "--out", out)
    assert says(line, "5 of 6 judgements are not finite", "null", str(out))
    rows = [json.loads(text, parse_constant=no_constant) for text in out.read_text().splitlines()]
    assert [row["p_chosen"] for row in rows] == [None, None, None, None, 0.5, None]
    line = refused("generate", "--model", workdir / "sft", "--prompts", pairs, "--out", out, "--overwrite")
    assert says(line, "6 of 6 responses", "not finite")
    assert all(row["logp"] is None and row["response"] is None for row in read_rows(out))


def test_an_export_is_replaced_only_when_asked_and_never_what_is_read(workdir, tmp_path):
    argv = ("export", "--workdir", workdir, "--stage", "sft", "--out")
    assert prl(*argv, tmp_path / "model").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o666 & ~umask()}
    assert says(refused(*argv, tmp_path / "model"), "is there already", "--overwrite")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"old")
    assert prl(*argv, tmp_path / "model", "--overwrite").code == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    (tmp_path / "model" / "notes.txt").write_text("mine")
    assert says(refused(*argv, tmp_path / "model", "--overwrite"), "notes.txt", "no export has written this")
    for out in (workdir, workdir / "sft", workdir.parent):
        assert says(refused(*argv, out, "--overwrite"), "holds the model that is read")
    assert says(refused(*argv, workdir / "sft" / "new"), "is inside the model that is read")
    assert says(refused(*argv, workdir / "bt", "--overwrite"), "no export has written this")
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_of_llama_cpp_goes_out_and_generates_the_same(workdir, tmp_path):
    argv = ("export", "--workdir", workdir, "--format", "gguf", "--stage")
    out = tmp_path / "model.gguf"
    assert prl(*argv, "sft", "--out", out).code == 0
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "sort ba."}, {"prompt": "rev abc."}])
    greedy = ("--temperature", 0, "--max_new_tokens", 4)
    rows = [generate(model, prompts, tmp_path / "o.jsonl", *greedy) for model in (workdir / "sft", out)]
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    before = out.read_bytes()
    assert says(refused(*argv, "sft", "--out", out), "is there already", "--overwrite")
    assert prl(*argv, "sft", "--out", out, "--overwrite", "--gguf_type", "f16").code == 0
    assert len(before) > len(out.read_bytes()) > len(before) // 3
    assert says(refused(*argv, "bt", "--out", tmp_path / "bt.gguf"), "holds a judge that scores")
    assert says(refused(*argv, "sft", "--out", f"{tmp_path}/"), "names a folder")
    assert says(refused(*argv, "sft", "--out", workdir / "sft" / "m.gguf"), "is inside the model that is read")
    for flags in (("--adapters",), ("--dtype", "bfloat16"), ("--notokenizer",)):
        assert says(refused(*argv, "sft", "--out", out, *flags), flags[0], "goes with --format huggingface")
    argv = ("export", "--workdir", workdir, "--stage", "sft", "--out", tmp_path / "m", "--gguf_type", "f16")
    assert says(refused(*argv), "--gguf_type goes with --format gguf")


def umask():
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize("path", ["gs://bucket/x", "s3://bucket/x.jsonl", "file:///tmp/x", "hf://org/model"])
def test_paths_with_a_scheme_are_refused(workdir, pairs, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    bt, sft = workdir / "bt", workdir / "sft"
    for argv in (
        ("run", "--config", MICRO, "--workdir", path),
        ("run", "--config", f"{path}.py:all", "--workdir", tmp_path / "new"),
        ("run", "--config", MICRO, "--workdir", tmp_path / "new", f"--config.bt.init_from={path}"),
        ("run", "--config", MICRO, "--workdir", tmp_path / "new", "--compilation_cache_dir", path),
        ("plan", "--config", path, "--topology", "cpu:1"),
        ("judge", "--model", path, "--data", pairs, "--out", tmp_path / "o.jsonl"),
        ("judge", "--model", bt, "--data", path, "--out", tmp_path / "o.jsonl"),
        ("judge", "--model", bt, "--data", pairs, "--out", path),
        ("generate", "--model", sft, "--prompts", path, "--out", tmp_path / "o.jsonl"),
        ("export", "--workdir", path, "--stage", "sft", "--out", tmp_path / "o"),
        ("export", "--workdir", workdir, "--stage", "sft", "--out", path),
        ("report", "--workdir", path),
        ("report", "--workdir", workdir, path),
    ):
        assert says(refused(*argv), "paths with a scheme", "not supported"), argv
    source = ("--config.sft.data.kind=jsonl", f"--config.sft.data.path={path}")
    argv = ("run", "--config", MICRO, "--workdir", tmp_path / "new")
    assert says(refused(*argv, *source), "sft.data", "paths with a scheme")
    tokenizer = ("--config.tokenizer.kind=huggingface", f"--config.tokenizer.path={path}")
    assert says(refused(*argv, *tokenizer), "paths with a scheme")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--temperature=inf", "finite"), ("--temperature=nan", "finite"), ("--temperature=-1", "non-negative"),
        ("--temperature=1e-40", "at least 1e-30"), ("--top_p=0", "more than 0"), ("--top_p=1.5", "at most 1"),
        ("--top_p=nan", "finite"), ("--min_p=1.5", "from 0 to 1"), ("--suppressed_tokens=3,a", "ids such as"),
        ("--stop_token_ids=99999", "no id of a token"), ("--template_args=x", "NAME=VALUE"), ("--on_long=cut", "error"),
        ('--template_args={"a": {"b": NaN}}', "finite"),
    ],
)  # fmt: skip
def test_flags_out_of_range(workdir, pairs, tmp_path, flag, words):
    argv = ("generate", "--model", workdir / "sft", "--prompts", pairs, "--out", tmp_path / "out.jsonl", flag)
    assert says(refused(*argv), flag.split("=")[0].strip("-"), words)


def test_a_tiny_temperature_is_nearly_greedy(workdir, pairs, tmp_path):
    greedy, cold = (
        generate(workdir / "sft", pairs, tmp_path / "o.jsonl", f"--temperature={t}", "--max_new_tokens=5")
        for t in ("0", "1e-9")
    )
    assert [row["response"] for row in cold] == [row["response"] for row in greedy]
    assert all(-1e-3 <= row["logp"] <= 0 for row in cold)


def test_template_arguments_come_as_names_or_as_json():
    given = ["a=false", "b=text", 'c={"x": [1]}', '{"d": null, "e": "f=g"}', "h=null", "i=1=2"]
    expected = {"a": False, "b": "text", "c": {"x": [1]}, "d": None, "e": "f=g", "h": None, "i": "1=2"}
    assert template_args(given) == expected
    with pytest.raises(UserError, match="a is given twice"):
        template_args(["a=1", '{"a": 1}'])


def damage(stage, cut):
    """Applies `cut` to every file that holds arrays of a stage's parameters."""
    files = [path for path in (stage / "checkpoints").glob("*/model/**/d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(cut(path.read_bytes()))


@pytest.mark.parametrize("cut", [lambda data: data[: len(data) // 2], lambda data: data[:20] + b"?" * 9 + data[29:]])
def test_unreadable_checkpoints_are_refused(workdir, pairs, tmp_path, cut):
    shutil.copytree(workdir / "bt", tmp_path / "bt")
    damage(tmp_path / "bt", cut)
    argv = ("judge", "--model", tmp_path / "bt", "--data", pairs, "--out", tmp_path / "out.jsonl")
    assert says(refused(*argv), str(tmp_path / "bt" / "checkpoints" / "4"), "cannot be read")
    shutil.rmtree(tmp_path / "bt" / "checkpoints" / "4")
    assert says(refused(*argv), "holds no checkpoint")
    (tmp_path / "bt" / "model.json").write_text('{"kind": "scalar_judge"')
    assert says(refused(*argv), "model.json", "cannot be read")


def test_a_run_stops_at_an_unreadable_checkpoint(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    damage(tmp_path / "run" / "group_ppo", lambda data: data[:20])
    (tmp_path / "run" / "group_ppo" / "result.json").unlink()
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "run")
    assert says(line, "group_ppo/checkpoints/4", "cannot be read", "delete")


def test_a_workdir_of_another_config_is_refused(workdir, tmp_path):
    argv = ("run", "--config", MICRO, "--workdir", workdir)
    assert says(refused(*argv, "--config.bt.batch_size=8"), str(workdir), "bt.batch_size is 16 there and 8 here")
    assert says(refused(*argv, "--config.seed=1", "--config.title=x"), "seed is 0 there and 1 here", "1 more")
    assert says(refused("run", "--config", MICRO + ":short", "--workdir", workdir), "another config")


def test_the_module_is_the_command_and_loads_nothing_that_it_does_not_need():
    run = [sys.executable, "-W", "error"]
    usage = subprocess.run([*run, "-m", "prl_jax", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert usage.stdout.startswith("Usage: prl COMMAND") and usage.stderr == ""
    code = "import sys, prl_jax.cli; print({'jax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules))"
    loaded = subprocess.run([*run, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"
