"""The parts of the gallery that need no run: which methods, what they take, the table."""

import importlib
import json
from pathlib import Path

import pytest

from prl_jax.methods import METHODS
from prl_jax.methods.direct_table import DIRECT
from prl_jax.recipes.rounds import ITERATIVE

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
    """What the stages of a config take, with 100 prompts of each stage of pairs."""
    config = script.experiment(family).get_config(words)
    total = dict.fromkeys(script.COUNTS, 0)
    for name in config.stages:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"metrics": {"prompts": 100}}))
        for key, value in (script.taken_by(config, name, tmp_path) or {}).items():
            total[key] += value
    return tuple(total.values())


@pytest.mark.parametrize(
    ("family", "words", "counts"),
    [
        ("online", "grpo", (10_240, 20_480, 10_240)),
        ("online", "pairwise_rl", (10_240, 20_480, 20_480)),
        ("direct", "dpo", (0, 38_400, 0)),
        ("direct", "dpo,genrm", (400, 7_680, 1_200)),
        ("iterative", "raft", (800, 15_360, 800)),
        ("iterative", "dno_prct", (1_000, 15_360, 6_000)),
    ],
)
def test_what_a_method_takes(script, family, words, counts, tmp_path):
    assert counted(script, family, words, tmp_path) == counts


def test_a_stage_that_another_run_has_made_is_taken_from_it(script, tmp_path):
    configs = [script.experiment("direct").get_config(name) for name in ("dpo", "kto")]
    one, other = (tmp_path / name for name in ("one", "other"))
    places = script.borrow(configs[0], one, tmp_path / "shared")
    assert list(places) == ["sft"] and not (one / "sft").exists()
    (one / "sft").mkdir()
    (one / "sft" / "result.json").write_text("{}")
    script.lend(one, places)
    assert script.borrow(configs[1], other, tmp_path / "shared") == places
    assert (other / "sft" / "result.json").is_file() and (other / "config.json").is_file()
    different = script.experiment("direct").get_config("dpo,smoke")
    assert script.borrow(different, tmp_path / "third", tmp_path / "shared") != places


def test_a_method_that_failed_stays_in_the_table(script):
    numbers = dict.fromkeys((*script.NUMBERS, *script.COUNTS), 0.5)
    rows = [{"seed": seed, "family": "direct", "method": "dpo", **numbers, "win_rate": 0.5 + seed} for seed in (0, 1)]
    rows += [{"seed": 0, "family": "direct", "method": "dro", "failed": "prl: dro: it diverged"}]
    found = script.table(rows)
    assert [line["method"] for line in found] == ["dpo", "dro"] and found[0]["win_rate"] == 1.0
    assert found[0]["win_rate_low"] < 1.0 < found[0]["win_rate_high"] and found[1]["failed"] == 1
    text = script.page(found)
    assert "| `dpo` | direct | 2 | 1.000 [" in text and "| `dro` | direct | 0 (1 failed) |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
