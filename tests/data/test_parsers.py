"""Parsers: every accepted form gives the record it should, every broken row its message."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from prl_jax.data.jsonl import JsonLines
from prl_jax.data.parsers import parse_preference, parse_prompt, parse_sft
from prl_jax.data.records import PreferenceRecord, PromptRecord, SFTRecord
from prl_jax.errors import UserError
from prl_jax.text.chat import Turn

WHERE = "pairs.jsonl:7"
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NO_RESPONSE = (
    'is no response to "prompt" (expected a text, an assistant turn, or a conversation that holds the prompt and ends '
    "in an assistant turn)"
)
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
    assert parse_sft({**row, "response": "z"}, WHERE).response == "z"
    assert "expected the other response" in told(parse_sft, {"chosen": [USER, ASSISTANT]})


def test_of_two_different_responses_none_is_left_out_in_silence() -> None:
    messages = [USER, {**ASSISTANT, "content": "z"}]
    for other in ({"completion": "z"}, {"messages": messages}):
        said = told(parse_sft, {"prompt": "q", "response": "w", **other})
        assert (
            said == f'{WHERE}: fields "response" and "{next(iter(other))}" hold different responses: keep one of them'
        )
        assert parse_sft({"prompt": "q", "response": "z", **other}, WHERE).response == "z"
    assert "different responses" in told(parse_sft, {"messages": messages, "completion": "w"})
    assert parse_preference({**PAIR, "response": "w", "completion": "w"}, WHERE).unused == ("response", "completion")


@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_a_blank_id_is_none(blank: str) -> None:
    assert parse_preference({**PAIR, "id": blank}, WHERE).id == WHERE


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
    if dropped != "prompt" or parse is parse_sft:
        message = message.replace(" is missing ", " is null ")
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
        ({"chosen": [USER]}, f'field "chosen" {NO_RESPONSE}'),
        ({"chosen": [{**USER, "content": "r"}, ASSISTANT]}, f'field "chosen" {NO_RESPONSE}'),
        ({"rejected": [ASSISTANT] * 2}, f'field "rejected" {NO_RESPONSE}'),
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


def turns(*contents: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{**(USER, ASSISTANT)[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}, [("system", "s"), ("user", "q")]),
        ({"system_prompt": "s", "prompt": SHARED, "chosen": "a", "rejected": "b"}, [("system", "s"), ("user", "q")]),
        ({"system": "", "prompt": "q", "chosen": "a", "rejected": "b"}, [("user", "q")]),
        (  # the prompt is in the conversations as well, and these have more of it
            {"prompt": "q", "chosen": [*SHARED, ASSISTANT], "rejected": [*SHARED, {**ASSISTANT, "content": "b"}]},
            [("system", "s"), ("user", "q")],
        ),
        (
            {"prompt": "q", "chosen": turns("q", "m", "r", "a"), "rejected": turns("q", "m", "r", "b")},
            [("user", "q"), ("assistant", "m"), ("user", "r")],
        ),
        (
            {"prompt": "r", "chosen": turns("q", "m", "r", "a"), "rejected": turns("q", "m", "r", "b")},
            [("user", "q"), ("assistant", "m"), ("user", "r")],
        ),
        (
            {"prompt": "q", "chosen": turns("q", "m", "r", "a")[1:], "rejected": turns("q", "m", "r", "b")[1:]},
            [("user", "q"), ("assistant", "m"), ("user", "r")],
        ),
        ({"prompt": SHARED, "chosen": [USER, ASSISTANT], "rejected": "b"}, [("system", "s"), ("user", "q")]),
        ({"prompt": "q", "chosen": ASSISTANT, "rejected": ["b"]}, [("user", "q")]),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "chosen": "a", "rejected": "b"},
            [("user", "q")],
        ),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, [("user", "q")]),
        (
            {"prompt": "Human: q\n\nAssistant: m\n\nHuman: r", "chosen": "a", "rejected": "b"},
            [("user", "q"), ("assistant", "m"), ("user", "r")],
        ),
        (
            {"prompt": TRANSCRIPT, "chosen": TRANSCRIPT + " a", "rejected": TRANSCRIPT + " b"},
            [("user", "q"), ("assistant", "mm"), ("user", "r")],
        ),
        (
            {
                "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            [("system", "s"), ("user", "q")],
        ),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, [("user", "q")]),
        ({"instruction": "q", "output_1": "b", "output_2": "a", "preference": 2}, [("user", "q")]),
    ],
)
def test_other_forms_of_pairs(row: dict[str, Any], prompt: list[tuple[str, str]]) -> None:
    record = parse_preference(row, WHERE)
    assert record.prompt == tuple(Turn(*turn) for turn in prompt)
    assert (record.chosen, record.rejected, record.tie, record.unused) == ("a", "b", False, ())
    for parse in (parse_sft, parse_prompt):
        other = parse(row, WHERE)
        assert other.prompt == record.prompt
        assert (other.response if isinstance(other, SFTRecord) else other.reference) == "a"


@pytest.mark.parametrize(
    ("row", "contents"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q"]),
        ({"prompt": "q", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q"]),
        ({"prompt": "\r\n\r\nHuman: q\r\n\r\nAssistant: ", "response": "a"}, ["q"]),
        ({"prompt": "Write:\nHuman: hi", "response": "a"}, ["Write:\nHuman: hi"]),
        ({"instruction": "q", "output": "a"}, ["q"]),
        ({"instruction": "q", "input": "x", "output": "a"}, ["q\n\nx"]),
        ({"instruction": "q", "context": "x", "response": "a", "category": "c"}, ["q\n\nx"]),
        ({"instruction": "q", "history": [["1", "2"], ["3", "4"]], "output": "a"}, ["1", "2", "3", "4", "q"]),
        ({"prompt": "q", "completion": "a", "label": True}, ["q"]),
        ({"prompt": "q", "completion": "a", "label": 1, "is_safe": True}, ["q"]),
        ({"prompt": "q", "completion": "a", "tools": [], "tool_choice": None}, ["q"]),
    ],
)
def test_other_forms_of_demonstrations(row: dict[str, Any], contents: list[str]) -> None:
    record = parse_sft(row, WHERE)
    assert [turn.content for turn in record.prompt] == contents and record.response == "a"
    as_prompt = parse_prompt(row, WHERE)
    assert (as_prompt.prompt, as_prompt.reference) == (record.prompt, "a")


def test_outputs_of_which_one_is_preferred() -> None:
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1}
    assert parse_preference(row, WHERE).slot == 1
    assert parse_preference({**row, "preference": 2}, WHERE).chosen == "b"
    for draw in (0, 1.5):
        assert parse_preference({**row, "preference": draw}, WHERE).tie
    for wrong in ("1", True, 1.2, float("nan"), [1]):
        assert 'field "preference" is ' in told(parse_preference, {**row, "preference": wrong})


def test_identical_responses_are_a_tie() -> None:
    record = parse_preference({**PAIR, "rejected": "a"}, WHERE)
    assert record.tie and record.label == 0.5
    assert not parse_preference({**PAIR, "rejected": "a "}, WHERE).tie


NOT_A_TURN = 'holds "Human:" or "Assistant:" inside a text (expected a whole transcript'


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "Be kind.\n\nHuman: q\n\nAssistant:"}, f'field "prompt" {NOT_A_TURN}'),
        ({"prompt": "\n\nAssistant: q"}, f'field "prompt" {NOT_A_TURN}'),
        (
            {"prompt": [{**USER, "content": "q\n\nAssistant: m\n\nHuman: r"}]},
            f'field "prompt[0].content" {NOT_A_TURN}',
        ),
        ({"chosen": turns("q\n\nHuman: r", "a")}, f'field "chosen[0].content" {NOT_A_TURN}'),
        ({"prompt": "Human: q\n\nAssistant: beg"}, 'field "prompt" ends in a turn of role "assistant"'),
        ({"prompt": "Human: q\nAssistant:"}, f'field "prompt" {NOT_A_TURN}'),
        ({"prompt": "\r\n\r\nAssistant: q"}, f'field "prompt" {NOT_A_TURN}'),
        ({"prompt": "q\nAssistant: "}, 'field "prompt" has been put into a chat template'),
        ({"prompt": "### Human: q### Assistant: a### Human: r"}, 'field "prompt" has been put into a chat template'),
        ({"prompt": "<|im_start|>user\nq<|im_end|>"}, 'field "prompt" has been put into a chat template'),
        ({"prompt": "<s>[INST] q [/INST]"}, 'field "prompt" has been put into a chat template'),
        ({"prompt": "### Human: q ### Assistant:"}, 'field "prompt" has been put into a chat template'),
        ({"prompt": "### Instruction:\nq\n\n### Response:\n"}, 'field "prompt" has been put into a chat template'),
        ({"prompt": "\ud83dq"}, 'field "prompt" holds half of a surrogate pair, \\ud83d, at character 1'),
        ({"chosen": "a\udc00"}, 'field "chosen" holds half of a surrogate pair, \\udc00, at character 2'),
        ({"chosen": ["a", "c"]}, 'field "chosen" lists 2 responses (expected one: write a row for each pair)'),
        ({"chosen": turns("q", "a", "r", "c")[1:]}, '"chosen" and "rejected" differ before their last turn'),
        (
            {"prompt": [{**USER, "content": [{"type": "image"}]}]},
            'field "prompt[0].content[0]" is a part of type "image"',
        ),
        ({"prompt": [USER, {"role": "tool", "content": "3"}]}, 'field "prompt[1].role" is "tool"'),
        ({"prompt": [USER, {**ASSISTANT, "content": None, "tool_calls": [{}]}]}, 'field "prompt[1].tool_calls" is not'),
        ({"chosen": [{**ASSISTANT, "weight": 0}]}, 'field "chosen[0].weight" is not supported'),
        ({"chosen": [{**ASSISTANT, "reasoning_content": "hm"}]}, 'field "chosen[0].reasoning_content" is not'),
        (
            {"system": "s", "prompt": [{"role": "system", "content": "z"}, USER]},
            'key "system" gives another system turn',
        ),
        ({"system": "s", "system_prompt": "z"}, 'key "system_prompt" gives another system turn'),
        ({"system": ["s"]}, 'field "system" is a list (expected a string)'),
        ({"tools": [{"name": "f"}]}, 'key "tools" belongs to the prompt, but is not supported'),
        ({"images": ["x.png"]}, 'key "images" belongs to the prompt'),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 'key "chat_template_kwargs" belongs to the prompt'),
        ({"margin": -1.0}, 'field "margin" is -1.0 (expected at least 0, since "chosen" is the better response)'),
        ({"margin": float("nan")}, 'field "margin" is nan (expected a finite number)'),
        ({"margin": "3"}, 'field "margin" is a string (expected a finite number)'),
        ({"score_chosen": 1, "score_rejected": 2}, 'field "score_chosen" is 1 (expected at least "score_rejected"'),
        ({"chosen_score": 1, "rejected_score": 2}, 'field "chosen_score" is 1 (expected at least "rejected_score"'),
        ({"chosen-rating": 1.5, "rejected-rating": 4.0}, 'field "chosen-rating" is 1.5 (expected at least "rejected-'),
        ({"win_chosen": 1.5, "win_rejected": 0}, 'field "win_chosen" is 1.5 (expected a number in [0, 1])'),
        ({"win_chosen": 0.5, "win_rejected": "x"}, 'field "win_rejected" is a string (expected a number in [0, 1])'),
        ({"win_chosen": float("nan")}, 'field "win_chosen" is nan (expected a number in [0, 1])'),
        ({"rejected_reward": float("nan")}, 'field "rejected_reward" is nan (expected a finite number)'),
        ({"history": [["q", "a"]]}, 'key "history" stands beside the prompt, but is not read: make its exchanges'),
        ({"context": "A page."}, 'key "context" stands beside the prompt, but is not read: put it into the prompt'),
        ({"label": False}, 'key "label" may change which response is the better one'),
        ({"label": 1}, 'key "label" may change which'),
        ({"margin": 10**400}, 'field "margin" is 1000000'),
        ({"p_chosen": 10**400}, 'field "p_chosen" is 1000000'),
        ({"meta": {"votes": [10**400, 0, 10**400], "pos": 1}}, 'field "meta.votes" is a list'),
        ({"choosen\n": 1, "chosen": None}, 'unknown key "choosen\\n" (expected "chosen"?)'),
        ({"winner": "model_b"}, 'key "winner" may change which'),
        ({"preference": 2}, 'key "preference" may change which'),
        ({"is_response_0_safe": True}, 'key "is_response_0_safe" may change which'),
        ({"weight": 0.5}, 'key "weight" may change which'),
        ({"p_chosen": "0.9"}, 'field "p_chosen" is a string (expected a number in [0, 1])'),
        ({"p_chosen": float("inf")}, 'field "p_chosen" is inf (expected'),
        ({"id": float("nan")}, 'field "id" is nan (expected a string)'),
        ({"id": float("inf")}, 'field "id" is inf (expected a string)'),
        ({"id": [1]}, 'field "id" is a list (expected a string)'),
        ({"id": True}, 'field "id" is True (expected a string)'),
    ],
)
def test_what_a_row_says_is_used_or_refused(changed: dict[str, Any], message: str) -> None:
    assert told(parse_preference, {**PAIR, **changed}).startswith(f"{WHERE}: {message}")


@pytest.mark.parametrize(
    "said",
    [
        {"label": False},
        {"label": 0},
        {"is_safe": False},
        {"unsafe": True},
        {"winner": "model_b"},
        {"helpfulness": 1, "correctness": 0, "coherence": 4, "complexity": 1, "verbosity": 1},
    ],
)
def test_responses_that_may_be_bad_are_not_imitated(said: dict[str, Any]) -> None:
    row = {"prompt": "q", "completion": "a", **said}
    message = told(parse_sft, row)
    assert message.startswith(f"{WHERE}: the response may be none to imitate, since ") and next(iter(said)) in message
    assert parse_prompt(row, WHERE).reference is None  # nor are they answers to compare with
    assert parse_prompt({**row, "reference": "g"}, WHERE).reference == "g"
    assert 'field "label" is ' in told(parse_sft, {**row, "label": "false"})


def test_chosen_is_no_demonstration_where_the_label_contradicts_it() -> None:
    for said in ({"margin": -1}, {"tie": "true"}, {"p_chosen": float("nan")}, {"label": False}):
        told(parse_sft, {**PAIR, **said})
    assert "label" not in parse_sft({**PAIR, "label": True}, WHERE).unused


@pytest.mark.parametrize(
    ("said", "better"),
    [
        ({}, True),
        ({"p_chosen": 0.6}, True),
        ({"chosen_score": 2, "rejected_score": 1}, True),
        ({"tie": True}, False),
        ({"rejected": "a"}, False),
        ({"p_chosen": 0.5}, False),
        ({"p_chosen": 0.2}, False),
        ({"meta": {"votes": [1, 3, 0], "pos": 1}}, False),
    ],
)
def test_chosen_of_a_pair_without_a_better_response_is_marked(said: dict[str, Any], better: bool) -> None:
    assert parse_sft({**PAIR, **said}, WHERE).better is better


@pytest.mark.parametrize("keys", [("response_a", "response_b"), ("output_1", "output_2"), ("response_0", "response_1")])
def test_pairs_of_other_names_are_told_what_to_write(keys: tuple[str, str]) -> None:
    row = {"input": "q", **dict(zip(keys, "ab", strict=True)), "label": 1}
    for parse, first in ((parse_preference, "chosen"), (parse_sft, "prompt")):
        message = told(parse, row)
        assert message.startswith(f'{WHERE}: field "{first}" is missing')
        assert f'of "{keys[0]}" and "{keys[1]}", write the better one as "chosen"' in message
    assert parse_prompt({"prompt": "q", **row}, WHERE).prompt == (Turn("user", "q"),)


def test_numbers_of_both_responses() -> None:
    given = {**PAIR, "score_chosen": 3, "score_rejected": -1, "win_chosen": 0.4, "win_rejected": 0.6}
    record = parse_preference(given, WHERE)
    assert (record.scores, record.wins) == ((3.0, -1.0), (0.4, 0.6))
    alone = parse_preference({**PAIR, "score_chosen": 3, "win_rejected": 0.6}, WHERE)
    assert (alone.scores, alone.wins) == (None, None)


@pytest.mark.parametrize(
    ("given", "expected"), [(1.0, "1"), (2.5, "2.5"), (10**30, str(10**30)), ("", WHERE), (0, "0")]
)
def test_ids(given: Any, expected: str) -> None:
    assert parse_preference({**PAIR, "id": given}, WHERE).id == expected


KEYS = (
    "prompt messages chosen rejected response completion reference tie p_chosen slot id source meta system label "
    "conversations instruction input history output output_1 output_2 preference tools margin score_chosen is_safe "
    "score_rejected win_chosen win_rejected"
).split()
TEXTS = ["", "q", TRANSCRIPT, TRANSCRIPT + "a", "Human: ", "Assistant:", "\ud800", "[INST]", "a\0\nb"]
SCALARS = [None, True, False, 0, 1, 2.5, -1, float("nan"), float("inf"), 10**400, 0.3]


def anything(rng: random.Random, depth: int = 0) -> Any:
    if depth > 2 or rng.random() < 0.5:
        return rng.choice(TEXTS + SCALARS)
    if rng.random() < 0.5:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    names = ("role", "content", "from", "value", "type", "text", "tool_calls", "weight", "votes", "pos", "p_chosen")
    return {rng.choice(names): anything(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def test_any_row_gives_a_record_or_one_line() -> None:
    """`--skip_invalid` can leave out a row only where its fault is a `UserError`."""
    rng, read = random.Random(0), 0
    for _ in range(1000):
        row = {**PAIR, **{key: anything(rng) for key in rng.sample(KEYS, rng.randint(0, 4))}}
        for parse in (parse_preference, parse_sft, parse_prompt):
            try:
                record = parse(row, WHERE)
                assert record.prompt[-1].role == "user" and all(isinstance(t.content, str) for t in record.prompt)
                read += 1
            except UserError as error:
                assert str(error).startswith(f"{WHERE}: ") and "\n" not in str(error) and len(str(error)) < 400
    assert 150 < read < 2000


@pytest.mark.skipif(not os.environ.get("PRL_DATA_DIR"), reason="PRL_DATA_DIR is not set")
def test_every_shared_file_parses() -> None:
    files = sorted(Path(os.environ["PRL_DATA_DIR"]).glob("*.jsonl.gz"))
    assert files
    pairs, soft, slots = 0, 0, 0
    for path in files:
        for i, (where, row) in enumerate(JsonLines(path)):
            if i < 50 or path.name.startswith("prompts"):
                record = parse_prompt(row, where)
                assert record.prompt[-1].role == "user" and record.unused == ()
            if "chosen" in row:
                record = parse_preference(row, where)
                assert record.tie == row.get("tie", False) and record.unused == ()
                pairs, soft, slots = pairs + 1, soft + (record.p_chosen is not None), slots + (record.slot is not None)
            elif "response" in row:
                record = parse_sft(row, where)
                assert record.response == row["response"] and record.unused == ()
    assert pairs > 20_000 and soft > 13_000 and slots > 10_000


@pytest.mark.skipif(not os.environ.get("PRL_DATA_DIR"), reason="PRL_DATA_DIR is not set")
@pytest.mark.parametrize(("name", "agree"), [("ukp_convarg1.test", 0.9), ("pandalm_test.test", 1.0)])
def test_votes_belong_to_the_slots(name: str, agree: float) -> None:
    """Most annotators voted for the chosen response: reading the slots the wrong way round would tell the opposite."""
    path = Path(os.environ["PRL_DATA_DIR"]) / f"{name}.jsonl.gz"
    shares = [r.p_chosen for r in (parse_preference(row, where) for where, row in JsonLines(path)) if not r.tie]
    assert len(shares) > 500 and None not in shares
    assert sum(share >= 0.5 for share in shares if share is not None) >= agree * len(shares)
