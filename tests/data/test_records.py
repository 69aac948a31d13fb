"""Records: names that tell them apart."""

from prl_jax.data.records import PromptRecord, unique_names
from prl_jax.text.chat import Turn


def test_ids_name_records_only_where_they_are_unique() -> None:
    records = [PromptRecord(name, (Turn("user", "q"),)) for name in ("a", "b", "a", "f:4")]
    assert unique_names(records, ["f:1", "f:2", "f:3", "f:4"]) == ["f:1", "b", "f:3", "f:4"]
    assert unique_names([], []) == []
