"""Chat templates are programs: bounds of what they may do, arguments that they are given, openings that they forget."""

import json
import multiprocessing
import signal
import threading
import time
from pathlib import Path

import pytest
from chat_families import FAMILIES, write_tokenizer

from prl_jax.errors import UserError
from prl_jax.text import templates
from prl_jax.text.chat import Turn, encode_conversation, encode_prompt, encode_response
from prl_jax.text.huggingface import HFTokenizer
from prl_jax.text.templates import ChatTemplate
from prl_jax.text.tokenizer import ByteTokenizer, load_tokenizer

HI = (Turn("user", "hi"),)
MESSAGES = [turn._asdict() for turn in HI]


def with_template(folder: Path, source: str, family: str = "llama3") -> Path:
    return write_tokenizer(folder / "model", FAMILIES[family]._replace(template=source))


def render(source: str, **arguments: object) -> str:
    return ChatTemplate(source, "where", {"bos_token": "<s>"}, arguments).render(MESSAGES, generate=True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{{ '%10000000000d' | format(1) }}", "memory"),
        (
            "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "memory",
        ),
        ("{% for i in range(99999) %}{{ 'a' * 10**5 }}{% endfor %}", "more than 16777216 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too deeply"),
        ("{% if a %}" * 5000 + "{% endif %}" * 5000, "too deeply"),
        ("{{ range(10**10) | list }}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "Expected an expression"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),  # another prompt each time
        ("{{ raise_exception('no system turns') }}", "no system turns"),
    ],
)
def test_what_a_template_may_not_do_is_refused_in_one_line(source, reason):
    with pytest.raises(UserError) as caught:
        render(source)
    assert str(caught.value).startswith("where: the chat template ") and reason in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert render("{{ messages[0].content }}") == "hi"  # the next one is served


def test_a_template_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(templates, "MOST_SECONDS", 1)
    worker, start = templates._Worker(), time.process_time()
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    found = worker.ask({"template": loop, "values": {}, "most": 10})
    assert "more than 1 seconds" in found["error"] and time.process_time() - start < 1
    assert worker.ask({"template": "{{ 1 + 1 }}", "values": {}, "most": 10}) == {"text": "2"}


def test_signals_to_all_processes_of_a_run_are_for_the_one_that_asks():
    """Schedulers send SIGTERM to each of them, and the run has a step to finish."""
    worker, request = templates._Worker(), {"template": "{{ 1 + 1 }}", "values": {}, "most": 10}
    worker.ask(request)
    for number in (signal.SIGTERM, signal.SIGINT):
        worker._process.send_signal(number)
        assert worker.ask(request) == {"text": "2"}
    worker._process.kill()
    worker._process.wait()
    assert worker.ask(request) == {"text": "2"}, "another one takes its place"
    worker._process.stdin.close()
    assert worker._process.wait(10) == 0  # it ends with who asks, however that ends


def test_threads_and_forks_get_answers_to_their_own_questions():
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        for _ in range(5):
            found[i] = render("{{ i }}" + " " * i, i=i).strip()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == {i: str(i) for i in range(4)}
    ours = templates._worker(multiprocessing.current_process().pid)
    assert templates._worker(-1) is not ours  # that of another process


def test_the_day_never_changes():
    assert render("{{ strftime_now('%d %b %Y') }}{{ date_string }}") == "26 Jul 202426 Jul 2024"


def test_arguments_reach_the_template_and_have_to_be_read_by_it(tmp_path):
    folder = write_tokenizer(tmp_path / "qwen3", FAMILIES["qwen3"])
    plain, silent = load_tokenizer(folder), load_tokenizer(folder, {"enable_thinking": False})
    opening = silent._hf.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    assert encode_prompt(silent, HI) == encode_prompt(plain, HI) + opening
    with pytest.raises(UserError, match="does not read 'enable_thinkin'; it reads enable_thinking"):
        load_tokenizer(folder, {"enable_thinkin": False})
    with pytest.raises(UserError, match="does not read 'messages'"):
        load_tokenizer(folder, {"messages": []})
    ByteTokenizer().save(tmp_path / "bytes")
    with pytest.raises(UserError, match="template takes none"):
        load_tokenizer(tmp_path / "bytes", {"enable_thinking": False})


NO_PROMPT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {{ m.content }}{{ eos_token }}"
    "{% else %}USER: {{ m.content }} {% endif %}{% endfor %}"
)


def test_an_opening_that_comes_only_with_an_answer_is_put_in(tmp_path):
    tokenizer = HFTokenizer(with_template(tmp_path, NO_PROMPT))
    text = "<|begin_of_text|>USER: hi ASSISTANT: "
    assert encode_prompt(tokenizer, HI) == tokenizer._encode_text(text)
    assert tokenizer.user_frame()[1] == tokenizer._encode_text(" ASSISTANT: ")
    # An earlier answer stands there as it was sampled.
    longer = (*HI, Turn("assistant", "hello"), Turn("user", "bye"))
    answered = encode_prompt(tokenizer, HI) + encode_response(tokenizer, "hello")
    assert encode_prompt(tokenizer, longer)[: len(answered)] == answered
    ids, mask = encode_conversation(tokenizer, longer[:2])
    assert ids == answered and sum(mask) == len(encode_response(tokenizer, "hello"))
    # A template that asks for the flag, and one whose answers have no opening at all, are taken at their word.
    asks = NO_PROMPT + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    assert (
        encode_prompt(HFTokenizer(with_template(tmp_path, asks)), HI)[-2:] == tokenizer._encode_text("ASSISTANT:")[-2:]
    )


def test_an_opening_that_cannot_be_told_is_refused(tmp_path):
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '|' if loop.last else '+' }}{% endfor %}"
    with pytest.raises(UserError, match="no generation prompt .* add a generation prompt to the template"):
        HFTokenizer(with_template(tmp_path, source))


def test_of_several_templates_the_default_is_used(tmp_path):
    folder = with_template(tmp_path, "unused")
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())

    def named(**sources: str) -> Path:
        listed = [{"name": name, "template": source} for name, source in sources.items()]
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": listed}))
        return folder

    plain = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    tokenizer = HFTokenizer(named(default=plain, tool_use="TOOLS"))
    assert encode_prompt(tokenizer, HI) == tokenizer._encode_text("<user>hi<a>")
    with pytest.raises(UserError, match='called rag, tool_use; none is "default"'):
        HFTokenizer(named(rag=plain, tool_use="TOOLS"))


def test_blocks_that_mark_what_the_assistant_writes_change_nothing(tmp_path):
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert render(source) == "hi"


def test_a_vocabulary_of_sentencepiece_names_the_package_that_it_needs(tmp_path, monkeypatch):
    from prl_jax.text import hf_files

    monkeypatch.setattr(hf_files, "_installed", lambda name: False)
    for start, package in ((b"\n\x0e\n\x05<unk>", "sentencepiece and protobuf"), (b"IQ== 0\nIg== 1\n", "tiktoken")):
        (tmp_path / "tokenizer.model").write_bytes(start)
        with pytest.raises(UserError, match=f"needs the package {package}: pip install"):
            HFTokenizer(tmp_path)


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def test_a_template_that_leaves_contents_out_is_refused(tmp_path):
    for source in ("hello", TURNS.replace("{{ m.content }}", "")):
        with pytest.raises(UserError, match="does not write what the user's turn says"):
            HFTokenizer(with_template(tmp_path, source, "qwen2.5"))
    source = TURNS.replace("in messages", "in messages if m.role != 'system'")
    tokenizer = HFTokenizer(with_template(tmp_path, source, "qwen2.5"))
    assert tokenizer.encode_chat(HI)
    with pytest.raises(UserError, match="leaves out what the system's turn says"):
        tokenizer.encode_chat((Turn("system", "brief"), *HI))
    assert HFTokenizer(with_template(tmp_path, TURNS, "qwen2.5")).encode_chat((Turn("system", "brief"), *HI))
