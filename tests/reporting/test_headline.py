from pathlib import Path

import pytest

from prl_jax.reporting import headline
from prl_jax.reporting.inputs import RunFiles


def run(arms, label="x", **summary):
    return RunFiles(Path("x"), label, {}, {"arms": arms, "prompts": 512, **summary}, [], [])


def arm(name, low, value, high, judge="bt"):
    bounds = {"win_rate_low": low, "win_rate_high": high}
    return {"name": name, "judge": judge, "win_rate": value, **bounds}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.51, 0.60, "the whole interval lies above one half"),
        (0.50, 0.60, "the interval includes one half, so no difference from SFT is shown"),
        (0.45, 0.60, "the interval includes one half, so no difference from SFT is shown"),
        (0.40, 0.49, "it is worse than SFT"),
    ],
)
def test_the_headline_claims_what_the_interval_allows(low, high, verdict):
    (sentence,) = headline.headline([run([arm("Pairwise-RL", low, (low + high) / 2, high)])])
    assert verdict in sentence and "512 prompts" in sentence and f"{50 * (low + high):.1f} %" in sentence


def test_the_pairwise_policy_comes_first_and_is_compared_whoever_is_ahead():
    bt, pairwise = arm("BT + PPO", 0.70, 0.72, 0.74), arm("Pairwise-RL", 0.62, 0.64, 0.66, "pairwise")
    sentences = headline.headline([run([bt, pairwise])])
    assert sentences[0].startswith("Pairwise-RL") and sentences[1].startswith("BT + PPO")
    assert sentences[2] == "BT + PPO is ahead of Pairwise-RL by 8.0 points; their intervals do not overlap."
    sentences = headline.headline([run([bt, arm("Pairwise-RL", 0.71, 0.73, 0.75, "pairwise")])])
    assert sentences[2].startswith("Pairwise-RL is ahead of BT + PPO") and "may be chance" in sentences[2]


def test_greedy_decoding_stands_beside_it():
    arms = [arm("SFT, greedy", 0.57, 0.58, 0.59, None), arm("Pairwise-RL", 0.5, 0.6, 0.7)]
    assert headline.headline([run(arms)])[-1] == "Without any reinforcement learning, SFT, greedy has 58.0 %."


def test_no_result_and_no_interval_are_said():
    assert "has not reached its evaluation" in headline.headline([run([])])[0]
    assert "no interval" in headline.headline([run([{"name": "P", "judge": "j", "win_rate": 0.6}])])[0]


def test_caveats_name_seed_judge_and_weak_judges():
    judges = {"bt": {"accuracy": 0.6, "longer_wins": 0.7}, "pairwise": {"accuracy": 0.8, "longer_wins": 0.7}}
    notes = headline.caveats([run([], seed=3, win_rate_judge="second", judges=judges, notes=["by hand"])])
    assert notes[0].startswith("One seed (3)") and "learned judge (second)" in notes[1] and notes[-1] == "by hand"
    assert [note for note in notes if "longer response" in note] == [
        "The judge bt is no better than always picking the longer response (0.600 against 0.700)."
    ]


def test_notes_of_all_runs_stand_once():
    runs = [run([], "a", notes=["both", "one"]), run([], "b", notes=["both"])]
    notes = headline.caveats(runs)
    assert notes.count("both") == 1 and "a: one" in notes and "One seed" not in " ".join(notes)
