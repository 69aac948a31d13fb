"""The cells of the shipped comparison, and which stages they share."""

import itertools
from pathlib import Path

import pytest

from prl_jax.comparing.sharing import keep, places, take
from prl_jax.inputs.checks import check_config
from prl_jax.recipes.comparison import ARMS, CONDITIONS, cell_config, comparison
from prl_jax.stages import KINDS

FOLDER = Path("kept")


def test_every_cell_has_a_config_that_can_run():
    """Each arm under the main condition, and one of each kind under every other one; those of a sweep too."""
    few = ("pairwise", "ppo", "dpo", "best_of_8_genrm")
    cells = [("main", arm) for arm in ARMS] + list(itertools.product(CONDITIONS, few))
    for condition, arm in cells:
        config = cell_config(f"{condition},{arm},repetitions=2,quick")
        check_config(config)
        assert config.stages[-1] == "evaluation"
        trained = [name for name in config.stages if name.startswith(f"{arm}_")]
        assert len(trained) == (0 if ARMS[arm].best_of > 1 else 2)
        assert list(config.evaluation.arms) == (trained or ["sft"])
    assert cell_config("main,ppo,coefficient=0.7").ppo_1.regulariser.coefficient == 0.7
    for arm in ("ppo", "pairwise"):  # without a word it is the arm's own
        own = cell_config(f"main,{arm}")[f"{arm}_1"].regulariser.coefficient
        assert own == ARMS[arm].coefficients[0]


def test_a_comparison_has_a_cell_for_each_set_arm_and_coefficient():
    whole = comparison("", seeds=2, repetitions=5)
    main = [cell for cell in whole.cells if cell.condition == "main"]
    swept = sum(max(len(arm.coefficients), 1) for arm in ARMS.values())
    assert len(main) == 2 * swept and len({cell.folder for cell in whole.cells}) == len(whole.cells)
    assert list(whole.conditions) == list(CONDITIONS) and whole.reference in whole.arms
    first, second, _ = (cell for cell in whole.of("main", "ppo") if cell.seed == 0)
    assert first.coefficient == ARMS["ppo"].coefficients[0] and "repetitions=5" in first.words
    assert "repetitions=1" in second.words  # what is only interpolated between is trained once
    named = comparison("noise_25,ppo,pairwise", seeds=1, repetitions=1)
    assert [(cell.condition, cell.arm, cell.coefficient) for cell in named.cells] == [
        ("noise_25", "pairwise", None),
        ("noise_25", "ppo", None),
    ]
    assert all("quick" in cell.words for cell in comparison("quick", seeds=1, repetitions=1).cells)


@pytest.mark.parametrize("words", ["main", "nobody,ppo", "main,nobody", "main,ppo,steps=3"])
def test_arguments_of_no_cell_are_refused(words):
    with pytest.raises(ValueError, match="expected CONDITION,ARM"):
        cell_config(words)
    with pytest.raises(ValueError, match="'nobody': expected names of"):
        comparison("nobody", seeds=1, repetitions=1)


def test_arms_share_what_comes_before_them_and_nothing_else():
    scalar, pairwise, peers = (
        places(cell_config(f"main,{arm}"), FOLDER) for arm in ("ppo", "pairwise", "pairwise_peers")
    )
    assert list(scalar) == ["sft", "labelled", "bt"] and list(pairwise) == ["sft", "labelled", "genrm", "anchors"]
    for name in ("sft", "labelled"):
        assert scalar[name] == pairwise[name] == peers[name]
    assert pairwise["genrm"] == peers["genrm"] and "anchors" not in peers
    # Another word of SFT's section, or another seed, is another SFT, and other judges with it.
    config = cell_config("main,ppo").unlock()
    config.sft.batch_size = 7
    assert not set(places(config, FOLDER).values()) & set(scalar.values())
    config = cell_config("main,ppo").unlock()
    config.seed = 1
    assert not set(places(config, FOLDER).values()) & set(scalar.values())
    config = cell_config("main,ppo").unlock()
    config.bt.batch_size = 7
    other = places(config, FOLDER)
    assert other["sft"] == scalar["sft"] and other["bt"] != scalar["bt"]
    assert {KINDS[cell_config("main,ppo")[name].kind].family for name in scalar} == {"policy", "pairs", "judge"}


def test_a_kept_stage_is_taken_whole_or_not_at_all(tmp_path):
    stage, place = tmp_path / "run" / "bt", tmp_path / "shared" / "bt_1"
    assert not take(place, stage)
    stage.mkdir(parents=True)
    (stage / "result.json").write_text("{}")
    keep(stage, place)
    (stage / "result.json").write_text("other")
    keep(stage, place)  # the first one stays
    other = tmp_path / "other" / "bt"
    other.parent.mkdir()
    assert take(place, other) and (other / "result.json").read_text() == "{}"
    assert [path.name for path in place.parent.iterdir()] == ["bt_1"]
