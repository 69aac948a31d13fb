"""What is told of a run's data before its first stage: rows that cannot be read, that are cut, that are not there."""

import dataclasses
import json
import shutil

import chat_families
import hf_checkpoints
import numpy as np
import pytest
from running import says, write_rows

from prl_jax.commands import run
from prl_jax.errors import UserError
from prl_jax.inputs import measurements
from prl_jax.inputs.checks_of_data import check_inputs
from prl_jax.inputs.measurements import Measurements
from prl_jax.measuring.files import keep_measured, read_measured
from prl_jax.measuring.records import Measured
from prl_jax.recipes.own import own_pairs
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import KINDS
from prl_jax.stages import config as c

ROWS = [{"prompt": "hi " * (i % 5 + 1), "chosen": "hello", "rejected": "bye"} for i in range(40)]
SYSTEM = {
    "prompt": [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}],
    "chosen": "hello",
    "rejected": "bye",
}
BATCH, LENGTHS = dict(batch_size=4, accumulate=1), dict(max_prompt=32, max_response=16)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A model whose chat template refuses a system's turn."""
    folder = tmp_path_factory.mktemp("models") / "gemma"
    chat_families.write_tokenizer(folder, chat_families.FAMILIES["gemma"])
    words = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + 5
    room = dict(max_position_embeddings=512)
    return hf_checkpoints.write(folder, {**hf_checkpoints.CASES["gemma2"], "vocab_size": words, **room})


@pytest.fixture
def stages(monkeypatch):
    """Runs a config whose stages do nothing but read; gives what each has read."""
    read = {}

    def reads(context):
        section = context.section
        sources = {"sft": "sft", "anchors": "prompt", "online": "prompt"}.get(section.kind, "preference")
        key = "prompts" if sources == "prompt" else "pairs" if section.kind == "evaluation" else "data"
        read[context.name] = [record.id for record in context.records(section[key], sources)]
        if hook := hooks.get(context.name):
            hook()
        return {}

    hooks = {}
    for name, kind in list(KINDS.items()):
        monkeypatch.setitem(KINDS, name, dataclasses.replace(kind, run=reads))

    def start(config, path, **when_done):
        hooks.clear(), hooks.update(when_done), read.clear()
        run.run_stages(config, path)
        return read

    return start


def own(gemma, pairs, **root):
    online = dict(prompts_per_step=4, judge_batch_size=4, duration="1 steps")
    return own_pairs(
        f"{gemma},{pairs}",
        holdout=10,
        generative=dict(max_length=300, **BATCH),
        sft=dict(**LENGTHS, **BATCH),
        online=online,
        evaluation_batch=4,
        title="",
        huggingface=LENGTHS,
        **root,
    )


def judge(pairs, **values):
    source = lambda **rows: c.source(kind="jsonl", path=str(pairs), **rows)  # noqa: E731
    sections = dict(data=source(), validation=source(), max_prompt=40, max_response=20, **BATCH)
    return c.build(dict(bt=c.bradley_terry(**{**sections, **values})))


def refusal(config, path) -> str:
    with pytest.raises(UserError) as error:
        run.run_stages(config, path)
    return str(error.value)


def about_rows(capsys) -> list[str]:
    """The lines on the terminal about rows of data."""
    return [line for line in capsys.readouterr().err.splitlines() if " rows" in line]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(SYSTEM, "the chat template refuses this conversation: System role"), ({"prompt": "hi"}, 'field "')],
    ids=["refused", "malformed"],
)
def test_a_row_that_cannot_be_read_is_told_or_left_out(gemma, tmp_path, stages, capsys, bad, reason):
    rows = [*ROWS[:20], bad, *ROWS[20:], bad]
    path = write_rows(tmp_path / "pairs.jsonl", [{**row, "id": str(i)} for i, row in enumerate(rows)])
    line = refusal(own(gemma, path), tmp_path / "run")
    assert says(line, f"sft.data: {path}:21: ", reason, "2 of 32 rows cannot be read", "--config.skip_invalid=2")
    assert refusal(own(gemma, path, skip_invalid=1), tmp_path / "run") == line and not (tmp_path / "run").exists()
    capsys.readouterr()
    read = stages(own(gemma, path, skip_invalid=2), tmp_path / "run")
    good = [str(i) for i in range(10, 41) if i != 20]
    assert read["sft"] == read["pairwise_ppo"] == good and read["evaluation"] == [str(i) for i in range(10)]
    said = [line for line in about_rows(capsys) if line.startswith("sft ")]
    assert len(said) == 1 and says(said[0], "data: 2 of 32 rows left out, the first:", f"{path}:21: ", reason)
    counted = json.loads((tmp_path / "run" / "sft" / "result.json").read_text())["metrics"]
    assert counted == {"invalid_rows_skipped": 2}


def test_only_who_renders_a_row_refuses_it(gemma, tmp_path, stages):
    """The generative judge reads a conversation as plain text."""
    path = write_rows(tmp_path / "pairs.jsonl", [*ROWS, SYSTEM])
    config = own(gemma, path, skip_invalid=1)
    read = stages(config, tmp_path / "run")
    assert len(read["genrm"]) == 31 and len(read["sft"]) == len(read["pairwise_ppo"]) == 30
    with config.unlocked():
        config.stages = ("genrm",)
        del config["sft"], config["anchors"], config["pairwise_ppo"], config["evaluation"]
        config.skip_invalid = 0
    assert len(stages(config, tmp_path / "judge")["genrm"]) == 31


def test_a_prompt_that_its_anchors_leave_out_is_left_out(gemma, tmp_path, stages):
    """They are made with a policy that refuses it; the other policy takes anything."""
    path = write_rows(tmp_path / "prompts.jsonl", [*ROWS, SYSTEM])
    prompts = c.source(kind="jsonl", path=str(path))
    rows = dict(data=prompts, validation=prompts)
    sections = dict(
        anchors=c.anchors(prompts=prompts, policy=str(gemma), judge="bt"),
        ppo=c.online("pairwise_rl", prompts=prompts, judge="bt", evaluation=dict(prompts=prompts, judge="bt")),
    )
    config = c.build(
        dict(sft=c.sft(**BATCH, **rows), bt=c.bradley_terry(**BATCH, **rows), **sections),
        skip_invalid=1,
        huggingface=LENGTHS,
    )
    read = stages(config, tmp_path / "run")
    assert len(read["anchors"]) == len(read["ppo"]) == 40


def test_what_will_be_cut_is_counted(gemma, tmp_path, stages, capsys):
    long = {"prompt": "hi " * 40, "chosen": "hello " * 30, "rejected": "bye"}
    path = write_rows(tmp_path / "pairs.jsonl", [*ROWS, long])
    stages(own(gemma, path), tmp_path / "run")
    lines = about_rows(capsys)
    said = {line.split()[0]: line for line in lines}
    assert len(said) == len(lines)
    assert says(said["sft"], "data: max_prompt=32 cuts 1 of 31 rows (the longest: ")
    assert says(said["sft"], "; data: max_response=16 cuts 1 of 31 rows (the longest: 32)")
    assert says(said["pairwise_ppo"], "prompts: max_prompt=32 cuts 1 of 31 rows")
    assert "anchors" not in said and "evaluation" not in said


def test_keys_that_nothing_reads_are_named_once(gemma, tmp_path, stages, capsys):
    rows = [{**row, "margin": 1, **({"note": "x"} if i > 35 else {})} for i, row in enumerate(ROWS)]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    stages(own(gemma, path), tmp_path / "run")
    said = capsys.readouterr().err
    assert 'data: nothing reads "note" (in 4 of 30 rows)' in said and '"margin" (in 30 of 30 rows)' in said
    assert said.count('"note"') == said.count('"margin"') == 1
    line = refusal(own(gemma, write_rows(path, [{**row, "tei": True} for row in rows])), tmp_path / "other")
    assert says(line, f'{path}:11: unknown key "tei" (expected "tie"?)')


def test_a_plan_checks_what_is_there(gemma, tmp_path, capsys):
    """The data of a run that is planned can be on another machine, and of the model it needs the config.json alone."""

    def check(model, pairs, **values):
        config = own(model, pairs, **values)
        workdir = Workdir(tmp_path / "nowhere", config)
        contexts = [StageContext(name, config, workdir, make_mesh()) for name in config.stages]
        check_inputs(contexts, Measurements(), absent=True)

    check(gemma, tmp_path / "nothing.jsonl")
    path, bare = write_rows(tmp_path / "pairs.jsonl", [*ROWS, SYSTEM]), tmp_path / "bare"
    with pytest.raises(UserError, match=r"sft.data: .*pairs.jsonl:41: .*System role not supported"):
        check(gemma, path)
    bare.mkdir()
    (bare / "config.json").write_bytes((gemma / "config.json").read_bytes())
    check(bare, path)
    with pytest.raises(UserError, match=r'sft.data: .*pairs.jsonl:41: field "response" is missing'):
        check(bare, write_rows(path, [*ROWS, {"prompt": "hi", "rejected": "bye"}]))


def test_rows_of_which_none_can_be_read_are_told_where_lengths_come_from_them(gemma, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [{"question": "hi", "good": "hello", "bad": "bye"}] * 30)
    config = own(gemma, path)
    with config.unlocked():
        for name, key in (("huggingface", "max_prompt"), ("huggingface", "max_response"), ("genrm", "max_length")):
            config[name][key] = 0
        config.sft.max_prompt = config.sft.max_response = 0
    assert says(refusal(config, tmp_path / "run"), f"sft.data: {path}:11: ", "20 of 20 rows cannot be read")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{**ROWS[0], "rejected": "hello"}] * 3, "(pairs of identical responses: 3, ties: 0)"),
        ([{**ROWS[0], "tie": True}] * 3, "(pairs of identical responses: 0, ties: 3)"),
        (
            [{**ROWS[0], "tie": True}, {"prompt": "", "chosen": "", "rejected": ""}],
            "(pairs of identical responses: 1, ties: 1)",
        ),
    ],
    ids=["identical", "ties", "both"],
)
@pytest.mark.parametrize("key", ["data", "validation"])
def test_pairs_without_a_better_response_are_refused(tmp_path, key, rows, reason):
    good, bad = write_rows(tmp_path / "good.jsonl", ROWS), write_rows(tmp_path / "bad.jsonl", rows)
    line = refusal(judge(good, **{key: c.source(kind="jsonl", path=str(bad))}), tmp_path / "run")
    assert says(line, f"bt.{key}: {bad}: none of its {len(rows)} pairs has a better response {reason}")


def test_nothing_left_and_small_batches(tmp_path, stages, capsys):
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "hi"}] * 2)
    config = judge(path)
    with config.unlocked():
        config.skip_invalid = 5
    assert says(
        refusal(config, tmp_path / "run"),
        f"bt.data: {path}: no row is left; 2 of 2 rows left out, the first: {path}:1: ",
    )
    stages(judge(write_rows(path, ROWS[:3])), tmp_path / "run")
    assert "data: 3 rows do not fill a batch of 4" in capsys.readouterr().err


def test_prompts_for_reference_anchors_have_references(tmp_path):
    path = write_rows(tmp_path / "prompts.jsonl", [ROWS[0], {"prompt": "hi", "id": "b"}])
    config = c.build(dict(anchors=c.anchors(prompts=c.source(kind="jsonl", path=str(path)), choice="reference")))
    assert says(refusal(config, tmp_path / "run"), f"anchors.prompts: {path}:2: prompt 'b' has no reference answer")


def test_a_file_that_has_changed_is_refused(tmp_path, stages):
    path, other = write_rows(tmp_path / "a.jsonl", ROWS), write_rows(tmp_path / "b.jsonl", ROWS)
    workdir, first = tmp_path / "run", path.read_bytes()
    config = judge(path, validation=c.source(kind="jsonl", path=str(other)))
    stages(config, workdir)
    kept = json.loads((workdir / "config.json").read_text())["data"]
    assert {name: (found["rows"], found["size"]) for name, found in kept.items()} == {
        str(path): (40, len(first)),
        str(other): (40, len(first)),
    }
    assert stages(config, workdir) == {}  # finished before
    write_rows(path, ROWS[:39])
    for _ in range(2):  # a stage that is finished, and one that is not
        line = refusal(config, workdir)
        assert says(
            line, f"bt.data: {path}: has changed since {workdir}", "40 rows then, 39 now", "give another --workdir"
        )
        (workdir / "bt" / "result.json").unlink(missing_ok=True)
    path.write_bytes(first.replace(b"hello", b"hallo", 1))
    assert says(refusal(config, workdir), "SHA-256") and "rows" not in refusal(config, workdir)
    path.write_bytes(first)
    assert len(stages(config, workdir)["bt"]) == 40
    path.unlink()
    assert stages(config, workdir) == {}  # nobody reads it any more
    assert json.loads((workdir / "config.json").read_text())["data"] == kept


def test_a_file_that_changes_between_two_stages_is_refused(gemma, tmp_path, stages):
    path = write_rows(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(UserError, match="40 rows then, 41 now"):
        stages(own(gemma, path), tmp_path / "run", sft=lambda: write_rows(path, [*ROWS, ROWS[0]]))
    assert (tmp_path / "run" / "sft" / "result.json").exists()


def test_a_run_that_is_continued_does_not_measure_again(gemma, tmp_path, stages, monkeypatch, capsys):
    monkeypatch.setattr(measurements, "_WORTH_KEEPING", 1)
    path = write_rows(tmp_path / "pairs.jsonl", [*ROWS, SYSTEM])
    config, workdir = own(gemma, path, skip_invalid=1), tmp_path / "run"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages(config, workdir, sft=stop)
    said = about_rows(capsys)
    measured = []
    measure = measurements.measure_fast
    monkeypatch.setattr(measurements, "measure_fast", lambda *a: (measured.append(1), measure(*a))[1])
    with pytest.raises(KeyboardInterrupt):
        stages(config, workdir, sft=stop)
    assert not measured and about_rows(capsys) == said
    files = sorted((workdir / "data" / "measured").iterdir())
    wrong = ["[]", "{", files[1].read_text()]
    for file, text in zip(files, wrong, strict=False):
        file.write_text(text)
    assert len(stages(config, workdir)["sft"]) == 30 and len(measured) >= 2


@pytest.mark.parametrize(
    "broken",
    [
        lambda kept: kept["columns"]["prompt"].pop(),
        lambda kept: kept["columns"]["prompt"].append(1),
        lambda kept: kept["columns"].update(prompt=[-1, 0, 3]),
        lambda kept: kept["columns"].update(prompt=[1, True, 3]),
        lambda kept: kept["columns"].update(prompt=[1, 2**40, 3]),
        lambda kept: kept["columns"].update(prompt="123"),
        lambda kept: kept.pop("reason"),
        lambda kept: kept.update(made_from={"a": 2}),
    ],
)
def test_a_kept_measurement_is_used_only_as_it_was_written(tmp_path, broken):
    rows = np.arange(21, dtype=np.int32).reshape(3, 7)
    rows[:, 6] = [0, 1, 0]
    measured = Measured.of(rows, "why")
    keep_measured(tmp_path, {"a": 1}, measured)
    found = read_measured(tmp_path, {"a": 1}, 3)
    assert np.array_equal(found.rows, rows) and (found.problems, found.reason) == ([1], "why")
    assert read_measured(tmp_path, {"a": 1}, 2) is None and read_measured(tmp_path, {"a": 2}, 3) is None
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    broken(kept)
    file.write_text(json.dumps(kept))
    assert read_measured(tmp_path, {"a": 1}, 3) is None


def test_a_model_that_has_changed_since_the_run_began_is_refused(gemma, tmp_path, stages):
    model = shutil.copytree(gemma, tmp_path / "model")
    path = write_rows(tmp_path / "pairs.jsonl", ROWS)
    stages(own(model, path), tmp_path / "run")
    shutil.rmtree(model)
    shutil.copytree(gemma, model, copy_function=shutil.copyfile)
    stages(own(model, path), tmp_path / "run")
    (model / "generation_config.json").write_text('{"eos_token_id": 3}')
    line = refusal(own(model, path), tmp_path / "run")
    assert says(line, f"{model}: has changed since {tmp_path / 'run'} was made from it: generation_config.json is new;")
