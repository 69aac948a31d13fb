"""Lengths of records are those of the encoders that the stages use."""

import subprocess
import threading

import chat_families
import numpy as np
import pytest
from running import says, write_rows

from prl_jax.data.records import PreferenceRecord, PromptRecord, SFTRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair, encode_sft
from prl_jax.data.sources import Records, SourceSpec, load_records
from prl_jax.errors import UserError
from prl_jax.inputs import measurements
from prl_jax.measuring import apart as measuring_apart
from prl_jax.measuring.records import (
    Lengths,
    Measured,
    Measurer,
    measure,
    measure_with,
    unused_keys,
    unused_line,
    valid_records,
)
from prl_jax.text.chat import Turn
from prl_jax.text.judging import JudgeTemplate
from prl_jax.text.tokenizer import ByteTokenizer, HFTokenizer, load_tokenizer

PROMPT = (Turn("user", "hi"), Turn("assistant", "hello there"), Turn("user", "bye\nbye"))
PAIRS = [
    PreferenceRecord("0", PROMPT, "hello ciao", "bye"),
    PreferenceRecord("1", (Turn("user", ""),), "", "hello Assistant: user"),
    PreferenceRecord("2", (Turn("user", "brief " * 7),), "hi", "hi"),
]


@pytest.fixture(scope="module", params=["byte", "llama3", "mistral", "qwen3", "base"])
def tokenizer(request, tmp_path_factory):
    if request.param == "byte":
        return ByteTokenizer()
    folder = tmp_path_factory.mktemp(request.param)
    return load_tokenizer(chat_families.write_tokenizer(folder, chat_families.FAMILIES[request.param]))


def source(*records) -> Records:
    return Records(records.__getitem__, range(len(records)))


def fits(encode, record, **lengths: int) -> bool:
    """Whether an encoder cuts nothing. Where not even the frame of a prompt fits, it refuses."""
    try:
        return not encode(record, **lengths)[1]
    except UserError:
        return False


def test_what_is_measured_is_just_what_fits(tokenizer):
    template = JudgeTemplate("compact-v1" if isinstance(tokenizer, ByteTokenizer) else "question-v1")
    measured = measure(source(*PAIRS), tokenizer, template=template)
    assert len(measured) == 3 and not measured.problems
    judge = lambda r, **lengths: encode_generative_pair(tokenizer, template, r, **lengths)  # noqa: E731
    scalar = lambda r, **lengths: encode_scalar_pair(tokenizer, r, **lengths)  # noqa: E731
    for i, record in enumerate(PAIRS):
        row = int(measured.judged[i])
        assert fits(judge, record, max_length=row) and not fits(judge, record, max_length=row - 1)
        prompt = int(measured.lengths["prompt"][i])
        response = int(max(measured.lengths["response"][i], measured.lengths["rejected"][i]))
        assert fits(scalar, record, max_prompt=prompt, max_response=response)
        assert not fits(scalar, record, max_prompt=prompt - 1, max_response=response)
        assert not fits(scalar, record, max_prompt=prompt, max_response=response - 1)


def test_demonstrations_and_prompts(tokenizer):
    rows = [SFTRecord(r.id, r.prompt, r.chosen) for r in PAIRS]
    measured = measure(source(*rows), tokenizer)
    assert measured.longest("rejected") == measured.longest("frame") == 0
    for i, record in enumerate(rows):
        prompt, response = (int(measured.lengths[name][i]) for name in ("prompt", "response"))
        sft = lambda r, **lengths: encode_sft(tokenizer, r, **lengths)  # noqa: E731
        assert fits(sft, record, max_prompt=prompt, max_response=response)
        assert not fits(sft, record, max_prompt=prompt - 1, max_response=response)
        assert not fits(sft, record, max_prompt=prompt, max_response=response - 1)
    prompts = measure(source(PromptRecord("0", PROMPT), PromptRecord("1", PROMPT, "hello ciao")), tokenizer)
    assert prompts.lengths["response"].tolist() == [0, measured.lengths["response"][0]]
    assert np.all(prompts.lengths["prompt"] == measured.lengths["prompt"][0])
    assert measure(source(), tokenizer).longest("prompt") == 0


def test_keys_that_nothing_reads_are_counted(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", **more} for more in ({"x": 1}, {}, {"y": 1, "x": 2}, {"x": 0})
    ]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"prompt": "q", "z": 1}])
    records = load_records(SourceSpec("jsonl", str(path)), "preference", data_dir=tmp_path)
    measured = measure(records, None)
    assert Measured.of(measured.rows, "").unused.tolist() == measured.unused.tolist()
    keys = unused_keys(records, measured)
    assert keys == {"x": 3, "y": 1} and unused_line({}, 5) == ""
    assert unused_line(keys, 5) == 'nothing reads "x" (in 3 of 5 rows), "y" (in 1 of 5 rows)'
    assert unused_line(dict.fromkeys(map(str, range(25)), 1), 5).endswith(" rows) and 5 more")
    _, line = valid_records(records, None, allowed=1)
    assert says(line, "1 of 5 rows left out", '; nothing reads "x" (in 3 of 5 rows)')


def test_problems_are_told_with_their_place(tmp_path):
    tokenizer = load_tokenizer(chat_families.write_tokenizer(tmp_path, chat_families.FAMILIES["gemma"]))
    system = (Turn("system", "brief"), Turn("user", "hi"))
    rows = {0: PromptRecord("a", PROMPT), 1: PromptRecord("b", system)}

    def read(row: int) -> PromptRecord:
        if row not in rows:
            raise UserError(f"f.jsonl:{row + 1}: malformed")
        return rows[row]

    done = []
    records = Records(read, [2, 1, 0], lambda row: f"f.jsonl:{row + 1}")
    measured = measure(records, tokenizer, progress=done.append)
    assert measured.problems == [0, 1] and measured.reason == "f.jsonl:3: malformed" and done == [1, 2, 3]
    assert measured.lengths["prompt"][:2].tolist() == [0, 0] and measured.lengths["prompt"][2] > 0
    reason = measure(records[1:], tokenizer).reason
    assert reason.startswith("f.jsonl:2: ") and "System role not supported" in reason


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Pairs, some of which are malformed or refused by the tokenizer's template."""
    rows = [{"prompt": "hi " * (i % 7), "chosen": "hello", "rejected": "bye " * (i % 3), "x": 1} for i in range(300)]
    rows[7] = {"prompt": "hi"}
    turns = [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}]
    rows[5], rows[290] = {**rows[5], "prompt": turns, "tie": True}, {**rows[290], "prompt": turns}
    path = write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", rows)
    return load_records(SourceSpec("jsonl", str(path)), "preference", data_dir=path.parent)


def measurer(family: str, folder) -> Measurer:
    tokenizer = load_tokenizer(chat_families.write_tokenizer(folder, chat_families.FAMILIES[family]))
    return Measurer(Lengths(tokenizer), JudgeTemplate("question-v1"))


def test_processes_measure_what_one_does(many, tmp_path):
    gemma, done = measurer("gemma", tmp_path), []
    expected, found = measure_with(many, gemma), measuring_apart.measure_apart(many, gemma, {}, 2, done.append)
    assert np.array_equal(found.rows, expected.rows) and found.problems == [5, 7, 290]
    assert found.reason == expected.reason and str(tmp_path) in found.reason
    assert done[-1] == 300 and done == sorted(done)


def test_a_process_that_fails_is_made_up_for(many, monkeypatch):
    monkeypatch.setattr(measuring_apart.sys, "executable", "/bin/false")
    bytes_ = Measurer(Lengths(ByteTokenizer()))
    found = measuring_apart.measure_apart(many, bytes_, {}, 2, lambda done: None)
    assert np.array_equal(found.rows, measure_with(many, bytes_).rows)


def test_processes_are_started_only_where_it_saves_time_and_end_with_an_interrupt(many, monkeypatch):
    started, bytes_ = [], Measurer(Lengths(ByteTokenizer()))
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    monkeypatch.setattr(measuring_apart.os, "sched_getaffinity", lambda _: {0, 1})
    expected = measure_with(many, bytes_)
    assert np.array_equal(measuring_apart.measure_fast(many, bytes_, {}, lambda done: None).rows, expected.rows)
    assert not started
    monkeypatch.setattr(measuring_apart, "_WORTH_SECONDS", 0.0)
    assert np.array_equal(measuring_apart.measure_fast(many, bytes_, {}, lambda done: None).rows, expected.rows)
    assert len(started) == 2 and None not in [worker.poll() for worker in started]

    def interrupt(done):
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measuring_apart.measure_fast(many, bytes_, {}, interrupt)
    assert len(started) == 4 and None not in [worker.poll() for worker in started]


def test_a_judges_frame_is_rendered_once_for_all_rows(many, tmp_path, monkeypatch):
    reader, rendered = measurer("qwen2.5", tmp_path)._replace(chat=False), []
    render = HFTokenizer._render
    monkeypatch.setattr(HFTokenizer, "_render", lambda *a, **k: (rendered.append(1), render(*a, **k))[1])
    assert measure_with(many, reader).lengths["frame"].max() > 0 and len(rendered) == 1


def test_processes_of_a_run_measure_a_part_each_and_have_all(many, monkeypatch):
    """Two, in threads: what they tell each other goes through a barrier."""
    barrier, told, found, index = threading.Barrier(2, timeout=60), {}, {}, threading.local()

    def all_rows(own, count):
        told[index.value] = own
        barrier.wait()
        rows = np.zeros((count, own.shape[1]), np.int32)
        rows[0::2], rows[1::2] = told[0], told[1]
        barrier.wait()
        return rows

    monkeypatch.setattr(measurements, "all_rows", all_rows)
    monkeypatch.setattr(measurements, "_BLOCK", 64)
    monkeypatch.setattr(measurements.jax, "process_count", lambda: 2)
    monkeypatch.setattr(measurements.jax, "process_index", lambda: index.value)
    reader, asked = Measurer(Lengths(ByteTokenizer())), []

    def process(number: int) -> None:
        index.value = number
        stop = lambda: asked.append(number) or False  # noqa: E731
        found[number] = measurements._measure_together(many, reader, {}, lambda done: None, stop)

    threads = [threading.Thread(target=process, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = measure_with(many, reader)
    assert all(np.array_equal(found[i].rows, expected.rows) for i in range(2)) and expected.problems == [7]
    assert found[0].reason == found[1].reason == expected.reason
    assert asked.count(0) == asked.count(1) == 3  # whether to stop, in each block of 2 * 64 rows
