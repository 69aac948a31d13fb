from pathlib import Path

import pytest

from prl_jax.reporting.caveats import caveats
from prl_jax.reporting.headline import headline
from prl_jax.reporting.inputs import RunFiles, StageFiles


def run(arms, label="x", *, config=None, stages=(), **summary):
    found = {"arms": arms, "prompts": 512, "opponent": "base", **summary}
    return RunFiles(Path("x"), label, {"config": config} if config else {}, found, list(stages), [])


def arm(name, low, value, high, judge="bt"):
    bounds = {"win_rate_low": low, "win_rate_high": high}
    return {"name": name, "judge": judge, "win_rate": value, **bounds}


def pair(first, second, low, value, high):
    return {"arm": first, "other": second, "difference": value, "difference_low": low, "difference_high": high}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.51, 0.60, "the whole interval lies above one half"),
        (0.50, 0.60, "the interval includes one half, so no difference from base is shown"),
        (0.45, 0.60, "the interval includes one half, so no difference from base is shown"),
        (0.40, 0.49, "it is worse than base"),
    ],
)
def test_the_headline_claims_what_the_interval_allows(low, high, verdict):
    (sentence,) = headline([run([arm("Pairwise-RL", low, (low + high) / 2, high)])])
    assert verdict in sentence and "512 prompts" in sentence and f"{50 * (low + high):.1f} % against base" in sentence
    assert "SFT" not in sentence


def test_policies_are_compared_by_the_paired_interval_whoever_is_ahead():
    """Intervals of single arms overlap here, and the differences on the same prompts tell them apart all the same."""
    arms = [arm("BT + PPO", 0.59, 0.62, 0.65), arm("Pairwise-RL", 0.57, 0.60, 0.63, "pairwise")]
    paired = [pair("Pairwise-RL", "BT + PPO", -0.038, -0.024, -0.009)]
    sentences = headline([run(arms, paired=paired)])
    assert sentences[0].startswith("Pairwise-RL") and sentences[1].startswith("BT + PPO")
    ahead = "BT + PPO is ahead of Pairwise-RL by 2.4 points (paired 95 % interval 0.9 to 3.8); it lies above zero."
    assert sentences[2] == ahead
    turned = [pair("BT + PPO", "Pairwise-RL", 0.009, 0.024, 0.038)]
    assert headline([run(arms, paired=turned)])[2] == ahead
    unsure = [pair("Pairwise-RL", "BT + PPO", -0.01, 0.02, 0.05)]
    sentence = headline([run(arms, paired=unsure)])[2]
    assert sentence.startswith("Pairwise-RL is ahead of BT + PPO by 2.0 points (paired 95 % interval -1.0 to 5.0)")
    assert "may be chance" in sentence
    assert "not compared on the same prompts" in headline([run(arms)])[2]


def test_an_order_is_as_sure_as_its_corrected_p_value():
    arms = [arm("BT + PPO", 0.59, 0.62, 0.65), arm("Pairwise-RL", 0.57, 0.60, 0.63, "pairwise")]

    def sentence(p_value):
        paired = pair("BT + PPO", "Pairwise-RL", 0.009, 0.024, 0.038) | {"p_corrected": p_value}
        return headline([run(arms, paired=[paired])])[2]

    assert sentence(0.0004).endswith("0.9 to 3.8, corrected p below 0.001); it lies above zero.")
    assert sentence(0.03).endswith("0.9 to 3.8, corrected p 0.030); it lies above zero.")
    assert sentence(0.06).endswith("above zero, but among so many comparisons this order may be chance.")


def seeds(*differences, **changes):
    """Runs of one experiment with these differences between two arms."""
    arms = [arm("BT + PPO", 0.59, 0.62, 0.65), arm("Pairwise-RL", 0.57, 0.60, 0.63, "pairwise")]
    return [
        run(
            arms,
            f"s{seed}",
            config={"seed": seed, "lr": 1, **changes},
            paired=[pair("BT + PPO", "Pairwise-RL", d, d, d)],
        )
        for seed, d in enumerate(differences)
    ]


def test_over_seeds_the_differences_of_each_seed_are_one_number():
    runs = seeds(0.02, 0.03, 0.04)
    sentences = headline(runs)
    assert "3 runs" in sentences[0]
    # .03 -+ 4.303 * .01 / sqrt(3)
    assert sentences[2].startswith("BT + PPO is ahead of Pairwise-RL by 3.0 points (paired 95 % interval 0.5 to 5.5)")
    assert "Student's t" in " ".join(caveats(runs))


def test_seeds_that_are_not_finished_are_not_counted():
    runs = seeds(0.02, 0.03, 0.04)
    runs[0].summary.clear()
    sentence = headline(runs)[0]
    assert "2 of 3 runs" in sentence and "against base" in sentence


def test_other_experiments_are_no_seeds():
    runs = [*seeds(0.02), *seeds(0.02, 0.03, lr=2)[1:]]
    sentences = headline(runs)
    assert all(sentence.startswith(("s0: ", "s1: ")) for sentence in sentences) and len(sentences) == 6
    notes = caveats(runs)
    assert "different experiments" in notes[0] and notes[0].endswith("they differ in lr (1 against 2).")
    assert not any("Student" in note for note in notes)


def test_one_seed_twice_is_one_seed():
    runs = [*seeds(0.02), *seeds(0.03)]
    assert "same seed (0)" in caveats(runs)[0] and headline(runs)[0].startswith("s0: ")


def test_where_a_run_ran_does_not_matter():
    runs = seeds(0.02, 0.03)
    for i, one in enumerate(runs):
        one.config["config"].update(mesh={"data": i}, logging={"progress": bool(i)}, profile={"steps": str(i)})
    assert "2 runs" in headline(runs)[0]


def test_without_a_config_nothing_shows_that_runs_are_seeds():
    assert "no config.json" in caveats([run([]), run([])])[0]


def test_greedy_decoding_stands_beside_it():
    arms = [arm("base, greedy", 0.57, 0.58, 0.59, None), arm("Pairwise-RL", 0.5, 0.6, 0.7)]
    assert headline([run(arms)])[-1] == "Without any training against it, base, greedy has 58.0 %."
    assert headline([run(arms[:1])])[0] == "The evaluation compared no trained policy with base."


def test_no_result_and_no_interval_are_said():
    assert "has not reached its evaluation" in headline([run([])])[0]
    assert "no interval" in headline([run([{"name": "P", "judge": "j", "win_rate": 0.6}])])[0]
    lost = {"name": "P", "judge": "j", "win_rate": None, "prompts_left_out": 512}
    assert "no finite number" in headline([run([lost])])[0]


JUDGE = {"n": 110, "ties": 10, "accuracy": 0.74, "accuracy_low": 0.65, "accuracy_high": 0.82, "longer_wins": 0.49}
JUDGE |= {"order_consistency": 0.8, "position_bias": 0.1}


def test_a_run_of_judges_alone_is_about_judges():
    found = run([], judges={"bt": JUDGE | {"bayes_accuracy": 0.87}}, seed=4)
    (sentence,) = headline([found])
    assert sentence == (
        "bt picks the better response in 74.0 % of 100 pairs (95 % interval 65.0 to 82.0 %; always picking the longer "
        "one 49.0 %, the best possible judge 87.0 %)."
    )
    notes = " ".join(caveats([found]))
    assert "exact judge" not in notes and "One seed (4)" in notes and "prompts" not in notes
    broken = run([], judges={"genrm": JUDGE | {"order_consistency": 0.0}})
    assert headline([broken])[0].startswith("genrm is no judge: order consistency 0.00")
    assert not any("in rate" in sentence for sentence in [*headline([broken]), *caveats([broken])])


def test_a_run_that_has_no_evaluation_says_so():
    config = {"stages": ["bt"], "bt": {"kind": "bradley_terry"}}
    assert "no evaluation stage" in headline([run([], config=config)])[0]
    # A policy's section says `baseline` for the piece of its method; that makes no evaluation of it.
    trained = {"kind": "online", "baseline": {"kind": "critic"}}
    assert "no evaluation stage" in headline([run([], config={"stages": ["rl"], "rl": trained})])[0]
    config = {"stages": ["bt", "e"], "bt": {"kind": "bradley_terry"}, "e": {"kind": "evaluation", "opponent": ""}}
    assert "of judges alone" in headline([run([], config=config)])[0]
    config["e"]["opponent"] = "sft"
    assert "no final win rate yet" in headline([run([], config=config)])[0]


@pytest.mark.parametrize(
    "fault",
    [
        {"order_consistency": 0.0},
        {"position_bias": -0.7},
        {"accuracy": 0.55, "accuracy_low": 0.45, "accuracy_high": 0.65},
        {"accuracy": 0.6, "accuracy_low": 0.55, "accuracy_high": 0.65, "longer_wins": 0.7},
    ],
)
def test_a_judge_that_is_none_is_named_first(fault):
    """Whether it tells the win rates or an arm learned from it."""
    arms = [arm("Pairwise-RL", 0.51, 0.55, 0.60, "genrm")]
    judges = {"bt": JUDGE, "genrm": JUDGE | fault}
    told = run(arms, judges=judges, win_rate_judge="genrm")
    (sentence,) = headline([told])
    assert sentence.startswith("No win rate of this run means anything: genrm") and "no judge" in sentence
    learned = run(arms, judges=judges, win_rate_judge="gold")
    (sentence,) = headline([learned])
    assert "means nothing: it learned from genrm, which is no judge" in sentence and "whole interval" not in sentence
    for found in (told, learned):
        notes = caveats([found])
        assert any(note.startswith("genrm is no judge") for note in notes)
        assert "Pairwise-RL learned from genrm, so that its win rate means nothing." in notes
    assert "whole interval" in headline([run(arms, judges={"genrm": JUDGE}, win_rate_judge="gold")])[0]


def test_a_judge_that_was_not_evaluated_is_known_by_what_it_did():
    arms = [arm("P", 0.51, 0.55, 0.60, "genrm")]
    orders = {"n": 99, "order_consistency": 0.01, "position_bias": 0.1}
    assert "genrm, which tells" in headline([run(arms, win_rate_judge="genrm", win_rate_judge_orders=orders)])[0]
    trained = StageFiles("genrm", "judge", [], [], {"metrics": {"validation_order_consistency": 0.0}})
    assert "no judge" in headline([run(arms, win_rate_judge="gold", stages=[trained])])[0]
    samples = [{"p_12": 0.9, "p_21": 0.8}] * 5
    config = {"stages": ["ppo"], "ppo": {"kind": "ppo", "judge": "genrm"}}
    met = run(arms, win_rate_judge="gold", config=config, stages=[StageFiles("ppo", "rewarded", [], samples, {})])
    assert "no judge" in headline([met])[0]
    unknown = caveats([run(arms, win_rate_judge="other")])
    assert any("Nothing here shows how often other is right" in note for note in unknown)


NAMED = {"exact": {"kind": "gold"}, "house": {"kind": "python", "path": "my_rules.py:shorter"}}
NAMED |= {"taste": {"kind": "model", "model": "genrm"}, "gold": {"kind": "python", "path": "fake.py:gold"}}
NAMED |= {
    "both": {"kind": "ensemble", "of": ["taste", "house"]},
    "rules": {"kind": "ensemble", "of": ["house", "check"]},
}
NAMED |= {
    "far": {"kind": "remote", "model": "large", "url": "http://x"},
    "check": {"kind": "verifier", "check": "exact"},
    "ratio": {"kind": "density_ratio", "strong": "dpo", "weak": "sft"},
    "noisy": {"kind": "annotator", "noise": 0.25},
}


@pytest.mark.parametrize(
    ("teller", "learned", "expected"),
    [
        ("exact", "exact", ["the exact judge of the built-in tasks"]),
        ("house", "genrm", ["told by house, a function of yours (my_rules.py:shorter)", "how often house is right"]),
        ("house", "house", ["P learned from house, which tells", "Let another judge", "how often house is right"]),
        ("taste", "genrm", ["a learned judge (taste)", "P learned from taste, which tells", "Train another judge"]),
        ("genrm", "taste", ["a learned judge (genrm)", "P learned from genrm, which tells", "Train another judge"]),
        ("gold", "genrm", ["told by gold, a function of yours (fake.py:gold)"]),
        ("far", "genrm", ["a learned judge (far, the model large behind an endpoint)"]),
        ("check", "genrm", ["told by check, a verifier (check 'exact')"]),
        ("ratio", "genrm", ["a learned judge (ratio, the density ratio of dpo over sft)"]),
        ("noisy", "genrm", ["told by noisy, a noisy annotator of the built-in tasks"]),
        ("both", "genrm", ["(both, an ensemble of taste, house)", "P learned from both, which tells", "Train another"]),
        ("rules", "both", ["told by rules, an ensemble of house, check", "P learned from rules", "Let another judge"]),
    ],
)
def test_names_of_judges_stand_for_what_the_config_says(teller, learned, expected):
    """Two names of one stage are one judge; the exact one is known by its kind."""
    arms, config = [arm("P", 0.51, 0.55, 0.60, learned)], {"judges": NAMED}
    orders = {"order_consistency": 0.0, "position_bias": 0.0}
    notes = " ".join(caveats([run(arms, config=config, judges={"genrm": JUDGE}, win_rate_judge=teller)]))
    assert all(text in notes for text in expected) and notes.count("told by") == 1
    assert ("learned from" in notes) == any("learned from" in text for text in expected)
    assert ("right: name it" in notes) == (teller not in ("exact", "taste", "genrm"))
    found = headline([run(arms, config=config, win_rate_judge=teller, win_rate_judge_orders=orders)])
    assert ("is no judge" in found[0]) == (teller != "exact")
    trained = StageFiles("genrm", "judge", [], [], {"metrics": {"validation_order_consistency": 0.0}})
    found = headline([run(arms, config=config, win_rate_judge=teller, stages=[trained])])
    assert ("is no judge" in found[0]) == bool({teller, learned} & {"taste", "genrm"})


def test_a_policy_learned_from_all_judges_that_its_reward_names():
    config = {"judges": NAMED, "p": {"judge": "", "reward": {"judges": ["check", "taste"]}}}
    learned = [arm("P", 0.51, 0.55, 0.60, None) | {"stage": "p"}]
    for teller, same in (("genrm", True), ("check", True), ("house", False)):
        notes = caveats([run(learned, config=config, win_rate_judge=teller)])
        assert any(note.startswith(f"P learned from {teller}, which tells") for note in notes) == same


def test_caveats_name_seed_judge_and_weak_judges():
    judges = {"bt": {"accuracy": 0.6, "accuracy_low": 0.52, "accuracy_high": 0.68, "longer_wins": 0.65}}
    judges |= {"pairwise": {"accuracy": 0.8, "longer_wins": 0.7, "not_finite": 3}}
    arms = [arm("P", 0.5, 0.6, 0.7, None) | {"prompts_left_out": 2}]
    notes = caveats([run(arms, seed=3, win_rate_judge="second", judges=judges, notes=["by hand"])])
    assert notes[0].startswith("One seed (3)") and "learned judge (second)" in notes[1] and notes[-1] == "by hand"
    assert [note for note in notes if "longer response" in note] == [
        "The judge bt is no better than always picking the longer response (0.600 against 0.650)."
    ]
    assert any(note.startswith("pairwise: 3 pairs are left out") for note in notes)
    assert any(note.startswith("P: 2 prompts are left out") for note in notes)
    assert any("9 prompts" in note for note in caveats([run(arms, prompts=9)]))


def test_notes_of_all_runs_stand_once():
    runs = [run([], "a", config={"seed": 0}, notes=["both", "one"]), run([], "b", config={"seed": 1}, notes=["both"])]
    notes = caveats(runs)
    assert notes.count("both") == 1 and "a: one" in notes and "One seed" not in " ".join(notes)
