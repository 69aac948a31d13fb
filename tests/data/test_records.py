"""Parsers: every accepted form gives the record it should, every broken row its message."""

import os
from pathlib import Path
from typing import Any

import pytest

from prl_jax.data.jsonl import JsonLines
from prl_jax.data.records import (
    PreferenceRecord,
    PromptRecord,
    SFTRecord,
    parse_preference,
    parse_prompt,
    parse_sft,
)
from prl_jax.errors import UserError
from prl_jax.text.chat import Turn

WHERE = "pairs.jsonl:7"
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR: dict[str, Any] = {"id": "x", "prompt": "q", "chosen": "a", "rejected": "b"}


def told(parse: Any, row: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse(row, WHERE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_plain_pair() -> None:
    row = {**PAIR, "source": "s", "meta": {"pos": 2, "k": 1}, "label_source": "human"}
    assert parse_preference(row, WHERE) == PreferenceRecord(
        "x", (Turn("user", "q"),), "a", "b", slot=2, source="s", meta={"pos": 2, "k": 1}
    )
    assert parse_preference({k: v for k, v in PAIR.items() if k != "id"}, WHERE).id == WHERE
    assert parse_preference({**PAIR, "id": 3}, WHERE).id == "3"


def test_labels() -> None:
    assert parse_preference(PAIR, WHERE).label == parse_preference(PAIR, WHERE).soft_label == 1.0
    tie = parse_preference({**PAIR, "tie": True}, WHERE)
    assert tie.tie and tie.label == tie.soft_label == 0.5
    soft = parse_preference({**PAIR, "p_chosen": 0.7}, WHERE)
    assert (soft.label, soft.soft_label) == (1.0, 0.7)
    assert parse_preference({**PAIR, "meta": {"p_chosen": 0}}, WHERE).soft_label == 0.0
    assert parse_preference({**PAIR, "slot": 2, "meta": {"pos": 1}}, WHERE).slot == 2


@pytest.mark.parametrize(
    ("meta", "tie", "expected"),
    [
        ({"votes": [3, 1, 1], "pos": 1}, False, 0.7),
        ({"votes": [3, 1, 1], "pos": 2}, False, 0.3),
        ({"votes": [1, 4, 0], "pos": 2}, False, 0.8),
        ({"votes": [2, 1, 2]}, True, 0.6),  # the chosen of a tie is the one presented first
        ({"votes": [2, 1, 2]}, False, None),  # no telling which slot was chosen
        ({"votes": [0, 0, 0], "pos": 1}, False, None),
    ],
)
def test_vote_shares(meta: dict[str, Any], tie: bool, expected: float | None) -> None:
    record = parse_preference({**PAIR, "meta": meta, "tie": tie}, WHERE)
    assert record.p_chosen == (None if expected is None else pytest.approx(expected))


def test_votes_that_list_the_annotators_verdicts() -> None:
    row = {**PAIR, "source": "pandalm_test", "meta": {"votes": [0, 2, 2], "pos": 2}}
    assert parse_preference(row, WHERE).p_chosen == pytest.approx(2.5 / 3)
    row = {**PAIR, "source": "pandalm_test", "tie": True, "meta": {"votes": [0, 0, 1]}}
    assert parse_preference(row, WHERE).p_chosen == pytest.approx(2 / 3)


SHARED = [{"role": "system", "content": "s"}, USER]
TRANSCRIPT = "\n\nHuman: q\n\nAssistant: mm\n\nHuman: r\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{**ASSISTANT, "content": "b"}]}, [("user", "q")]),
        ({"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": "b"}, [("user", "q")]),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "messages": [USER]}, [("user", "q")]),
        (
            {"chosen": [*SHARED, ASSISTANT], "rejected": [*SHARED, {**ASSISTANT, "content": "b"}]},
            [("system", "s"), ("user", "q")],
        ),
        (
            {"chosen": TRANSCRIPT + " a", "rejected": TRANSCRIPT + " b"},
            [("user", "q"), ("assistant", "mm"), ("user", "r")],
        ),
    ],
)
def test_forms_of_pairs(row: dict[str, Any], prompt: list[tuple[str, str]]) -> None:
    record = parse_preference(row, WHERE)
    assert record.prompt == tuple(Turn(*turn) for turn in prompt)
    assert (record.chosen, record.rejected) == ("a", "b")
    as_prompt = parse_prompt(row, WHERE)
    assert (as_prompt.prompt, as_prompt.reference) == (record.prompt, "a")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": [USER, ASSISTANT]},
        {"prompt": "q", "prompt_id": "0", "messages": [USER, ASSISTANT]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [USER, ASSISTANT]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "b"}]},
    ],
)
def test_forms_of_demonstrations(row: dict[str, Any]) -> None:
    assert parse_sft(row, WHERE) == SFTRecord(WHERE, (Turn("user", "q"),), "a")
    assert parse_prompt(row, WHERE) == PromptRecord(WHERE, (Turn("user", "q"),), "a")


def test_the_prompt_beside_messages_is_only_the_first_turn() -> None:
    row = {"prompt": "q", "messages": [USER, ASSISTANT, {**USER, "content": "r"}, {**ASSISTANT, "content": "z"}]}
    record = parse_sft(row, WHERE)
    assert [turn.content for turn in record.prompt] == ["q", "a", "r"] and record.response == "z"
    assert parse_sft({**row, "chosen": "c", "rejected": "d"}, WHERE) == record
    assert parse_sft({**row, "response": "w"}, WHERE).response == "w"
    assert "expected the other response" in told(parse_sft, {"chosen": [USER, ASSISTANT]})


def test_forms_of_prompts() -> None:
    expected = PromptRecord(WHERE, (Turn("user", "q"),))
    assert parse_prompt({"prompt": "q"}, WHERE) == expected
    assert parse_prompt({"messages": [USER]}, WHERE) == expected
    assert parse_prompt({"prompt": "q", "reference": "g", "response": "a"}, WHERE).reference == "g"
    many = parse_sft({"messages": [USER, ASSISTANT, USER, {**ASSISTANT, "content": "z"}]}, WHERE)
    assert [turn.role for turn in many.prompt] == ["user", "assistant", "user"] and many.response == "z"


@pytest.mark.parametrize(
    ("parse", "dropped", "message"),
    [
        (parse_preference, "chosen", 'field "chosen" is missing (expected the preferred response)'),
        (parse_preference, "rejected", 'field "rejected" is missing (expected the other response)'),
        (
            parse_preference,
            "prompt",
            'field "prompt" is missing (expected a string or a list of {role, content} turns that ends in a user turn)',
        ),
        (
            parse_sft,
            "prompt",
            'field "prompt" is missing (expected a string or a list of {role, content} turns that ends in a user turn)',
        ),
        (parse_sft, "response", 'field "response" is missing (expected the response to imitate)'),
    ],
)
def test_missing_fields(parse: Any, dropped: str, message: str) -> None:
    row = {"prompt": "q", "response": "a"} if parse is parse_sft else PAIR
    assert told(parse, {k: v for k, v in row.items() if k != dropped}) == f"{WHERE}: {message}"
    assert told(parse, {**row, dropped: None}) == f"{WHERE}: {message}"


def test_empty_rows() -> None:
    for parse, name in ((parse_preference, "chosen"), (parse_sft, "prompt"), (parse_prompt, "prompt")):
        assert told(parse, {}).startswith(f'{WHERE}: field "{name}" is missing')


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": 3}, 'field "prompt" is 3 (expected a string or a list of {role, content})'),
        ({"prompt": {}}, 'field "prompt" is an object (expected a string or a list of {role, content})'),
        ({"prompt": []}, 'field "prompt" is an empty list (expected at least one turn)'),
        ({"prompt": ["q"]}, 'field "prompt[0]" is a string (expected an object with role and content)'),
        ({"prompt": [{"role": "user"}]}, 'field "prompt[0].content" is missing (expected a string)'),
        ({"prompt": [{**USER, "content": [1]}]}, 'field "prompt[0].content" is a list (expected a string)'),
        (
            {"prompt": [{**USER, "role": "robot"}]},
            'field "prompt[0].role" is "robot" (expected one of system, user, assistant)',
        ),
        ({"prompt": [USER, ASSISTANT]}, 'field "prompt" ends in a turn of role "assistant" (expected "user")'),
        ({"chosen": 1.5}, 'field "chosen" is 1.5 (expected a string or a list of {role, content})'),
        ({"chosen": [USER]}, 'field "chosen" holds 0 turns after the prompt (expected one, "assistant")'),
        ({"rejected": [ASSISTANT] * 2}, 'field "rejected" holds 2 turns after the prompt (expected one, "assistant")'),
        ({"tie": "yes"}, 'field "tie" is a string (expected true or false)'),
        ({"p_chosen": 1.5}, 'field "p_chosen" is 1.5 (expected a number in [0, 1])'),
        ({"p_chosen": float("nan")}, 'field "p_chosen" is nan (expected a number in [0, 1])'),
        ({"meta": {"p_chosen": "1"}}, 'field "meta.p_chosen" is a string (expected a number in [0, 1])'),
        ({"meta": {"pos": 3}}, 'field "meta.pos" is 3 (expected 1 or 2)'),
        ({"slot": True}, 'field "slot" is True (expected 1 or 2)'),
        ({"meta": {"votes": [1, 2]}}, 'field "meta.votes" is a list (expected three counts [first, second, tie])'),
        ({"meta": []}, 'field "meta" is a list (expected an object)'),
        ({"id": {}}, 'field "id" is an object (expected a string)'),
        ({"source": 1}, 'field "source" is 1 (expected a string)'),
    ],
)
def test_wrong_types(changed: dict[str, Any], message: str) -> None:
    assert told(parse_preference, {**PAIR, **changed}) == f"{WHERE}: {message}"


def test_conversations_without_a_shared_prompt() -> None:
    other = [{**USER, "content": "another"}, ASSISTANT]
    row = {"chosen": [USER, ASSISTANT], "rejected": other}
    assert "differ before their last turn (expected one shared prompt)" in told(parse_preference, row)
    row = {"chosen": [USER], "rejected": [USER]}
    assert told(parse_preference, row) == f'{WHERE}: field "chosen" does not end in a user and an assistant turn'
    assert "does not end in a user and an assistant turn" in told(parse_sft, {"messages": [USER]})


@pytest.mark.skipif(not os.environ.get("PRL_DATA_DIR"), reason="PRL_DATA_DIR is not set")
def test_every_shared_file_parses() -> None:
    files = sorted(Path(os.environ["PRL_DATA_DIR"]).glob("*.jsonl.gz"))
    assert files
    pairs, soft, slots = 0, 0, 0
    for path in files:
        for i, (where, row) in enumerate(JsonLines(path)):
            if i < 50 or path.name.startswith("prompts"):
                assert parse_prompt(row, where).prompt[-1].role == "user"
            if "chosen" in row:
                record = parse_preference(row, where)
                assert record.tie == row.get("tie", False)
                pairs, soft, slots = pairs + 1, soft + (record.p_chosen is not None), slots + (record.slot is not None)
            elif "response" in row:
                assert parse_sft(row, where).response == row["response"]
    assert pairs > 20_000 and soft > 13_000 and slots > 10_000


@pytest.mark.skipif(not os.environ.get("PRL_DATA_DIR"), reason="PRL_DATA_DIR is not set")
@pytest.mark.parametrize(("name", "agree"), [("ukp_convarg1.test", 0.9), ("pandalm_test.test", 1.0)])
def test_votes_belong_to_the_slots(name: str, agree: float) -> None:
    """Most annotators voted for the chosen response: reading the slots the wrong way round would tell the opposite."""
    path = Path(os.environ["PRL_DATA_DIR"]) / f"{name}.jsonl.gz"
    shares = [r.p_chosen for r in (parse_preference(row, where) for where, row in JsonLines(path)) if not r.tie]
    assert len(shares) > 500 and None not in shares
    assert sum(share >= 0.5 for share in shares if share is not None) >= agree * len(shares)
