"""Sources: where records come from, and what a bad one says."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prl_jax.data.gold import builder
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord, PromptRecord, SFTRecord
from prl_jax.data.sources import Fingerprint, SourceSpec, load_records, mixed, mixed_rows
from prl_jax.errors import UserError
from prl_jax.text.chat import Turn

PAIRS = [{"id": str(i), "prompt": f"q{i}", "chosen": "a", "rejected": "a" if i == 1 else "b"} for i in range(4)]


def test_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "pairs.test.jsonl.gz", PAIRS)
    monkeypatch.setenv("PRL_DATA_DIR", str(tmp_path))
    for path in ("$PRL_DATA_DIR/pairs.{split}.jsonl.gz", "${PRL_DATA_DIR}/pairs.test.jsonl.gz"):
        spec = SourceSpec("jsonl", path, "test")
        records = load_records(spec, "preference", data_dir=tmp_path)
        assert [record.id for record in records] == ["0", "1", "2", "3"]
        assert all(isinstance(record, PreferenceRecord) for record in records)
    prompts = load_records(SourceSpec("jsonl", path, limit=2), "prompt", data_dir=tmp_path)
    assert list(prompts) == [PromptRecord(str(i), (Turn("user", f"q{i}"),), "a") for i in range(2)]


def test_unset_variable_and_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRL_DATA_DIR", raising=False)
    spec = SourceSpec("jsonl", "$PRL_DATA_DIR/pairs.jsonl")
    with pytest.raises(UserError) as caught:
        load_records(spec, "sft", data_dir=tmp_path)
    assert str(caught.value) == (
        "$PRL_DATA_DIR/pairs.jsonl: environment variable PRL_DATA_DIR is not set "
        "(expected the folder that holds the data)"
    )
    monkeypatch.setenv("PRL_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_records(spec, "sft", data_dir=tmp_path)
    assert str(caught.value) == f"{tmp_path}/pairs.jsonl: no such file"


def test_missing_field_names_file_line_and_field(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAIRS[0], {"prompt": "q", "chosen": "a"}])
    with pytest.raises(UserError) as caught:
        list(load_records(SourceSpec("jsonl", str(tmp_path / "a.jsonl")), "preference", data_dir=tmp_path))
    assert str(caught.value) == f'{tmp_path}/a.jsonl:2: field "rejected" is missing (expected the other response)'


def test_repeated_ids_give_way_to_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{**PAIRS[0], "id": name} for name in ("a", "b", "a", f"{path}:2", 1, "1")]
    write_jsonl(path, [*rows, {"id": "b"}])
    records = load_records(SourceSpec("jsonl", str(path)), "prompt", data_dir=tmp_path).with_unique_ids()
    names = [f"{path}:1", "b", f"{path}:3", f"{path}:2", f"{path}:5", f"{path}:6"]
    assert [records[i].id for i in range(6)] == names and records[2:3][0].id == names[2]
    assert records.fingerprint is not None and records.place(6) == f"{path}:7"
    with pytest.raises(UserError, match=r"a\.jsonl:7: "):
        records[6]


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [((6, 3), (2.0, 1.0), (6, 3)), ((6, 2), (1.0, 1.0), (6, 6)), ((5, 1), (3.0, 1.0), (5, 2)), ((2,), (7.0,), (2,))],
)
def test_a_mixture_has_every_record_in_shares_as_the_weights(tmp_path: Path, sizes, weights, counts) -> None:
    parts = []
    for number, size in enumerate(sizes):
        write_jsonl(tmp_path / f"{number}.jsonl", [{**PAIRS[0], "id": f"{number}-{i}"} for i in range(size)])
        parts.append(load_records(SourceSpec("jsonl", str(tmp_path / f"{number}.jsonl")), "prompt", data_dir=tmp_path))
    records = mixed(parts, weights)
    ids = [record.id for record in records]
    assert tuple(mixed_rows(sizes, weights)) == counts and len(records) == sum(counts)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        assert [name for name in ids if name.startswith(f"{number}-")] == [f"{number}-{i % size}" for i in range(count)]
        # Evenly spread: no stretch has more than one record more or less than its share.
        shown = np.cumsum([name.startswith(f"{number}-") for name in ids])
        assert np.abs(shown - np.arange(1, len(ids) + 1) * count / len(ids)).max() <= 1
    places = [records.place(i) for i in range(len(records))]
    assert len(set(places)) == len(places) and places[0].startswith(str(tmp_path))
    assert len({record.id for record in records.with_unique_ids()}) == len(records)


@pytest.mark.parametrize("weights", [(1e12, 1e-9), (1e300, 1e-300), (1.0, 1e5)])
def test_weights_that_no_data_can_fill_are_refused(weights) -> None:
    with pytest.raises(UserError, match=r"weights \(.*\): .*more than 10,000 times"):
        mixed_rows((8, 8), weights)
    assert tuple(mixed_rows((8, 8), (1.0, 1e-4))) == (80_000, 8)


def test_empty_data_set(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    with pytest.raises(UserError) as caught:
        load_records(SourceSpec("jsonl", str(path)), "sft", data_dir=tmp_path)
    assert str(caught.value) == f"{path}: the data set is empty (expected at least one sft record)"


def test_bad_specs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='^unknown data source kind "csv": expected one of gold, jsonl, tfds$'):
        load_records(SourceSpec("csv"), "sft", data_dir=tmp_path)
    with pytest.raises(UserError, match='^data source of kind "jsonl" has no path$'):
        load_records(SourceSpec("jsonl"), "sft", data_dir=tmp_path)
    with pytest.raises(UserError, match="^data source limit -1: expected 0"):
        load_records(SourceSpec("gold", limit=-1), "sft", data_dir=tmp_path)
    with pytest.raises(ValueError, match="what='pairs'"):
        load_records(SourceSpec("gold"), "pairs", data_dir=tmp_path)


def test_rows_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """A process that needs some rows parses these alone: what is wrong with others does not show."""
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in PAIRS]
    path.write_text("\n".join([*lines[:2], "", '{"prompt": ', *lines[2:], ""]))
    records = load_records(SourceSpec("jsonl", str(path)), "preference", data_dir=tmp_path)
    assert len(records) == 5 and [records[i].id for i in (0, 1, 3, 4, -1)] == ["0", "1", "2", "3", "3"]
    with pytest.raises(UserError, match=f"^{path}:4: malformed JSON"):
        list(records)
    whole = records.take([0, 1, 3, 4])
    assert [r.id for r in whole] == ["0", "1", "2", "3"] and [r.id for r in whole[1:3]] == ["1", "2"]
    assert [r.id for r in whole[1:].take(np.array([2, 0]))] == ["3", "1"] and len(whole[4:]) == 0
    with pytest.raises(IndexError):
        whole[4]
    limited = load_records(SourceSpec("jsonl", str(path), limit=2), "preference", data_dir=tmp_path)
    assert [r.id for r in limited] == ["0", "1"]


@pytest.mark.parametrize("kind", ["jsonl", "tfds"])
def test_paths_with_a_scheme_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match="^gs://bucket/a.jsonl: paths with a scheme "):
        load_records(SourceSpec(kind, "gs://bucket/a.jsonl"), "sft", data_dir=tmp_path)


def test_gold_is_asked_for_the_split_and_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def gold_records(what: str, split: str, *, data_dir: Path, **builder_args: Any) -> list[SFTRecord]:
        asked.update(what=what, split=split, data_dir=data_dir, **builder_args)
        return [SFTRecord(str(i), (Turn("user", "q"),), "a") for i in range(5)]

    monkeypatch.setattr(builder, "gold_records", gold_records)
    spec = SourceSpec("gold", split="validation", builder_args={"seed": 3}, limit=2)
    assert [record.id for record in load_records(spec, "sft", data_dir=tmp_path)] == ["0", "1"]
    assert asked == {"what": "sft", "split": "validation", "data_dir": tmp_path, "seed": 3}


@pytest.fixture
def tiny_tfds(tmp_path: Path) -> Path:
    import tensorflow_datasets as tfds

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None  # nothing is downloaded

        def _info(self) -> tfds.core.DatasetInfo:
            turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
            text = tfds.features.Text()
            features = {"id": text, "prompt": tfds.features.Sequence(turn), "chosen": text, "rejected": text}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({**features, "tie": np.bool_, "slot": np.int64})
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i in range(3):
                turns = [{"role": "user", "content": f"é{i}"}]
                yield i, {"id": str(i), "prompt": turns, "chosen": "a", "rejected": "b", "tie": i == 1, "slot": 2}

    builder = TinyPairs(data_dir=str(tmp_path), file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_tfds(tiny_tfds: Path, tmp_path: Path) -> None:
    records = load_records(SourceSpec("tfds", str(tiny_tfds)), "preference", data_dir=tmp_path)
    assert sorted(record.id for record in records) == ["0", "1", "2"]
    for record in records:
        expected = PreferenceRecord(record.id, (Turn("user", f"é{record.id}"),), "a", "b", tie=record.id == "1", slot=2)
        assert record == expected
    assert len(load_records(SourceSpec("tfds", str(tiny_tfds), limit=1), "prompt", data_dir=tmp_path)) == 1
    found = records.fingerprint
    assert found == records[:1].fingerprint and found is not None and found.rows == 3
    assert found.size == sum(file.stat().st_size for file in tiny_tfds.iterdir())
    (tiny_tfds / "dataset_info.json").write_text((tiny_tfds / "dataset_info.json").read_text() + " ")
    again = load_records(SourceSpec("tfds", str(tiny_tfds)), "preference", data_dir=tmp_path).fingerprint
    assert again is not None and again.sha256 != found.sha256
    with pytest.raises(UserError, match=r'no split "test" \(expected one of train\)$'):
        load_records(SourceSpec("tfds", str(tiny_tfds), "test"), "preference", data_dir=tmp_path)


def test_tfds_that_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^no_such_set: cannot open the TFDS data set: ") as caught:
        load_records(SourceSpec("tfds", "no_such_set"), "preference", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_known_by_size_checksum_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    rows = b'{"prompt": "a"}\n\n{"prompt"\n'
    path.write_bytes(gzip.compress(rows, mtime=0))
    spec = SourceSpec("jsonl", path=str(path), limit=1)
    found = load_records(spec, "prompt", data_dir=tmp_path)[:1].take([0]).fingerprint
    assert found == Fingerprint(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), 2)
