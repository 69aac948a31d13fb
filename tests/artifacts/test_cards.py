"""What a model directory says of its model: lengths, ends, tokenizers, template arguments."""

import json
from pathlib import Path
from typing import Any

import chat_families
import hf_checkpoints
import pytest
from fakes import one_device
from safetensors.numpy import load_file, save_file

from prl_jax.artifacts.cards import (
    EXPORT_FILE,
    Defaults,
    ModelCard,
    check_lengths,
    command_length,
    export_card,
    generation_lengths,
    read_card,
    stop_ids,
)
from prl_jax.artifacts.models import load_model, model_tokenizer
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.models.hf.config import context_length
from prl_jax.models.hf.save import _token_ids
from prl_jax.stages import config as c
from prl_jax.text.chat import Turn, encode_prompt
from prl_jax.text.huggingface import HFTokenizer
from prl_jax.text.tokenizer import check_rows, unused_ids


def write(folder: Path, family: str = "qwen2.5", case: str = "qwen2", rows: int = 0, **config: Any) -> Path:
    """A tiny checkpoint whose embedding has `rows` rows more than its tokenizer needs."""
    chat_families.write_tokenizer(folder, chat_families.FAMILIES[family])
    size = HFTokenizer(folder).vocab_size + rows
    return hf_checkpoints.write(folder, {**hf_checkpoints.CASES[case], "vocab_size": size, **config})


def test_contexts_count_the_scaling_of_rope():
    cases, yarn = hf_checkpoints.CASES, {"rope_type": "yarn", "factor": 4.0}
    expected = {"llama": 64, "llama-linear": 192, "llama-llama3": 64, "llama-yarn": 1024, "gemma3-linear": 64}
    assert {name: context_length(cases[name], "here") for name in expected} == expected
    assert context_length({**cases["llama"], "rope_scaling": yarn}, "here") == 256
    assert context_length({k: v for k, v in cases["llama"].items() if k != "max_position_embeddings"}, "here") == 2048


def test_lengths_are_taken_as_they_are_given_or_refused(tmp_path):
    folder = write(tmp_path, max_position_embeddings=512)
    card = read_card(folder, Defaults(max_prompt=400, max_response=100))
    assert (card.max_prompt, card.max_response, card.context) == (400, 100, 512)
    check_lengths(card, "here")
    with pytest.raises(UserError, match="max_prompt=400 and max_response=200 take 600 tokens, .* holds 512"):
        check_lengths(read_card(folder, Defaults(max_prompt=400, max_response=200)), "here")
    for given, filled in (((0, 0), (256, 256)), ((0, 100), (412, 100)), ((400, 0), (400, 56))):
        card = read_card(folder, Defaults(*given))
        assert (card.max_prompt, card.max_response) == filled


def test_commands_use_the_model_s_own_context():
    card = ModelCard("policy", {}, 3000, 1024, context=4096)
    assert command_length(card) == 4096 and command_length(card, 100) == 100
    assert generation_lengths(card) == (3072, 1024)
    assert generation_lengths(card, max_new_tokens=200, max_length=1000) == (800, 200)
    with pytest.raises(UserError, match="max_length=5000 is more than the model's context of 4096"):
        command_length(card, 5000)
    for asked in (dict(max_new_tokens=4096), dict(max_new_tokens=100, max_length=100)):
        with pytest.raises(UserError, match="leaves no room for a prompt"):
            generation_lengths(card, **asked)
    scratch = ModelCard("policy", {}, 12, 6)
    assert generation_lengths(scratch) == (12, 6) and command_length(scratch) == 18


def test_every_token_that_ends_a_response_does(tmp_path):
    folder = write(tmp_path, eos_token_id=[7, 9])
    tokenizer = model_tokenizer(folder)
    assert stop_ids(read_card(folder), tokenizer) == (tokenizer.eos_id, 7, 9)
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": 11, "temperature": 0.6}))
    card = read_card(folder)
    assert card.stop_ids == (7, 9, 11) and card.generation == {"eos_token_id": 11, "temperature": 0.6}
    assert ModelCard("policy", {}, 1, 1, **card.origin).stop_ids == (7, 9, 11)
    for values, words in (
        ({"eos_token_id": "x"}, "eos_token_id="),
        ({"eos_token_id": [True]}, "eos_token_id="),
        ({"stop_strings": ["###"]}, "stop_strings=.*not supported"),
    ):
        generation.write_text(json.dumps(values))
        with pytest.raises(UserError, match=words):
            read_card(folder)
    generation.write_text("[" * 10_000)
    with pytest.raises(UserError, match="generation_config.json: .*nested more than"):
        read_card(folder)


def test_exported_ends_are_those_of_before_and_the_tokenizer_s(tmp_path):
    tokenizer = HFTokenizer(chat_families.write_tokenizer(tmp_path, chat_families.FAMILIES["qwen2.5"]))
    end = tokenizer.eos_id
    same = {"eos_token_id": [end, 7], "pad_token_id": 7}
    assert _token_ids({"eos_token_id": end}, tokenizer, same) == same
    assert _token_ids({"eos_token_id": 5}, tokenizer, {"eos_token_id": [9]})["eos_token_id"] == [9, end, 5]
    assert _token_ids({"eos_token_id": end}, tokenizer, {})["eos_token_id"] == end
    assert _token_ids({"eos_token_id": 5}, None, {}) == {"eos_token_id": 5}


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path):
    for reward in (False, True):
        folder = write(tmp_path / str(reward), rows=-4)
        if reward:
            config = hf_checkpoints.reward_model(json.loads((folder / "config.json").read_text()))
            hf_checkpoints.write(folder, config)
        size = HFTokenizer(folder).vocab_size
        for load in (model_tokenizer, lambda path: load_model(path, one_device())):
            with pytest.raises(UserError, match=f"tokenizer has {size} ids, .* only {size - 4} rows"):
                load(folder)
    # A special token that nothing writes needs no row, as Gemma 3's for images.
    family = chat_families.FAMILIES["gemma"]
    more = family._replace(special=(*family.special, "<image>"))
    tokenizer = HFTokenizer(chat_families.write_tokenizer(tmp_path / "gemma", more))
    check_rows(tokenizer, tokenizer.vocab_size - 1, tmp_path)
    with pytest.raises(UserError, match="resize its embedding"):
        check_rows(tokenizer, tokenizer.vocab_size - 2, tmp_path)


def test_rows_of_no_token_are_out_of_the_distribution(tmp_path):
    folder = write(tmp_path, rows=30)
    card, model, tokenizer = load_model(folder, one_device())
    size = tokenizer.vocab_size
    assert model.config.unused == card.config.unused == ((size, size + 30),) == unused_ids(tokenizer, size + 30)
    assert unused_ids(tokenizer, size) == ()


def adapter(folder: Path, base: Path) -> Path:
    folder.mkdir()
    config = json.loads((Path(hf_checkpoints.__file__).parent / "models/hf/peft_0_21_2.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for i in range(3):
        for name, width in {"q_proj": 32, "v_proj": 16}.items():
            key = f"base_model.model.model.layers.{i}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = 0.01 * hf_checkpoints._values("a", (4, 32), 0.0)
            tensors[f"{key}.lora_B.weight"] = 0.01 * hf_checkpoints._values("b", (width, 4), 0.0)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
OWN = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"


def test_an_adapter_s_own_tokenizer_and_template_are_used(tmp_path):
    base, hi = write(tmp_path / "base", "base", "llama", rows=8), (Turn("user", "hi"),)
    folder = adapter(tmp_path / "adapter", base)
    assert encode_prompt(model_tokenizer(folder), hi) == encode_prompt(model_tokenizer(base), hi)
    (folder / "chat_template.jinja").write_text(OWN)
    alone = model_tokenizer(folder)
    assert encode_prompt(alone, hi) == alone._encode_text("[user]hi</s>[assistant]")
    # With tokens of its own, which have rows in the base's embedding.
    family = chat_families.FAMILIES["base"]
    chat_families.write_tokenizer(folder, family._replace(template=OWN, special=(*family.special, "<x>")))
    _, model, tokenizer = load_model(folder, one_device())
    assert encode_prompt(tokenizer, hi) == tokenizer._encode_text("[user]hi</s>[assistant]")
    size = model.config.vocab_size
    assert model.config.unused == ((size - 7, size),) and model_tokenizer(base).vocab_size == size - 8


def test_an_adapter_s_own_ends_of_responses_count(tmp_path):
    base = write(tmp_path / "base", "base", "llama", eos_token_id=7)
    folder = adapter(tmp_path / "adapter", base)
    assert read_card(folder).stop_ids == (7,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    card = load_model(folder, one_device())[0]
    assert card.stop_ids == (7, 9) and card.generation == {"eos_token_id": [9, 7]}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "x"}))
    with pytest.raises(UserError, match="adapter/generation_config.json: eos_token_id="):
        read_card(folder)


def test_an_empty_template_is_not_the_default_one(tmp_path):
    base = write(tmp_path / "base", "base", "llama")
    folder = adapter(tmp_path / "adapter", base)
    for path in (folder, base):
        for content, words in ((b" \n", "the chat template is empty"), (b"\xff", "read")):
            (path / "chat_template.jinja").write_bytes(content)
            with pytest.raises(UserError, match=words) as caught:
                model_tokenizer(path)
            assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
        (path / "chat_template.jinja").unlink()


def test_an_adapter_with_the_tokenizer_of_another_model_is_refused(tmp_path):
    base = write(tmp_path / "base", "base", "llama")
    folder, family = adapter(tmp_path / "adapter", base), chat_families.FAMILIES["base"]
    more = [f"<x{i}>" for i in range(5)]
    chat_families.write_tokenizer(folder, family._replace(added=more))
    size = model_tokenizer(base).vocab_size
    with pytest.raises(UserError, match=f"tokenizer has {size + 5} ids, .* only {size} rows"):
        model_tokenizer(folder)
    chat_families.write_tokenizer(folder, chat_families.FAMILIES["gemma"])
    with pytest.raises(UserError, match="gives [0-9]+ tokens other ids than that of .*base"):
        model_tokenizer(folder)


def test_template_arguments_are_kept_in_card_and_export(tmp_path):
    folder, hi = write(tmp_path, "qwen3", "qwen3"), (Turn("user", "hi"),)
    plain, silent = Defaults(), Defaults(template_args={"enable_thinking": False})
    card = read_card(folder, silent)
    assert card.template_args == card.origin["template_args"] == {"enable_thinking": False}
    opened = encode_prompt(model_tokenizer(folder, silent), hi)
    assert len(opened) > len(encode_prompt(model_tokenizer(folder, plain), hi))
    (folder / EXPORT_FILE).write_text(json.dumps(export_card(card)))
    assert encode_prompt(model_tokenizer(folder, plain), hi) == opened
    loud = Defaults(template_args={"enable_thinking": True})
    assert len(encode_prompt(model_tokenizer(folder, loud), hi)) < len(opened)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"kind": "oracle"}, "kind='oracle', expected one of policy"),
        ({"max_prompt": -4}, "max_prompt=-4, expected a number of tokens"),
        ({"max_response": True}, "max_response=True, expected"),
        ({"kind": "generative_judge"}, "a template belongs to a generative_judge"),
        ({"template": {"name": "compact-v1", "verdicts": ["Y", "N"]}}, "a template belongs to a generative_judge"),
        ({"kind": "generative_judge", "template": {"name": "x", "verdicts": ["Y", "N"]}}, 'unknown judge template "x"'),
        ({"kind": "generative_judge", "template": {"name": "compact-v1"}}, "verdicts"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_an_export_says_of_its_model_is_checked(tmp_path, said, words):
    folder = write(tmp_path)
    (folder / EXPORT_FILE).write_text(json.dumps({"kind": "policy", "max_prompt": 4, "max_response": 4, **said}))
    with pytest.raises(UserError, match=f"{EXPORT_FILE}: cannot be read .*{words}.*; delete it to use"):
        read_card(folder)


def test_weights_that_are_not_finite_are_refused_through_an_adapter_s_base(tmp_path):
    base = write(tmp_path / "base", "base", "llama")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(UserError, match="1 weights are not finite"):
        load_model(adapter(tmp_path / "adapter", base), one_device())


@pytest.mark.parametrize(
    ("stage", "values", "words"),
    [
        ("sft", dict(max_prompt=400, max_response=113), ("sft.max_prompt=400", "take 513 tokens", "holds 512")),
        ("sft", dict(max_prompt=400, max_response=112), ()),
        ("generative", dict(max_length=600, template="question-v1"), ("generative.max_length=600", "holds 512")),
        ("online", dict(baseline=dict(sees_opponent=True)), ("sees_opponent", "take 708 tokens", "holds 512")),
        ("online", {}, ()),
        ("online", dict(huggingface=600), ("online.policy", "max_prompt=600", "holds 512")),
    ],
)
def test_configured_lengths_are_held_against_the_context(tmp_path, stage, values, words):
    model = str(write(tmp_path, max_position_embeddings=512))
    lengths = dict(max_prompt=values.pop("huggingface", 300), max_response=200)
    start = {"policy": model, "judge": "gold"} if stage == "online" else {"init_from": model}
    stages = {stage: getattr(c, stage)(**start, **values)}
    if stage == "online":
        stages = {"anchors": c.anchors(choice="reference"), **stages}
    config = c.build(stages, huggingface=lengths)
    if not words:
        check_config(config)
        return
    with pytest.raises(UserError) as caught:
        check_config(config)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_weights_are_held_against_their_index_before_a_run(tmp_path):
    model = write(tmp_path)
    config = c.build({"sft": c.sft(init_from=str(model))})
    check_config(config)
    single, shard = model / "model.safetensors", "model-00001-of-00002.safetensors"
    names = {name: shard.replace("00001", f"0000{1 + i % 2}") for i, name in enumerate(load_file(single))}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    single.rename(model / shard)
    with pytest.raises(UserError, match="sft.init_from: .*index.json: names files that are not there"):
        check_config(config)
    (model / "model.safetensors.index.json").unlink()  # config.json is enough for a plan
    check_config(config)
