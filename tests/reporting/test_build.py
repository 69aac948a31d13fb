"""Reports of made-up workdirs, from a whole one to an empty one."""

import base64
import html
import html.parser
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from prl_jax.errors import UserError
from prl_jax.reporting import build_report

EVIL = (
    '<script>alert("x")</script> & \x1b[31mred\x00 \u202eabc |pipe| $a_b$ `code` \udc80 **bold** <img src=x onerror=y>'
)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fake_workdir(root: Path, *, seed: int = 0, name: str = "quickstart", responses: str = "abc") -> Path:
    """A plausible finished workdir."""
    rng = np.random.default_rng(seed)
    workdir = root / name
    stages = {"sft": "sft", "bt": "reward_model", "pairwise": "reward_model", "anchors": "anchors"}
    stages |= {"ppo_bt": "ppo", "ppo_pairwise": "ppo", "evaluation": "evaluation"}
    for stage, kind in stages.items():
        (workdir / stage).mkdir(parents=True)
        seconds = {"sft": 62.0, "reward_model": 71.5, "anchors": 3.0, "ppo": 58.0, "evaluation": 12.0}[kind]
        (workdir / stage / "result.json").write_text(json.dumps({"kind": kind, "metrics": {}, "seconds": seconds}))
    config = {"seed": seed, "stages": list(stages), "data": {"path": "", "noise": 0.1}, "mesh": {"data": seed}}
    config |= {name: {"kind": kind} for name, kind in stages.items()}
    measured = {"kind": "gold", "path": "", "split": "validation", "limit": 256, "skip": 0}
    for stage in ("ppo_bt", "ppo_pairwise"):
        config[stage] |= {"policy": "sft", "judge": "bt", "evaluation": {"prompts": measured, "judge": "gold"}}
    titles = {"ppo_bt": {"title": "BT + PPO"}, "ppo_pairwise": {"title": "Pairwise-RL"}}
    config["evaluation"] |= {"opponent": "sft", "arms": titles, "judge": "gold", "samples": 4}
    config["evaluation"] |= {"prompts": measured | {"split": "test", "limit": 512}}
    versions = {"prl_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.7"}
    whole = {"config": config, "versions": versions, "git_revision": "0" * 40, "devices": ["cpu:0"]}
    (workdir / "config.json").write_text(json.dumps(whole))
    write_jsonl(workdir / "sft" / "metrics.jsonl", [curve(rng, step, 300, "sft") for step in range(20, 301, 20)])
    for stage in ("bt", "pairwise"):
        rows = [curve(rng, step, 500, "reward_model") for step in range(20, 501, 20)]
        write_jsonl(workdir / stage / "metrics.jsonl", rows)
    for stage, gain in (("ppo_bt", 0.22), ("ppo_pairwise", 0.15)):
        write_jsonl(workdir / stage / "metrics.jsonl", [ppo_row(rng, step, gain) for step in range(2, 61, 2)])
        write_jsonl(workdir / stage / "samples.jsonl", [ppo_sample(rng, step) for step in range(31, 61)])
    arms = ["sft, sampled", "sft, greedy", "BT + PPO", "Pairwise-RL"]
    rows = [
        {
            "prompt": f"Sort the letters: prompt {i}",
            "anchor": f"anchor {i}",
            "responses": {arm: f"{responses} {arm} {i}" for arm in arms},
            "utilities": {arm: float(rng.uniform()) for arm in arms},
        }
        for i in range(30)
    ]
    write_jsonl(workdir / "evaluation" / "samples.jsonl", rows)
    (workdir / "summary.json").write_text(json.dumps(fake_summary(seed)))
    return workdir


def curve(rng, step, total, kind):
    done = 1 - math.exp(-3 * step / total)
    row = {
        "step": step,
        "loss": 0.7 - 0.3 * done + 0.02 * rng.normal(),
        "accuracy": 0.5 + 0.3 * done + 0.02 * rng.normal(),
    }
    if kind == "sft":
        return row | {"tokens_per_second": 1e4}
    row |= {"margin": done + 0.05 * rng.normal(), "order_consistency": 0.4 + 0.5 * done}
    return row | ({"validation_accuracy": 0.5 + 0.27 * done} if step % 100 == 0 else {})


def ppo_row(rng, step, gain):
    done = 1 - math.exp(-step / 25)
    row = {"step": step, "reward": 0.5 + gain * done + 0.02 * rng.normal(), "kl": 3 * done * (1 + 0.05 * rng.normal())}
    row |= {"win_rate_anchors": 0.4 + gain * done, "entropy": 1.4 - 0.6 * done, "clip_fraction": 0.1 * (1 - done)}
    row |= {"response_length": 12 - 3 * done, "value_loss": None if step == 2 else 0.05 * (1 - done) + 0.01}
    if step % 10 == 0:
        win = 0.5 + gain * done + 0.01 * rng.normal()
        row |= {"win_rate": win, "win_rate_low": win - 0.02, "win_rate_high": win + 0.02}
    return row


def ppo_sample(rng, step):
    p = float(rng.uniform(0.2, 0.8))
    sample = {
        "step": step,
        "prompt": f"prompt {step}",
        "response": "dcba",
        "anchor": "abcd",
        "p_12": p,
        "p_21": 0.95 - p,
    }
    return sample | {"reward": p, "logp": -3.0, "kl": 0.4}


def fake_summary(seed=0):
    bins = [
        {"low": 0.5 + 0.05 * i, "high": 0.55 + 0.05 * i, "confidence": 0.525 + 0.05 * i, "frequency": 0.51 + 0.047 * i}
        | {"count": 220 - 20 * i}
        for i in range(10)
    ]
    bins[9] = {"low": 0.95, "high": 1.0, "confidence": None, "frequency": None, "count": 0}
    judge = {
        "accuracy": 0.78,
        "ece": 0.021,
        "brier": 0.19,
        "log_loss": 0.52,
        "order_consistency": 1.0,
        "longer_wins": 0.52,
    }
    judge |= {"n": 1280, "ties": 31, "bayes_accuracy": 0.81, "accuracy_vs_truth": 0.84, "reliability": bins}
    shift = 0.004 * seed
    arms = [
        {
            "name": "sft, sampled",
            "stage": "sft",
            "judge": None,
            **win(0.5, 0),
            "utility": 0.61,
            "response_length": 12.1,
        },
        {"name": "sft, greedy", "stage": "sft", "judge": None, **win(0.56 + shift, 0.01), "utility": 0.66, "kl": None},
        {"name": "BT + PPO", "stage": "ppo_bt", "judge": "bt", "judge_accuracy": 0.78, "judge_ece": 0.021, "kl": 2.9}
        | {"judge_order_consistency": 1.0, "win_rate_vs_anchor": 0.61, **win(0.72 - shift, 0.017), "utility": 0.8}
        | {"response_length": 9.2, "attributes": {"correctness": 0.82, "brevity": 0.7, "form": 0.9}},
        {
            "name": "Pairwise-RL",
            "stage": "ppo_pairwise",
            "judge": "pairwise",
            "judge_accuracy": 0.75,
            "judge_ece": 0.015,
        }
        | {"judge_order_consistency": 0.91, "win_rate_vs_anchor": 0.55, **win(0.64 + shift, 0.015), "utility": 0.74}
        | {"kl": 2.7, "response_length": 10.4, "attributes": {"correctness": 0.75, "brevity": 0.68, "form": 0.88}},
    ]
    judges = {"bt": judge, "pairwise": judge | {"accuracy": 0.75, "ece": 0.015, "order_consistency": 0.91}}
    text = {"title": "Quickstart: Pairwise-RL on the gold tasks", "notes": ["Small models."], "win_rate_judge": "gold"}
    pair = {"arm": "Pairwise-RL", "other": "BT + PPO", "difference": -0.08 + 2 * shift, "prompts": 512}
    paired = [pair | {"difference_low": pair["difference"] - 0.01, "difference_high": pair["difference"] + 0.01}]
    text |= {"opponent": "sft", "paired": paired}
    return text | {"judges": judges, "arms": arms, "seed": seed, "prompts": 512}


def win(value, half):
    return {"win_rate": value, "win_rate_low": value - half, "win_rate_high": value + half}


class Page(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take most of the time of a report."""
    monkeypatch.setattr("prl_jax.reporting.build.write_figures", lambda *_, **__: {})


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_report(tmp_path):
    workdir = fake_workdir(tmp_path)
    path = build_report([workdir])
    assert path == workdir / "report.html"
    source = path.read_text()
    page = Page(source)
    assert "Pairwise-RL has a win rate of 64.0 % against sft" in page.text
    for expected in (
        "sft, greedy",
        "BT + PPO",
        "0.640 [0.625, 0.655]",
        "longer wins",
        "resolved config",
        "0.10.2",
        "1:02",
    ):
        assert expected in page.text, expected
    assert page.text.count("Sort the letters") == 20
    assert "BT + PPO is ahead of Pairwise-RL by 8.0 points (paired 95 % interval 7.0 to 9.0)" in page.text
    assert "-8.0 [-9.0, -7.0]" in page.text and "SFT" not in page.text
    # One name everywhere, the stage only where its files are meant.
    assert "BT + PPO (stage ppo_bt)" in page.text and "256 prompts of gold (validation), judged by gold" in page.text
    assert "4 samples a prompt on 512 prompts of gold (test)" in page.text
    figures = {"arms.png", "win_rate_vs_kl.png", "reliability.png"}
    figures |= {f"learning_{stage}.png" for stage in ("sft", "bt", "pairwise", "ppo_bt", "ppo_pairwise")}
    assert {path.name for path in workdir.glob("*.png")} == figures
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', source)
    assert {base64.b64decode(image) for image in embedded} == {(workdir / name).read_bytes() for name in figures}
    markdown = (workdir / "report.md").read_text()
    assert all(f"(<{name.replace('_', chr(92) + '_')}>)" in markdown for name in figures)
    assert "| **Pairwise-RL** | **pairwise** |" in markdown
    assert not list(workdir.glob("*.tmp"))
    links = [value for key, value in page.attributes if key in ("src", "href")]  # the page needs no network
    assert links and all(link.startswith(("data:image/png", "#")) for link in links)


def test_the_same_files_give_the_same_bytes(tmp_path):
    workdir = fake_workdir(tmp_path)
    for stage in ("bt", "pairwise", "ppo_bt"):  # fewer figures
        shutil.rmtree(workdir / stage)
    build_report([workdir])
    first = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    build_report([workdir])
    assert first == {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}


def test_text_from_models_and_data_is_only_text(tmp_path):
    workdir = fake_workdir(tmp_path, responses=EVIL)
    summary = fake_summary()
    summary["arms"][3]["name"] = EVIL
    summary["judges"] = {EVIL: summary["judges"]["bt"]}
    (workdir / "summary.json").write_text(json.dumps(summary | {"title": EVIL, "notes": [EVIL]}))
    edit(workdir / "config.json", config={EVIL: EVIL}, **{EVIL: EVIL})
    source = build_report([workdir]).read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags and page.tags.count("img") == len(list(workdir.glob("*.png"))) == 8
    assert not any(key.startswith("on") for key, _ in page.attributes)
    assert '<script>alert("x")</script> & ␛[31mred␀ <U+202E>abc' in page.text
    markdown = (workdir / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<img" not in markdown and r"\|pipe\|" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| Sort the letters")]
    assert len(rows) == 20 and all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)
    for text in (source, markdown):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", text)


def test_several_workdirs_have_one_table_with_means(no_figures, tmp_path):
    workdirs = [fake_workdir(tmp_path, seed=seed, name=f"seed{seed}") for seed in range(3)]
    path = build_report(workdirs)
    assert path.parent == workdirs[0]
    markdown = (workdirs[0] / "report.md").read_text()
    rows = [re.findall(r"[^|]+", re.sub(r"[*\\]", "", line)) for line in markdown.splitlines() if "Pairwise-RL" in line]
    rows = [[cell.strip() for cell in row] for row in rows if row[0].strip() == "Pairwise-RL"][:4]
    assert [row[1] for row in rows] == ["seed0", "seed1", "seed2", "mean of 3"]
    # .640, .644, .648: the t interval with 2 degrees of freedom is .644 -+ 4.303 * .004 / sqrt(3).
    assert any("0.644 [0.634, 0.654]" in cell for cell in rows[3])
    # Of each seed's difference: -.08, -.072, -.064.
    assert "-7.2" in markdown and "different experiments" not in markdown
    text = html.unescape(path.read_text())
    assert "Pairwise-RL has a win rate of 64.4 %" in text and "3 runs" in text and "One seed" not in text
    assert not list(workdirs[1].glob("report.*"))


def test_runs_of_other_configs_have_no_means(no_figures, tmp_path):
    workdirs = [fake_workdir(tmp_path, seed=seed, name=f"seed{seed}") for seed in range(2)]
    config = json.loads((workdirs[1] / "config.json").read_text())["config"]
    edit(workdirs[1] / "config.json", config=config | {"data": {"path": "", "noise": 0.2}})
    text = Page(build_report(workdirs).read_text()).text
    assert "mean of 2" not in text and "data.noise (0.1 against 0.2)" in text
    assert "seed0: Pairwise-RL has a win rate of 64.0 %" in text and "seed1: Pairwise-RL" in text


def test_a_run_of_judges_alone(no_figures, tmp_path):
    workdir = fake_workdir(tmp_path)
    for stage in ("ppo_bt", "ppo_pairwise", "anchors"):
        shutil.rmtree(workdir / stage)
    (workdir / "evaluation" / "samples.jsonl").unlink()
    summary = fake_summary()
    edit(workdir / "summary.json", arms=[], paired=[], opponent=None, win_rate_judge=None, judges=summary["judges"])
    text = Page(build_report([workdir]).read_text()).text
    assert "bt picks the better response in 78.0 % of 1,249 pairs" in text and "No policies are compared" in text
    assert not any(word in text for word in ("has not reached", "exact judge", "Win rate against", "win rate"))


def test_a_workdir_that_calls_the_opponent_a_baseline_reports_the_same(no_figures, tmp_path):
    workdir = fake_workdir(tmp_path)
    config = json.loads((workdir / "config.json").read_text())["config"]
    config["ppo_bt"]["baseline"] = {"kind": "critic"}
    edit(workdir / "config.json", config=config)
    today = Page(build_report([workdir]).read_text()).text
    for file in ("config.json", "summary.json"):
        path = workdir / file
        path.write_text(path.read_text().replace('"opponent": "sft"', '"baseline": "sft"'))
    assert Page(build_report([workdir]).read_text()).text == today and "response of sft to the same prompt" in today


def test_what_a_policy_showed_while_it_learned_is_told(no_figures, tmp_path):
    """Its name comes from the config, and is only text."""
    workdir = fake_workdir(tmp_path)
    config = json.loads((workdir / "config.json").read_text())["config"]
    config["evaluation"]["arms"]["ppo_bt"]["title"] = EVIL
    edit(workdir / "config.json", config=config)
    rows = [{"step": n, "reward": 0.5, "clip_fraction": 0.1, "stop_reasons/room": 0.25} for n in range(1, 21)]
    write_jsonl(
        workdir / "ppo_bt" / "metrics.jsonl",
        [row | {"identical_to_opponent": 0.6 * (row["step"] > 3), "cut_judgements": 3} for row in rows],
    )
    source = build_report([workdir]).read_text()
    page = Page(source)
    said = [line for line in page.text.splitlines() if "From step 4 on" in line]
    assert len(said) == 1 and "more than half of the responses are identical to their opponent" in said[0]
    assert '<script>alert("x")</script>' in page.text and "script" not in page.tags and "img" not in page.tags
    assert "How responses ended, and what was cut" in page.text
    for cell in ("25.0 %", "60.0 %", "3.0"):
        assert f'<td class="n">{cell}</td>' in source
    markdown = (workdir / "report.md").read_text()
    assert "comparisons do not fit into the judge's rows" in html.unescape(markdown) and "<script" not in markdown


def test_missing_files_are_noted_and_do_not_stop_the_report(no_figures, tmp_path):
    workdir = fake_workdir(tmp_path)
    missing = ("config.json", "summary.json", "ppo_bt/result.json", "sft/metrics.jsonl")
    for name in missing:
        (workdir / name).unlink()
    text = Page(build_report([workdir]).read_text()).text
    assert all(f"{name} is missing" in text for name in missing)


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    text = Page(build_report([tmp_path]).read_text()).text
    assert "has not reached its evaluation" in text and "not finished" in text
    assert (tmp_path / "learning_sft.png").exists()


def test_without_an_evaluation_the_samples_are_those_of_training(no_figures, tmp_path):
    workdir = fake_workdir(tmp_path)
    (workdir / "evaluation" / "samples.jsonl").unlink()
    with open(workdir / "ppo_bt" / "samples.jsonl", "a") as file:
        file.write('{"step": 61, "prom')
    text = Page(build_report([workdir]).read_text()).text
    assert "prompt 60" in text and "prompt 40" not in text and "dcba" in text


def test_odd_values_do_not_stop_the_report(tmp_path):
    workdir = fake_workdir(tmp_path)
    for stage in ("sft", "bt", "pairwise", "ppo_bt"):  # fewer figures
        shutil.rmtree(workdir / stage)
    edit(
        workdir / "summary.json", judges={"bt": None, "x": {"reliability": [None, {}]}}, arms=[None, {"name": None}, {}]
    )
    edit(workdir / "config.json", config={"stages": [{"name": "sft"}, 3]})
    assert "x has no accuracy" in build_report([workdir]).read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", "{", "summary.json: malformed JSON"),
        ("config.json", "[]", "config.json: expected a JSON object"),
        ("sft/metrics.jsonl", '{"step": 1}\nx\n{"step": 2}\n', "metrics.jsonl:2: "),
        ("ppo_bt/samples.jsonl", '{"step": 1}\nx\n{"step": 2}\n', "samples.jsonl:2: malformed JSON"),
    ],
)
def test_malformed_files_are_named(no_figures, tmp_path, file, content, message):
    workdir = fake_workdir(tmp_path)
    (workdir / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_report([workdir])
    assert "\n" not in str(caught.value)


def test_what_is_no_workdir_is_refused(tmp_path):
    for workdirs in ([tmp_path / "missing"], [tmp_path], []):
        with pytest.raises(UserError, match="workdir"):
            build_report(workdirs)
