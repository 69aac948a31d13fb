"""Lengths that a config writes as 0 become as long as its data need."""

import json
from pathlib import Path

import hf_checkpoints
import pytest
from chat_families import FAMILIES, write_tokenizer
from ml_collections import ConfigDict
from running import MICRO, refused, says, write_rows

from prl_jax.errors import UserError
from prl_jax.inputs.lengths import friendly, open_lengths, with_lengths
from prl_jax.inputs.measurements import Measurements
from prl_jax.recipes.own import own_pairs
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir, kept_config
from prl_jax.sharding import make_mesh
from prl_jax.stages import config as c
from prl_jax.text.chat import Turn, encode_prompt
from prl_jax.text.judging import JudgeTemplate, encode_judge_row
from prl_jax.text.tokenizer import load_tokenizer

SHORT = {"prompt": "hi", "chosen": "hello", "rejected": "bye bye"}
LONG = {"prompt": "hi " * 40, "chosen": "hello " * 30, "rejected": "bye " * 9}


def found(
    config: ConfigDict, path: Path, known: dict | None = None, *, absent: bool = False
) -> tuple[ConfigDict, list[str]]:
    told: list[str] = []
    surroundings = lambda config: StageContext(config.stages[0], config, Workdir(path, config), make_mesh())  # noqa: E731
    measurements = Measurements()
    return with_lengths(config, surroundings, measurements, known=known or {}, tell=told.append, absent=absent), told


def model(folder: Path, context: int = 4096) -> Path:
    tokenizer = write_tokenizer(folder, FAMILIES["llama3"])
    words = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + 16
    keys = {**hf_checkpoints.CASES["llama"], "vocab_size": words, "max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps(keys))
    return folder


def own(tmp_path: Path, rows: list[dict], context: int = 4096, **more) -> ConfigDict:
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    values = dict(generative={}, online={}, holdout=1, evaluation_batch=2)
    return own_pairs(f"{model(tmp_path / 'model', context)},{pairs}", **values | more)


def test_lengths_are_those_of_the_longest_records_with_room_for_the_judges_frame(tmp_path):
    config = own(tmp_path, [LONG, SHORT, SHORT])  # the longest one is held out, which is read as well
    assert open_lengths(config) == ["huggingface.max_prompt", "huggingface.max_response", "genrm.max_length"]
    resolved, told = found(config, tmp_path / "run")
    tokenizer, prompt = load_tokenizer(tmp_path / "model"), (Turn("user", LONG["prompt"]),)
    asked, answered = len(encode_prompt(tokenizer, prompt)), len(tokenizer.encode(LONG["chosen"])) + 1
    assert resolved.huggingface.max_prompt == friendly(asked) >= asked
    room = resolved.huggingface.max_response
    assert room == friendly(answered) >= answered
    # A response that is sampled may be as long as there is room for, on both sides.
    frame = len(encode_judge_row(tokenizer, JudgeTemplate("question-v1"), prompt, "", "", max_length=9999).ids)
    assert resolved.genrm.max_length == friendly(frame + 2 * (room - 1))
    assert resolved.is_locked and not open_lengths(resolved) and open_lengths(config)
    assert len(told) == 3 and says(told[0], f"huggingface.max_prompt={friendly(asked)}", str(asked))
    # The same again, and whatever is given stays.
    assert found(config, tmp_path / "other")[0].to_dict() == resolved.to_dict()
    assert found(config, tmp_path / "other", known=resolved.to_dict()) == (resolved, [])
    given = own(tmp_path, [LONG, SHORT], generative=dict(max_length=500), huggingface=dict(max_response=7))
    assert found(given, tmp_path / "run")[0].genrm.max_length == 500
    assert found(given, tmp_path / "run")[0].huggingface.to_dict() == {
        **given.huggingface.to_dict(), "max_prompt": friendly(asked)
    }  # fmt: skip


def test_no_length_is_beyond_the_context_and_what_is_cut_is_told(tmp_path):
    resolved, told = found(own(tmp_path, [LONG, SHORT, SHORT, SHORT], context=128), tmp_path / "run")
    lengths = resolved.huggingface
    assert lengths.max_prompt + lengths.max_response <= 128 and resolved.genrm.max_length == 128
    assert any(says(line, "cut", "context") for line in told if "genrm" in line)
    for given in (127, 128):
        with pytest.raises(UserError, match=f"huggingface.max_response={given} leaves no room for prompts.* holds 128"):
            found(own(tmp_path, [LONG, SHORT], context=128, huggingface=dict(max_response=given)), tmp_path / "run")
    resolved, told = found(own(tmp_path, [LONG, *[SHORT] * 200]), tmp_path / "run")
    assert any("would do for 99 %" in line for line in told)


def test_sft_policies_and_scalar_judges_count_what_others_ask_of_them(tmp_path):
    path = lambda name, rows: dict(kind="jsonl", path=str(write_rows(tmp_path / name, rows)))  # noqa: E731
    short, long = c.source(**path("short", [SHORT, SHORT])), c.source(**path("long", [LONG]))
    open_ = dict(max_prompt=0, max_response=0)
    data = dict(data=short, validation=short)
    stages = dict(
        sft=c.sft(**open_, **data),
        bt=c.bradley_terry(**open_, **data),
        genrm=c.generative(max_length=0, **data),
        lone=c.generative(max_length=0, **data),
        ppo=c.online("ppo", judge="bt", prompts=short, evaluation=dict(judge="genrm", prompts=long)),
        evaluation=c.evaluation(judges=("lone",), pairs=short, prompts=short, arms={}, judge="bt"),
    )
    resolved, _ = found(c.build(stages), tmp_path / "run")
    # Prompts of the evaluation are long, and so are their reference answers, for which the policy gets room.
    assert resolved.sft.max_prompt >= 120 and resolved.sft.max_response >= 180
    assert resolved.bt.max_prompt < 32 and resolved.bt.max_response == resolved.sft.max_response
    assert resolved.genrm.max_length > 120 + 2 * 179 and resolved.lone.max_length <= 32


def test_what_cannot_be_measured_is_named_and_in_a_plan_the_keys_to_give(tmp_path):
    config = own(tmp_path, [SHORT, SHORT])
    (tmp_path / "pairs.jsonl").unlink()
    line = refused("run", "--config", MICRO, "--config.genrm.max_length=0", "--config.genrm.data.kind=jsonl",
                   f"--config.genrm.data.path={tmp_path / 'none.jsonl'}", "--workdir", tmp_path / "run")  # fmt: skip
    assert says(line, "genrm.data", "none.jsonl: no such file") and "max_length" not in line
    with pytest.raises(UserError, match="--config.huggingface.max_prompt=N"):  # all that a plan needs the data for
        found(config, tmp_path / "run", absent=True)
    with pytest.raises(UserError, match="pairs.jsonl: no such file") as caught:
        found(config, tmp_path / "run")
    assert "=N" not in str(caught.value)
    line = refused("run", "--config", MICRO, "--config.sft.max_prompt=1", "--workdir", tmp_path / "run")
    assert says(line, "sft.max_prompt=1", "at least 2, or 0: as long as the data need")
    line = refused("run", "--config", MICRO, "--config.huggingface.max_prompt=1", "--workdir", tmp_path / "run")
    assert says(line, "huggingface.max_prompt=1", "or 0")
    assert not (tmp_path / "run").exists() and kept_config(tmp_path / "run") == {}


def test_friendly_lengths():
    assert [friendly(n) for n in (1, 16, 17, 128, 129, 1024, 1025, 3000)] == [16, 16, 32, 128, 192, 1024, 1152, 3072]
