"""Policies are compared on the same prompts, against the same samples, with the same random numbers."""

import json

import jax
import numpy as np
import pytest
from fakes import UtilityJudge
from ml_collections import ConfigDict
from running import refused, says
from two_arms import POLICIES, N, curve, make_judge, measurer, tables, write_prompts

from prl_jax.stages import config as c
from prl_jax.stages import win_rate
from prl_jax.stages.arms import switches
from prl_jax.streams import evaluation_key


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path)


def test_every_stage_measures_with_the_same_samples(tmp_path, prompts):
    first, second, cut, other = [], [], [], []
    one = curve(tmp_path, prompts, "ppo", seen=first)
    assert one == curve(tmp_path, prompts, "another_ppo", seen=second) and first == second
    # The policy equals the opponent, and does not draw as it does: else it would only tie.
    assert len(first) >= N - 2 and 0 < one["win_rate"] < 1 and one["win_rate"] != 0.5
    # However the prompts are cut, and whichever of them are asked for.
    curve(tmp_path, prompts, "ppo", seen=cut, batch_size=8)
    assert cut == first
    cut.clear()
    curve(tmp_path, prompts, "ppo", seen=cut, skip=2, limit=4)
    assert cut == [row for row in first if row[0] in "cdef"]
    different = curve(tmp_path, prompts, "ppo", policy="other", seen=other)
    opponents = [{prompt: text for prompt, _, text in rows} for rows in (first, other)]
    assert different != one and all(opponents[0].get(prompt, text) == text for prompt, text in opponents[1].items())


def test_keys_depend_on_seed_sample_and_side_alone():
    keys = [evaluation_key(seed, opponent=side, sample=k) for seed in (0, 1) for side in (False, True) for k in (0, 1)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8


def test_the_opponent_is_sampled_once_and_only_where_somebody_measures(tmp_path, prompts, monkeypatch):
    sampled, respond = [], win_rate.respond
    monkeypatch.setattr(win_rate, "respond", lambda model, *a, **k: sampled.append(model) or respond(model, *a, **k))
    measure = measurer(tmp_path, prompts, "ppo", make_judge())
    assert sampled == []
    measure(POLICIES["other"]), measure(POLICIES["alike"])
    assert list(map(id, sampled)) == [id(POLICIES[name]) for name in ("sft", "other", "alike")]


def test_a_win_rate_that_is_not_finite_stops_no_training(tmp_path, prompts):
    broken = UtilityJudge(lambda prompt, text: np.nan if prompt == "c" else 0.1 * len(text))
    found = curve(tmp_path, prompts, "ppo", broken)
    assert np.isfinite(found["win_rate"]) and found["prompts_left_out"] == 1
    found = curve(tmp_path, prompts, "ppo", UtilityJudge(lambda prompt, text: np.nan))
    assert np.isnan(found["win_rate"]) and found["prompts_left_out"] >= N - 2


@pytest.fixture
def table(tmp_path, prompts, monkeypatch):
    return tables(tmp_path, prompts, monkeypatch)


def test_equal_policies_have_equal_rows_and_every_win_is_kept(table, tmp_path, prompts):
    found = table()
    rows = {row["name"]: row for row in found.summary["arms"]}
    assert list(rows) == ["sft, sampled", "sft, greedy", "Twin", "other"] and found.summary["opponent"] == "sft"
    same = ("win_rate", "win_rate_low", "win_rate_high", "kl", "response_length", "win_rate_vs_anchor")
    assert all(rows["Twin"][key] == rows["sft, sampled"][key] for key in same) and rows["Twin"]["kl"] == 0
    assert rows["other"]["win_rate"] != rows["Twin"]["win_rate"] and rows["other"]["judge_accuracy"] == 0.7
    pairs = {(pair["arm"], pair["other"]): pair for pair in found.summary["paired"]}
    assert len(pairs) == 6
    twins = pairs["Twin", "sft, sampled"]
    assert (twins["difference"], twins["difference_low"], twins["difference_high"]) == (0, 0, 0)
    apart = pairs["other", "Twin"]
    assert apart["difference"] == pytest.approx(rows["other"]["win_rate"] - rows["Twin"]["win_rate"])
    assert [(row["prompt"], row["id"]) for row in found.wins] == list(enumerate("abcdefg"))
    for name, row in rows.items():
        assert np.mean([line["wins"][name] for line in found.wins]) == pytest.approx(row["win_rate"])
        assert np.mean([line["tokens"][name] for line in found.wins]) == pytest.approx(row["response_length"])
    # The first of the samples is the one that PPO's curve has measured.
    once = curve(tmp_path, prompts, "ppo", policy="other")
    assert np.mean([line["wins"]["other"][0] for line in found.wins]) == pytest.approx(once["win_rate"])
    assert found.summary["win_rate_judge_orders"]["order_consistency"] == 1


def test_a_note_names_the_switches_of_sampling():
    assert switches(ConfigDict(c.evaluation())) == ""
    section = ConfigDict(c.evaluation(sampling=dict(top_p=0.9, stop=["."])))
    assert switches(section) == " (top_p=0.9, stop=('.',))"


def test_a_judge_that_decides_by_the_slot_shows_in_the_comparisons_that_it_made(table):
    orders = table(make_judge(bias=9.0)).summary["win_rate_judge_orders"]
    assert orders["order_consistency"] == 0 and orders["position_bias"] > 0.9 and orders["n"] > N


def test_numbers_that_are_not_finite_are_counted_and_never_in_a_file(table):
    judge = make_judge()
    worth = judge.utility
    judge.utility = lambda prompt, text: np.nan if prompt == "c" else worth(prompt, text)
    found = table(judge)
    assert all(row["prompts_left_out"] == 1 and row["prompts"] == N - 1 for row in found.summary["arms"])
    assert found.wins[2]["wins"]["other"] == [None, None]
    json.dumps(found, allow_nan=False)


def test_greedy_evaluations_have_no_sampled_row(table):
    found = table(temperature=0.0)
    assert [row["name"] for row in found.summary["arms"]] == ["sft, greedy", "Twin", "other"]
    assert found.summary["arms"][0]["win_rate"] == 0.5


def test_no_two_rows_have_one_name(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from prl_jax.stages import config as c\n"
        "def get_config():\n"
        "    arms = dict(a=dict(title='x', judge=''), b=dict(title='x', judge=''))\n"
        "    return c.build(dict(sft=c.sft(), a=c.sft(), b=c.sft(), evaluation=c.evaluation(arms=arms)))\n"
    )
    says(refused("run", "--config", config, "--workdir", tmp_path / "run"), "evaluation.arms.b.title", "'x'")
    flag = "--config.evaluation.arms.b.title=sft, greedy"
    says(refused("run", "--config", config, "--workdir", tmp_path / "run", flag), "evaluation.arms.b.title", "greedy")
