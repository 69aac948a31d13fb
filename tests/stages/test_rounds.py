"""Pairs of a policy's own samples, and policies that learn from pairs: the stages, from files to files."""

import json
import shutil

import jax
import numpy as np
import pytest
from configs import rounds
from fakes import one_device
from running import ROOT, prl, read_rows, refused, says, write_rows

from prl_jax.artifacts.cards import read_card
from prl_jax.commands.run import run_stages
from prl_jax.costs.models import AbstractModels, held_bytes
from prl_jax.data.jsonl import JsonLines
from prl_jax.data.parsers import parse_preference
from prl_jax.data.rows import encode_responses
from prl_jax.data.sources import mixed_rows
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.plan.functions import abstract_steps
from prl_jax.runs import references
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import KINDS
from prl_jax.stages import config as c
from prl_jax.stages.kind import Checking

CONFIG = str(ROOT / "tests" / "configs" / "rounds.py")
RUN = ("run", "--config", CONFIG, "--compilation_cache_dir=")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The workdir of a run, whose references stopped the first time, after the first batch."""
    workdir = tmp_path_factory.mktemp("rounds") / "run"
    asked, ask = [], references.frozen_log_probs

    def stop(*arguments):
        asked.append(arguments)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "frozen_log_probs", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stages(rounds.get_config(), workdir)
        kept = sorted(path.name for path in (workdir / "direct" / "pieces").glob("*.json"))
        assert len(kept) == 1 and not (workdir / "direct" / "references.npz").exists()
        result = prl(*RUN, "--workdir", workdir)
    assert result.code == 0, result.err
    assert not (workdir / "direct" / "pieces").exists()
    return workdir


def pairs_of(folder):
    return [(row, parse_preference(row, where)) for where, row in JsonLines(folder / "pairs.jsonl")]


@pytest.mark.slow
@pytest.mark.long
def test_pairs_are_records_with_what_the_judge_said(done):
    for name in ("pairs", "pairs_2"):
        result = json.loads((done / name / "result.json").read_text())
        rows = pairs_of(done / name)
        assert result["family"] == "pairs" and result["metrics"]["pairs"] + result["metrics"]["replayed"] == len(rows)
        for row, record in rows:
            assert record.chosen != record.rejected and record.wins is not None and not record.tie
            sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
            both = (sigmoid(row["meta"]["z_12"]) + 1 - sigmoid(row["meta"]["z_21"])) / 2
            # The generative judge was trained on the mean of the logits.
            logit = sigmoid((row["meta"]["z_12"] - row["meta"]["z_21"]) / 2)
            assert record.p_chosen == pytest.approx(both if row["source"] == "pairs" else logit, abs=1e-6)
    rows = pairs_of(done / "pairs_2")
    new = [row for row, _ in rows if row["source"] == "pairs_2"]
    assert 0 < len(rows) - len(new) <= 0.3 * len(rows) + 1
    assert {row["source"] for row, _ in rows} == {"pairs", "pairs_2"} and len({row["id"] for row in new}) == len(new)
    assert {policy for row in new for policy in row["meta"]["policies"]} == {"direct", "sft", "reference"}
    assert all(0 <= row["meta"]["certainty"] <= 1 for row in new)
    assert all(record.scores[0] > record.scores[1] for _, record in pairs_of(done / "pairs"))


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_that_makes_no_pair_says_why(done, tmp_path):
    """After its samples and judgements, which are kept: another gap than the judge's continues with them."""
    run = tmp_path / "run"
    for name in ("sft", "bt", "genrm"):
        shutil.copytree(done / name, run / name)
    config = json.loads((done / "config.json").read_text())
    config["config"]["pairs"]["select"]["min_gap"] = 100.0
    (run / "config.json").write_text(json.dumps(config))
    line = refused(*RUN, "--workdir", run, "--config.pairs.select.min_gap=100.0")
    assert says(line, "pairs: no pair could be made of 24 prompts. Of 72 responses ", " prompts; the judge or select.m")
    counts = json.loads((done / "pairs" / "result.json").read_text())["metrics"]
    assert f" {counts['empty_candidates']:.0f} are empty, {counts['truncated_candidates']:.0f} truncated" in line
    assert len(list((run / "pairs" / "pieces").glob("*.json"))) == 12


@pytest.mark.slow
@pytest.mark.long
def test_references_are_what_the_models_say_and_are_asked_once(done, monkeypatch):
    config = rounds.get_config()
    context = StageContext("direct_2", config, Workdir(done, config), make_mesh())
    models = LoadedModels(context)
    section = config.direct_2
    with np.load(done / "direct_2" / "references.npz") as file:
        found = file["log_probs/data"]
    records = context.records(section.data, "preference")
    parts = [len(pairs_of(done / name)) for name in ("pairs_2", "pairs")]
    assert len(records) == sum(mixed_rows(parts, (3.0, 1.0))) > sum(parts)
    assert found.shape == (2, len(records), 2) and found.dtype == np.float32
    for number, name in enumerate(section.references):
        model = models.policy(name).model
        for i in (0, len(records) - 1):
            texts = (records[i].chosen, records[i].rejected)
            room = dict(max_prompt=section.max_prompt, max_response=section.max_response)
            rows, _ = encode_responses(models.tokenizer, records[i].prompt, texts, **room)
            fresh = [float(frozen_log_probs(model, _batch(row))[0]) for row in rows]
            np.testing.assert_allclose(found[number, i], fresh, rtol=1e-5, atol=1e-4)


def _batch(row):
    return type(row)(type(row.rows)(*(x[None] for x in row.rows)), row.targets[None], row.mask[None])


@pytest.mark.slow
@pytest.mark.long
def test_a_policy_starts_where_its_references_are(done):
    """Nothing has moved before the first update; two references of other weights are somewhere else."""
    first = read_rows(done / "direct" / "metrics.jsonl")[0]
    assert abs(first["validation_margin"]) < 1e-5 and abs(first["validation_chosen_ratio"]) < 1e-4
    assert read_rows(done / "direct_2" / "metrics.jsonl")[0]["validation_chosen_ratio"] != 0
    for name in ("direct", "direct_2"):
        last = read_rows(done / name / "metrics.jsonl")[-1]
        assert last["step"] == 3 and last["grad_norm"] > 0 and {"identical_pairs_skipped", "ties"} <= last.keys()
        assert read_card(done / name).kind == "policy" and read_rows(done / name / "samples.jsonl")


@pytest.mark.slow
@pytest.mark.long
def test_what_is_removed_is_made_again_bit_for_bit(done, tmp_path):
    """Pairs, references and metrics, from the same models; and references of the same rows are taken from elsewhere."""
    again = tmp_path / "run"
    shutil.copytree(done, again)
    for name in ("pairs_2", "direct_2"):
        shutil.rmtree(again / name)
    assert prl(*RUN, "--workdir", again).code == 0
    for file in ("pairs_2/pairs.jsonl", "direct_2/references.npz", "direct_2/metrics.jsonl"):
        one, other = (folder / file for folder in (done, again))
        assert one.read_bytes() == other.read_bytes(), file
    shutil.rmtree(again / "direct_2")
    flag = f"--config.direct_2.precomputed={done / 'direct_2'}"
    line = refused(*RUN, "--workdir", again, flag)
    assert says(line, "belongs to another config", "precomputed")


@pytest.mark.slow
@pytest.mark.long
def test_files_of_references_that_cannot_be_used_are_refused(done, tmp_path):
    def refuse(flag, **changed):
        fresh = tmp_path / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh).mkdir()
        for name in ("sft", "bt", "genrm", "pairs", "data"):
            if (done / name).exists():
                shutil.copytree(done / name, fresh / name)
        config = json.loads((done / "config.json").read_text())
        config["config"]["direct"]["precomputed"] = flag
        (fresh / "config.json").write_text(json.dumps(config))
        return refused(*RUN, "--workdir", fresh, f"--config.direct.precomputed={flag}")

    other = tmp_path / "other"
    other.mkdir()
    assert says(refuse(f"{other}/"), "direct.precomputed=", "there is no", "references.npz", "to ask anew")
    (other / "references.npz").write_bytes(b"")
    assert says(refuse(f"{other}/"), "references.npz: holds no log-probabilities of references", "ask anew")
    shutil.copy(done / "direct_2" / "references.npz", other)
    assert says(refuse(f"{other}/"), "references.npz: has 2 references of", "expected 1 of")
    arrays = dict(np.load(done / "direct" / "references.npz"))
    np.savez(other / "references.npz", **{**arrays, "log_probs/data": arrays["log_probs/data"] + 1})
    assert says(refuse(f"{other}/"), "references.npz: is damaged", "ask anew")


def test_a_whole_policy_that_trains_is_alone_on_the_devices():
    """References are asked one after the other, and are gone before the first update: its arguments are the state of
    one model and rows of numbers."""
    config = rounds.get_config()
    check_config(config)
    models, mesh = AbstractModels(config, one_device(), Checking(config, KINDS).card), one_device()
    with jax.set_mesh(mesh):
        steps = [step for step in abstract_steps(config, mesh) if step.stage == "direct_2"]
    assert [step.function for step in steps] == ["reference_1", "reference_2", "train_step", "validation"]
    one = held_bytes({"policy": models.decoder("direct_2")})["policy"]
    for step in steps[:2]:
        assert set(step.held) == {"reference"} and sum(held_bytes(step.held).values()) == pytest.approx(one)
    for step in steps[2:]:
        assert set(step.held) == {"parameters", "optimizer"}
        assert sum(held_bytes(step.held).values()) == pytest.approx(3 * one, rel=0.01)
    state, batch = steps[2].arguments
    assert held_bytes({"all": state})["all"] == pytest.approx(3 * one, rel=0.01)
    assert {leaf.ndim for leaf in batch[2:7]} <= {1, 2} and batch.mismatched is None
    held = list(KINDS["direct"].costs.held(models, "direct_2"))
    assert [set(part) for part in held] == [{"reference"}, {"reference"}, {"parameters", "optimizer"}]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("direct.label=taste",), "direct.label='taste', expected one of 'hard', 'soft'"),
        (
            ("direct.label=win_rate",),
            "direct.label='win_rate': the loss 'kto' reads another one; expected one of 'hard'",
        ),
        (("direct.loss.beta=-1.0",), "direct.loss.beta=-1.0, expected above 0"),
        (("direct.references=('nobody',)",), "direct.references='nobody' is not among the stages"),
        (("direct.references=('bt',)",), "direct.references='bt' is a bradley_terry stage"),
        (("direct.references=('sft','sft')",), "'sft' is named twice"),
        (("direct_2.reference_weights=(0.5,0.2)",), "direct_2.reference_weights=(0.5, 0.2), expected 2 numbers"),
        (
            ("direct.certainty=sure", "direct.data.kind=gold", "direct.data.path="),
            "the built-in pairs have no meta.sure",
        ),
        (("direct_2.certainty=sure",), "direct_2.certainty='sure': the loss 'sppo' reads no label"),
        (("direct.beta_scale_rate=1.0",), "direct.beta_scale_rate=1.0: nothing reads it without beta_scale"),
        (("direct.sft_length=sum",), "direct.sft_length='sum': nothing reads it without sft_weight"),
        (("direct.data.path=pairs_2",), "direct.data.path='pairs_2' does not run before direct"),
        (("direct.data.path=sft",), "direct.data.path='sft' is a sft stage"),
        (("pairs.samples=1",), "pairs.samples=1: 1 responses to a prompt are ranked"),
        (("pairs.scorer=bt",), "pairs.scorer='bt': is the judge too"),
        (("pairs_2.scorer=bt",), "pairs_2.scorer='bt': select='all' asks no second judge"),
        (
            ("direct.label=soft", "direct.beta_scale=0.1", "direct.data.path=pairs", "pairs.judge=genrm"),
            "direct.data.kind='stage': the pairs of 'pairs' have no scores",
        ),
        (("direct.certainty=certainty",), "the pairs of 'pairs' have no meta.certainty"),
        (("pairs_2.prompts.kind=stage", "pairs_2.prompts.path=pairs"), "prompts come from a source of their own"),
        (("pairs.agreement=spearman",), "pairs.agreement='spearman': nothing reads it without agrees_with"),
        (("pairs_2.replay_share=1.0",), "pairs_2.replay_share=1.0 with replay=('pairs',): expected a share"),
        (("pairs_2.replay=('pairs_2',)",), "pairs_2.replay='pairs_2' does not run before pairs_2"),
        (("pairs_2.select.keep=-1",), "pairs_2.select.keep=-1"),
        (("pairs.select.kind=softmax",), "pairs.select.min_gap: 'softmax' has no such key; known: temperature"),
    ],
)
def test_sections_that_do_not_hold_together_are_refused(tmp_path, overrides, message):
    line = refused(*RUN, "--workdir", tmp_path / "run", *(f"--config.{one}" for one in overrides))
    assert message in line, line


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        (("label=score", "loss.kind=sppo"), {}, 'pairs.jsonl:2: pair "2" has no "score_chosen" and "score_rejected"'),
        (("certainty=sure",), {"meta": {"sure": 2}}, 'pairs.jsonl:2: pair "2" has no "meta.sure"'),
        ((), {"win_chosen": 1.5}, 'pairs.jsonl:2: field "win_chosen" is 1.5 (expected a number in [0, 1])'),
    ],
)
def test_records_without_what_a_loss_needs_are_refused_by_file_and_line(tmp_path, changes, row, message):
    good = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 0, "meta": {"sure": 1}}
    bad = {"id": "2", "prompt": "p", "chosen": "c", "rejected": "d", **row}
    path = write_rows(tmp_path / "pairs.jsonl", [good, bad])
    source = c.source(kind="jsonl", path=str(path))
    values = dict(change.split("=") for change in changes)
    loss = {"kind": values.pop("loss.kind")} if "loss.kind" in values else {}
    stages = dict(
        sft=c.sft(max_prompt=12, max_response=6),
        direct=c.direct("dpo", loss=loss, data=source, validation=source, max_prompt=12, max_response=6, **values),
    )
    config = c.build(stages)
    check_config(config)
    with pytest.raises(UserError) as error:
        run_stages(config, tmp_path / "run")
    assert message.replace('pair "2"', "pair '2'") in str(error.value)
    assert not (tmp_path / "run").exists()
