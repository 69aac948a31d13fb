"""Keys of a row: none is left unread without its name."""

from typing import Any

import pytest

from prl_jax.data.columns import unused_keys
from prl_jax.data.parsers import PARSERS, parse_preference, parse_prompt, parse_sft
from prl_jax.errors import UserError

PAIR: dict[str, Any] = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("choosen", "chosen"), ("chose", "chosen"), ("Chosen", "chosen"), ("regected", "rejected"),
        ("promt", "prompt"), ("propmt", "prompt"), ("response ", "response"),
        ("responce", "response"), ("complition", "completion"),
        ("message", "messages"), ("conversation", "conversations"), ("refrence", "reference"),
        ("tei", "tie"), ("tye", "tie"), ("ties", "tie"), ("tied", "tie"), ("is_tie", "tie"), ("Tie", "tie"),
        ("p_chossen", "p_chosen"), ("pChosen", "p_chosen"), ("p-chosen", "p_chosen"), ("p_choosen", "p_chosen"),
        ("sytem", "system"), ("systemPrompt", "system_prompt"), ("lable", "label"), ("margins", "margin"),
        ("tols", "tools"), ("score_choosen", "score_chosen"), ("slots", "slot"),
    ],
)  # fmt: skip
def test_misspelt_keys_are_refused(key: str, meant: str) -> None:
    row = {**PAIR, key: 0.5}
    row.pop(meant, None)
    for parse in PARSERS.values():
        with pytest.raises(UserError) as caught:
            parse(row, "a.jsonl:3")
        assert str(caught.value).startswith(f'a.jsonl:3: unknown key "{key}" (expected "{meant}"?)')
    assert parse_preference({**PAIR, key: None}, "") == parse_preference(PAIR, "")  # it says nothing


def test_misspelt_keys_of_meta() -> None:
    with pytest.raises(UserError, match=r'unknown key "meta\.p_choosen" \(expected "meta\.p_chosen"\?\)'):
        parse_preference({**PAIR, "meta": {"p_choosen": 0.7}}, "a.jsonl:3")
    assert parse_preference({**PAIR, "meta": {"choosen": 1, "tei": 2}}, "").meta == {"choosen": 1, "tei": 2}


@pytest.mark.parametrize(
    "key",
    "time title tier type site date model selected expected responses prompts completions references language tag "
    "topic user uid split score rank subset level slate choices inference timestamp".split(),
)
def test_other_words_are_named_only(key: str) -> None:
    for what, parse in PARSERS.items():
        assert parse({**PAIR, key: 1}, "").unused == unused_keys({**PAIR, key: 1}, what) == (key,)


def test_what_is_read_or_says_nothing_is_not_named() -> None:
    row = {**PAIR, "id": 1, "source": "s", "meta": {"x": 1}, "label_source": "human", "tie": False, "slot": 1}
    empty = {"tools": [], "images": None, "comment": "", "extra": {}}
    for parse in PARSERS.values():
        assert parse({**row, **empty}, "").unused == ()


def test_strengths_are_named_where_they_could_count() -> None:
    row = {**PAIR, "margin": 2, "score_chosen": 9, "score_rejected": 7}
    assert parse_preference(row, "").unused == ("margin",)
    assert parse_sft(row, "").unused == parse_prompt(row, "").unused == ()


def test_a_misspelling_beside_the_key_itself_is_named_only() -> None:
    assert parse_preference({**PAIR, "chosen_": "x", "slot": 1, "slots": 2}, "").unused == ("chosen_", "slots")


def test_keys_of_turns() -> None:
    turns = [{"role": "user", "content": "q", "name": "ann", "tool_calls": None}]
    assert parse_preference({**PAIR, "prompt": turns}, "").unused == ("prompt[].name",)
