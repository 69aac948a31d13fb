"""The parts of the gallery that need no run: which methods, what they take, the table."""

import importlib
import json
from pathlib import Path

import pytest

from prl_jax.methods import METHODS
from prl_jax.methods.direct_table import DIRECT
from prl_jax.recipes.rounds import ITERATIVE
from prl_jax.runs.workdir import Workdir

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gallery")


def test_every_method_that_runs_is_chosen(script):
    found = list(script.chosen([]))
    runs = [name for name, method in ITERATIVE.items() if not method.misses]
    assert len(found) == len(METHODS) + len(DIRECT) + len(runs) and ("iterative", "gpo") not in found
    assert list(script.chosen(["sppo", "online:ppo"])) == [
        ("online", "ppo"),
        ("online", "sppo"),
        ("direct", "sppo"),
        ("iterative", "sppo"),
    ]


def counted(script, family, words, tmp_path):
    """What the stages of a config take, with 100 prompts of each stage of pairs, and responses of four tokens."""
    config = script.experiment(family).get_config(words).unlock()
    config.gold.train_rows = 64
    Workdir(tmp_path, config).create()
    for name in config.stages:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"kind": "any", "metrics": {"prompts": 100}, "seconds": 1.0}))
        (folder / "metrics.jsonl").write_text('{"step": 0, "kl": 0}\n{"step": 1, "response_length": 4}\n')
        rows = [{"prompt": "p", "chosen": "abc", "rejected": "cba"}, {"prompt": "p", "response": "abc"}]
        made = rows[config[name].get("select", {}).get("kind") == "softmax"]
        (folder / "pairs.jsonl").write_text(100 * f"{json.dumps(made)}\n")
    return tuple(script.spent(config, tmp_path)[0])


@pytest.mark.parametrize(
    ("family", "words", "counts"),
    [
        ("online", "grpo", (40_960, 81_920, 10_240)),
        ("online", "pairwise_rl", (40_960, 81_920, 20_480)),
        ("direct", "dpo,genrm", (1_600, 30_720, 1_200)),
        ("iterative", "raft", (3_200, 61_440, 800)),
        ("iterative", "dno_prct", (4_000, 61_440, 6_000)),
    ],
)
def test_what_a_method_takes(script, family, words, counts, tmp_path):
    assert counted(script, family, words, tmp_path) == counts


def test_the_built_in_pairs_are_counted_in_tokens(script, tmp_path):
    sampled, trained, judged = counted(script, "direct", "dpo", tmp_path)
    assert (sampled, judged) == (0, 0) and 3 < trained / 38_400 < 10


def test_what_a_result_has_already_is_not_run_again(script, tmp_path, monkeypatch):
    ran, numbers = [], dict.fromkeys((*script.NUMBERS, *script.Spent._fields), 0.5)
    results = {"dpo": numbers, "kto": {"failed": "prl: it diverged"}}

    def one_run(family, words, seed, folder):
        ran.append((words, seed))
        return results[words]

    monkeypatch.setattr(script, "one_run", one_run)
    arguments = ["gallery.py", "--methods", "direct:dpo", "kto", "--workdir", str(tmp_path), "--out", str(tmp_path)]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr("sys.argv", [*arguments, "--seeds", *seeds])
        script.main()
    assert ran == [("dpo", 0), ("kto", 0), ("kto", 0), ("dpo", 1), ("kto", 1)]
    written = json.loads((tmp_path / "gallery.json").read_text())
    assert [line["seeds"] for line in written["methods"]] == [2, 0] and len(written["rows"]) == 4
    assert (tmp_path / "gallery.md").is_file() and "<svg" in (tmp_path / "gallery.svg").read_text()


def test_the_figure_has_a_line_for_each_method(script):
    numbers = dict.fromkeys((*script.NUMBERS, *script.Spent._fields), 2.0)
    rows = [{"seed": seed, "family": "direct", "method": "dpo", **numbers, "win_rate": 0.5 + seed} for seed in (0, 1)]
    rows += [{"seed": 0, "family": "online", "method": "ppo", **numbers}]
    rows += [{"seed": 0, "family": "direct", "method": "dro", "failed": "prl: dro: it diverged"}]
    wins = importlib.import_module("gallery_figure").figure_of(script.table(rows)).axes[0]
    names = [text.get_text() for text in wins.get_yticklabels()]
    assert names == ["ppo, online", "dpo, direct", "dro, direct (failed)"]
    points = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in wins.lines}
    assert points["online"] == [(2.0, 0)] and points["direct"] == [(1.0, 1)]


def test_a_method_that_failed_stays_in_the_table(script):
    numbers = dict.fromkeys((*script.NUMBERS, *script.Spent._fields), 0.5)
    rows = [{"seed": seed, "family": "direct", "method": "dpo", **numbers, "win_rate": 0.5 + seed} for seed in (0, 1)]
    rows += [{"seed": 0, "family": "direct", "method": "dro", "failed": "prl: dro: it diverged"}]
    found = script.table(rows)
    assert [line["method"] for line in found] == ["dpo", "dro"] and found[0]["win_rate"] == 1.0
    assert found[0]["win_rate_low"] < 1.0 < found[0]["win_rate_high"] and found[1]["failed"] == 1
    text = script.page(found)
    assert "| `dpo` | direct | 2 | 1.000 [" in text and "| `dro` | direct | 0 (1 failed) |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
