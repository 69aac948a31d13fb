"""The TFDS builder: deterministic, quiet, whole or absent on disk; records say what was sampled and what is true."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from prl_jax.data.gold import label_distribution, make_arguments, preference, split_of, utility
from prl_jax.data.gold.arguments import KINDS, SPLITS
from prl_jax.data.gold.builder import gold_records
from prl_jax.data.gold.families import answer, parse
from prl_jax.errors import UserError

SMALL = {"train_rows": 600, "validation_rows": 140, "test_rows": 140}


def text_of(record):
    return record.prompt[0].content


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("gold")


def test_splits_hold_what_was_asked_for_and_share_no_content(data_dir):
    seen = {}
    for kind in KINDS:
        for split in SPLITS:
            records = gold_records(kind, split, data_dir=data_dir, difficulties=(0, 1), **SMALL)
            assert len(records) == SMALL[f"{split}_rows"]
            assert len({record.id for record in records}) == len(records)
            tasks = [parse(text_of(record)) for record in records]
            assert {split_of(task) for task in tasks} == {split}
            assert {task.difficulty for task in tasks} == {0, 1} and len({task.family for task in tasks}) == 7
            assert [record.prompt[0].role for record in records] == ["user"] * len(records)
            seen.setdefault(split, set()).update((task.family, task.payload) for task in tasks)
    assert not seen["train"] & seen["validation"] and not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_default_sizes():
    arguments = make_arguments({})
    assert [arguments.rows(kind, "train") for kind in ("sft", "preference", "prompt")] == [12_000, 24_000, 4_000]
    assert {arguments.rows(kind, split) for kind in KINDS for split in SPLITS[1:]} == {1_000}


def test_preference_records_carry_the_sampled_label_and_the_truth(data_dir):
    args = {"noise": 0.1, "ties": 0.3, "intransitivity": 0.4}
    records = gold_records("preference", "train", data_dir=data_dir, **(SMALL | {"train_rows": 3000}), **args)
    ties, won, expected_ties, expected_won = 0, 0.0, 0.0, 0.0
    for record in records:
        prompt = text_of(record)
        win, tie, loss = label_distribution(prompt, record.chosen, record.rejected, **args)
        assert record.p_chosen == pytest.approx(win + tie / 2, abs=1e-12) and record.soft_label == record.p_chosen
        p_star = preference(prompt, record.chosen, record.rejected, intransitivity=0.4)
        assert record.meta["p_star"] == pytest.approx(p_star, abs=1e-12)
        assert record.meta["utility_chosen"] == utility(prompt, record.chosen)
        assert record.meta["utility_rejected"] == utility(prompt, record.rejected)
        assert record.chosen != record.rejected and record.slot in (1, 2)
        ties += record.tie
        expected_ties += tie
        if not record.tie:  # the likelier side is listed first as often as its probability says
            won += win > loss
            expected_won += max(win, loss) / (win + loss)
    decided = len(records) - ties
    assert ties / len(records) == pytest.approx(expected_ties / len(records), abs=0.02)
    assert won / decided == pytest.approx(expected_won / decided, abs=0.025)
    assert np.mean([record.slot for record in records if not record.tie]) == pytest.approx(1.5, abs=0.03)


def test_prompt_rows_are_distinct_and_the_reference_can_be_chosen(data_dir):
    typical = gold_records("prompt", "train", data_dir=data_dir, **SMALL)
    gold = gold_records("prompt", "train", data_dir=data_dir, reference="gold", **SMALL)
    for records in (typical, gold):
        assert len({text_of(record) for record in records}) == SMALL["train_rows"]
    assert all(record.reference == answer(parse(text_of(record))) for record in gold)
    mean = np.mean([utility(text_of(record), record.reference) for record in typical])
    assert 0.65 < mean < 0.9


def test_prompt_rows_end_where_a_family_has_no_more(data_dir):
    records = gold_records("prompt", "test", data_dir=data_dir, families=("add",), **(SMALL | {"test_rows": 5000}))
    assert 100 < len(records) < 400
    assert len({text_of(record) for record in records}) == len(records)


def test_rows_depend_on_the_arguments_alone(tmp_path):
    def read(name, **args):
        return gold_records("sft", "train", data_dir=tmp_path / name, **SMALL, **args)

    assert read("a") == read("b") == read("a")
    assert read("a", seed=1) != read("a")
    assert read("a", families=["rev"])[0].meta["family"] == "rev"
    assert read("a") == read("b")  # other arguments in the same place changed nothing


def test_golden_rows(data_dir):
    """If this fails after a deliberate change of the tasks, raise `PrlGold.VERSION`, then update the digest.

    Otherwise data that users have on disk would silently differ from what the code generates.
    """
    digest = hashlib.blake2b(digest_size=8)
    for kind in KINDS:
        for record in gold_records(kind, "train", data_dir=data_dir, difficulties=(0, 1, 2, 3), **SMALL):
            texts = (
                text_of(record),
                *(getattr(record, n, "") for n in ("response", "reference", "chosen", "rejected")),
            )
            digest.update(repr(texts).encode())
    assert digest.hexdigest() == "932e9927fe41da5c"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"familes": ("rev",)}, "unknown argument 'familes'; did you mean families?"),
        ({"families": ("rot13",)}, "families = .* expected .* sort, rev"),
        ({"families": "rev"}, "families = 'rev'"),
        ({"difficulties": ()}, "difficulties"),
        ({"difficulties": (4,)}, "difficulties"),
        ({"noise": 0.9}, r"noise = 0.9; expected a number in \[0.0, 0.5\]"),
        ({"filler": "often"}, "filler"),
        ({"train_rows": 0}, "train_rows"),
        ({"train_rows": 2.5}, "train_rows"),
        ({"test_rows": None}, "test_rows"),
        ({"seed": True}, "seed"),
        ({"reference": "best"}, "reference = 'best'; expected 'demonstration' or 'gold'"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, args, message):
    with pytest.raises(UserError, match=message) as caught:
        gold_records("sft", "train", data_dir=tmp_path, **args)
    assert "\n" not in str(caught.value)


def test_unknown_kind_and_split_are_named(tmp_path):
    with pytest.raises(UserError, match="unknown kind 'pairs'"):
        gold_records("pairs", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        gold_records("sft", "dev", data_dir=tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the built-in data to .*file"):
        gold_records("sft", "train", data_dir=tmp_path / "file", **SMALL)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # fails in write(), as a full disk does
    try:
        with pytest.raises(UserError, match="cannot write the built-in data to .*: File too large") as caught:
            gold_records("sft", "train", data_dir=tmp_path, **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("prl_gold/*/*"))
    assert len(gold_records("sft", "train", data_dir=tmp_path, **SMALL)) == SMALL["train_rows"]


def test_nothing_is_printed(tmp_path, capfd, caplog):
    gold_records("sft", "train", data_dir=tmp_path, **SMALL)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")]


def start(data_dir: Path, rows: int) -> subprocess.Popen:
    code = (
        "import sys; from prl_jax.data.gold.builder import gold_records; "
        "print(len(gold_records('sft', 'train', data_dir=sys.argv[1], train_rows=int(sys.argv[2]))))"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "error", "-c", code, str(data_dir), str(rows)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **pipes)


def test_killed_while_writing_and_two_at_a_time(tmp_path):
    rows = 30_000
    victim = start(tmp_path, rows)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("prl_gold/*/incomplete.*")):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    victim.stderr.close()
    assert list(tmp_path.glob("prl_gold/*/incomplete.*")) and not list(tmp_path.glob("prl_gold/*/1*"))

    both = [start(tmp_path, rows), start(tmp_path, rows)]
    assert [process.communicate(timeout=100) for process in both] == [(f"{rows}\n", "")] * 2
    assert not list(tmp_path.glob("prl_gold/*/incomplete.*"))
    assert len(gold_records("sft", "train", data_dir=tmp_path, train_rows=rows)) == rows
