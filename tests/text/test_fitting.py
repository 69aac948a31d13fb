"""Prompts that are too long: contents are cut, what the template writes around them is not."""

import pytest
from chat_families import FAMILIES, write_tokenizer

from prl_jax.data.records import SFTRecord
from prl_jax.data.rows import encode_sft
from prl_jax.errors import UserError
from prl_jax.text.chat import Prompt, Turn, encode_conversation, encode_prompt, fit_prompt, fit_turns
from prl_jax.text.huggingface import HFTokenizer
from prl_jax.text.tokenizer import ByteTokenizer, Tokenizer

BYTES = ByteTokenizer()
CONVERSATION = (
    Turn("user", "first question " * 3),
    Turn("assistant", "first answer"),
    Turn("user", "second question"),
)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    return HFTokenizer(write_tokenizer(tmp_path_factory.mktemp("llama3"), FAMILIES["llama3"]))


@pytest.fixture(params=["bytes", "llama3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return BYTES if request.param == "bytes" else request.getfixturevalue("llama3")


def structure(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens that the template writes: those around empty contents."""
    return encode_prompt(tokenizer, tuple(turn._replace(content="") for turn in prompt))


def test_a_long_system_turn_is_cut_and_its_frame_kept(llama3):
    prompt = (Turn("system", "be brief and kind " * 20), Turn("user", "hi"))
    ids, cut = fit_prompt(llama3, prompt, 40)
    words = llama3._hf.convert_ids_to_tokens(ids)
    assert cut and 36 <= len(ids) <= 40
    assert words[:3] == ["<|begin_of_text|>", "<|start_header_id|>", "system"]
    assert words[-10:-4] == ["<|start_header_id|>", "user", "<|end_header_id|>", "ĊĊ", "hi", "<|eot_id|>"]
    assert words[-4:] == ["<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ"]


def test_the_oldest_contents_go_first_and_every_length_keeps_the_frame(tokenizer):
    frame, whole = len(structure(tokenizer, CONVERSATION)), len(encode_prompt(tokenizer, CONVERSATION))
    for length in range(frame, whole + 1):
        turns, cut = fit_turns(tokenizer, CONVERSATION, length)
        ids = encode_prompt(tokenizer, turns)
        assert len(ids) <= length and [turn.role for turn in turns] == [turn.role for turn in CONVERSATION]
        assert (ids, cut > 0) == fit_prompt(tokenizer, CONVERSATION, length)
        assert turns[cut:] == CONVERSATION[cut:]
        for i, (kept, turn) in enumerate(zip(turns, CONVERSATION, strict=True)):
            assert turn.content.endswith(kept.content)
            assert kept.content == "" or i >= cut - 1
    assert cut == 0
    exact = fit_prompt(BYTES, CONVERSATION, 60)[0]
    assert len(exact) == 60  # a byte is a token: not one more is cut than has to be


def test_where_the_frame_alone_is_too_long_the_oldest_exchanges_go(tokenizer):
    prompt = (Turn("system", "be kind"), *CONVERSATION)
    short = (prompt[0], prompt[-1])
    turns, cut = fit_turns(tokenizer, prompt, len(structure(tokenizer, short)))
    assert [turn.role for turn in turns] == ["system", "user"] and cut == len(turns)
    assert [turn.role for turn in fit_turns(tokenizer, prompt, len(structure(tokenizer, short)) - 1)[0]] == ["user"]
    least = len(structure(tokenizer, prompt[-1:]))
    with pytest.raises(UserError, match=f"takes {least} tokens .* more than the {least - 1}"):
        fit_turns(tokenizer, prompt, least - 1)


def test_cuts_inside_a_character_leave_whole_ones():
    for length in range(8, 20):
        (turn,), _ = fit_turns(BYTES, (Turn("user", "aä€𝄞bä€𝄞"),), length)
        assert "aä€𝄞bä€𝄞".endswith(turn.content)


def test_an_answer_that_was_cut_does_not_train():
    record = SFTRecord("id", CONVERSATION, "an answer")
    whole = len(encode_prompt(BYTES, CONVERSATION))
    for max_prompt in (whole, 30):
        row, cut = encode_sft(BYTES, record, max_prompt=max_prompt, max_response=12, train_on="all")
        taught = bytes(i for i in row.targets[row.mask].tolist() if i < 256)
        assert (taught, cut) == ((b"first answeran answer", False) if max_prompt == whole else (b"an answer", True))
    turns = (*CONVERSATION, Turn("assistant", "an answer"))
    ids, mask = encode_conversation(BYTES, turns, context=2)
    assert bytes(i for i, counts in zip(ids, mask, strict=True) if counts and i < 256) == b"an answer"


def test_a_character_of_several_tokens_goes_as_one_and_takes_nothing_else_with_it():
    prompt = (Turn("user", "\U0001f642" + "a" * 100),)
    whole = len(encode_prompt(BYTES, prompt))
    for missing in (1, 2, 3, 4):
        assert fit_turns(BYTES, prompt, whole - missing) == ((Turn("user", "a" * 100),), 1)
    assert fit_turns(BYTES, prompt, whole - 5) == ((Turn("user", "a" * 99),), 1)


def test_of_a_very_long_prompt_only_the_end_is_tokenized(tokenizer, monkeypatch):
    prompt = (Turn("system", "be kind"), Turn("user", "first " * 5000), Turn("user", "word " * 20_000 + "the end"))
    seen, encode = [], type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text: seen.append(len(text)) or encode(self, text))
    turns, cut = fit_turns(tokenizer, prompt, 100)
    assert sum(seen) < 20_000 and max(seen) <= 800
    assert cut == 3 and [turn.content for turn in turns[:2]] == ["", ""]
    assert prompt[2].content.endswith(turns[2].content) and turns[2].content.endswith("word the end")
    assert 90 < len(encode_prompt(tokenizer, turns)) <= 100
    assert fit_prompt(tokenizer, prompt, 100) == (encode_prompt(tokenizer, turns), True)
    # Tokens of many characters: a prompt that has more of these than expected, and fits, is whole.
    many = (Turn("user", "word " * 60),)
    monkeypatch.setattr("prl_jax.text.chat._FEW_CHARACTERS", 1)
    assert fit_turns(tokenizer, many, 400) == (many, 0)
