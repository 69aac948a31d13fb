import json
import re

import pytest

from prl_jax.errors import UserError
from prl_jax.reporting import inputs


def test_harmful_characters_become_visible_and_others_stay():
    assert inputs.visible("a\x00\x1b[31m\r\x7f\x9b\u202e\u200b\ud800z") == "a␀␛[31m␍␡<U+009B><U+202E><U+200B>\ufffdz"
    harmless = "line one\n\ttabbed äöü 日本語 😀 <b>&amp;</b>"
    assert inputs.visible(harmless) == harmless
    inputs.visible("\ud83d").encode("utf-8")


def test_cleaning_reaches_every_string():
    dirty = {"k\x00": ["\x1b", {"x": "\x07"}, 1.5, None, True]}
    assert inputs.clean(dirty) == {"k␀": ["␛", {"x": "␇"}, 1.5, None, True]}


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), [1]])
def test_only_finite_numbers_are_numbers(value):
    assert inputs.number({"x": value}, "x") is None
    assert inputs.number({}, "x") is None
    assert inputs.number({"x": 2}, "x") == 2.0


def stage(root, name, kind=None, row=None):
    (root / name).mkdir(parents=True)
    if kind:
        (root / name / "result.json").write_text(json.dumps({"kind": kind, "metrics": {}, "seconds": 1}))
    if row:
        (root / name / "metrics.jsonl").write_text(json.dumps({"step": 1, **row}) + "\n")


def test_stages_come_in_the_order_of_the_config(tmp_path):
    for name in ("a", "b", "c"):
        stage(tmp_path, name, "sft")
    (tmp_path / "not_a_stage").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"config": {"stages": ["c", "a"]}}))
    run = inputs.read_run(tmp_path, label="x")
    assert [item.name for item in run.stages] == ["c", "a", "b"]


def test_without_a_config_stages_come_in_the_order_of_a_pipeline_and_roles_are_guessed(tmp_path):
    stage(tmp_path, "a", row={"reward": 1.0})
    stage(tmp_path, "b", row={"margin": 1.0})
    stage(tmp_path, "c", row={"loss": 1.0})
    stage(tmp_path, "d", row={"other": 1.0})
    stage(tmp_path, "e", row={"margin": 1.0, "chosen_ratio": 1.0})
    run = inputs.read_run(tmp_path, label="x")
    assert [(item.name, item.role) for item in run.stages] == [
        ("c", "supervised"),
        ("b", "judge"),
        ("e", "paired"),
        ("a", "rewarded"),
        ("d", ""),
    ]
    assert "a/result.json is missing: the stage is not finished" in run.missing


def test_both_kinds_of_reward_model_are_reward_models(tmp_path):
    stage(tmp_path, "a", "bradley_terry")
    stage(tmp_path, "b", "generative")
    assert [item.role for item in inputs.read_run(tmp_path, label="x").stages] == ["judge"] * 2


@pytest.mark.parametrize(
    ("kind", "family", "row", "role"),
    [
        ("sft", None, {"loss": 1.0}, "supervised"),  # a workdir from before results said their family
        ("ppo", None, {"reward": 1.0}, "rewarded"),
        ("sft", "policy", {"loss": 1.0}, "supervised"),
        ("new", "policy", {"reward": 1.0}, "rewarded"),
        ("direct", "policy", {"loss": 1.0, "margin": 0.1, "chosen_ratio": 0.2}, "paired"),
        ("new", "judge", {"loss": 1.0}, "judge"),
        ("new", "pairs", {"loss": 1.0}, "pairs"),
    ],
)
def test_what_a_stage_is_to_a_report_follows_from_its_family_and_what_it_measured(tmp_path, kind, family, row, role):
    stage(tmp_path, "a", kind, row)
    if family:
        result = {"kind": kind, "family": family, "metrics": {}, "seconds": 1}
        (tmp_path / "a" / "result.json").write_text(json.dumps(result))
    (found,) = inputs.read_run(tmp_path, label="x").stages
    assert (found.role, found.kind) == (role, kind)


def test_labels_are_folder_names_unless_they_repeat(tmp_path):
    paths = [tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "other"]
    for path in paths:
        stage(path, "sft", "sft")
    assert [run.label for run in inputs.read_runs(paths)] == [str(paths[0]), str(paths[1]), "other"]


@pytest.mark.parametrize("name", ["config.json", "summary.json", "sft/result.json", "sft/samples.jsonl"])
@pytest.mark.parametrize("depth", [101, 100_000])
def test_json_that_is_nested_too_deep_is_one_line(tmp_path, name, depth):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "result.json").write_text('{"kind": "sft", "metrics": {}, "seconds": 1}')
    (tmp_path / name).write_text('{"a":' + "[" * depth + "]" * depth + "}\n")
    with pytest.raises(UserError, match=rf"{name}.*nested more than 100 deep"):
        inputs.read_run(tmp_path, label="x")


@pytest.mark.parametrize("text", ["{}", "", "[]", '{"kind": "", "metrics": {}, "seconds": 1}', '{"kind": "sft"}'])
def test_a_damaged_result_is_one_line(tmp_path, text):
    stage(tmp_path, "sft", "sft")
    (tmp_path / "sft" / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"sft/result.json: .*; delete it, and prl run will finish the stage again$"):
        inputs.read_run(tmp_path, label="x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing"),
        ('{"wins": {}}\n{"wi', "is damaged .*wins.jsonl:2: malformed JSON"),
        ('{"wins": {}}\n{"a": 1}\n', "is damaged .expected the wins"),
        ('{"wins": {}}\n', "has 1 of 2 prompts"),
        ("\xff\n", "is damaged"),
        ('{"wins": {}}\n{"wins": {}}\n', ""),
    ],
)
def test_wins_that_are_damaged_or_missing_are_noted(tmp_path, text, words):
    stage(tmp_path, "evaluation", "evaluation")
    (tmp_path / "summary.json").write_text(json.dumps({"arms": [{"name": "a"}], "prompts": 2}))
    if text is not None:
        (tmp_path / "evaluation" / "wins.jsonl").write_text(text, encoding="latin-1")
    notes = [note for note in inputs.read_run(tmp_path, label="x").missing if "wins.jsonl" in note]
    assert len(notes) == bool(words) and all(re.match(f"evaluation/wins.jsonl {words}", note) for note in notes)
