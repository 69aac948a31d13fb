"""Row 35 of the correctness list: who tells the win rates is not whom the policy learned to please."""

from itertools import combinations
from pathlib import Path

import pytest
from running import write_rows

from prl_jax.data.sources import load_records
from prl_jax.recipes.own import own_pairs
from prl_jax.reporting.caveats import caveats
from prl_jax.reporting.inputs import RunFiles
from prl_jax.runs.context import source_spec

PAIR = {"prompt": "hi", "chosen": "hello", "rejected": "bye"}


def recipe(folder: Path, rows: int, **values):
    path = write_rows(folder / "pairs.jsonl", [{**PAIR, "id": str(i)} for i in range(rows)])
    return own_pairs(f"./model,{path}", holdout=10, generative={}, online={}, evaluation_batch=2, **values)


def ids(source, folder: Path) -> set[str]:
    records = load_records(source_spec(source), "preference", data_dir=folder)
    return {record.id for record in records[source.skip :]}


@pytest.mark.parametrize("sft", [None, {}])
def test_row_35_judge_policy_and_referee_learn_from_pairs_of_their_own(tmp_path, sft):
    config = recipe(tmp_path, 410, sft=sft)
    policy, evaluation = config.pairwise_ppo, config.evaluation
    assert policy.judge == "genrm" and "referee" in config.stages
    assert evaluation.judge == policy.evaluation.judge == "referee" and "referee" in evaluation.judges
    used = [config.genrm.data, policy.prompts, config.referee.data, evaluation.prompts]
    sets = [ids(source, tmp_path) for source in used]
    assert [len(found) for found in sets] == [200, 100, 100, 10]
    assert not any(a & b for a, b in combinations(sets, 2))
    assert config.anchors.prompts == policy.prompts
    if sft is not None:
        assert ids(config.sft.data, tmp_path) == sets[0] | sets[1]


def test_row_35_too_few_pairs_are_not_split(tmp_path):
    """A file that is not there, as a plan may have it, counts as one of enough pairs."""
    config = recipe(tmp_path, 409)
    assert "referee" not in config.stages and config.evaluation.judge == "genrm"
    assert len(ids(config.genrm.data, tmp_path)) == len(ids(config.pairwise_ppo.prompts, tmp_path)) == 399
    absent = own_pairs("./model,absent.jsonl", holdout=10, generative={}, online={}, evaluation_batch=2)
    assert absent.evaluation.judge == absent.pairwise_ppo.evaluation.judge == "referee" in absent.stages
    bounded = recipe(tmp_path, 410, limits=dict(max_line_mib=0))
    assert "referee" not in bounded.stages  # as a file beyond its limits, which the run refuses


@pytest.mark.parametrize(("teller", "noted"), [("genrm", True), ("referee", False), ("gold", False)])
@pytest.mark.parametrize("told_by", ["section", "arm"])
def test_row_35_the_report_says_where_the_same_judge_tells(teller, noted, told_by):
    arms = [
        {"name": "SFT", "stage": "sft", "is_opponent": True, "judge": None, "win_rate": 0.5},
        {"name": "Mine", "stage": "mine", "is_opponent": False, "judge": None, "win_rate": 0.6},
    ]
    config = {"stages": ["sft", "mine"], "sft": {"kind": "sft"}, "mine": {"kind": "online"}}
    (config["mine"] if told_by == "section" else arms[1])["judge"] = "genrm"
    summary = {"arms": arms, "win_rate_judge": teller, "prompts": 100, "judges": {teller: {"accuracy": 0.7}}}
    notes = caveats([RunFiles(Path("x"), "x", {"config": config}, summary, [], [])])
    same = [note for note in notes if note.startswith(f"Mine learned from {teller}, which tells the win rates")]
    assert len(same) == noted
