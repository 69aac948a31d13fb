"""Export: the bytes that came in go out, in a directory that appears whole or not at all."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, make_decoder, make_scalar_model
from hf_checkpoints import CASES, reward_model, write
from safetensors import safe_open

from prl_jax.errors import UserError
from prl_jax.models import Decoder, LoraConfig, ScalarModel, from_hf, to_hf
from prl_jax.models.hf import decoder_config, export_config, read_config
from prl_jax.models.hf.files import Tensors
from prl_jax.text.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer
from prl_jax.tree import flatten


def contents(folder):
    """Name -> dtype, shape and bytes of every tensor."""
    with Tensors(folder) as tensors:
        return {name: (t.dtype, t.shape, tensors.read(name).tobytes()) for name, t in tensors.index.items()}


def refused(model, path, *words, **options):
    with pytest.raises(UserError) as error:
        to_hf(model, path, **options)
    message = str(error.value)
    assert "\n" not in message and not [word for word in words if word not in message], message
    assert not [entry for entry in os.listdir(path.parent) if entry.endswith(".tmp")]


@pytest.mark.parametrize(
    "case, dtype, head",
    [
        *((case, dtype, "language") for case in CASES for dtype in ("float32", "bfloat16")),
        *((case, "bfloat16", "reward") for case in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")),
    ],
)
def test_import_then_export_is_bit_exact(case, dtype, head, tmp_path):
    config = CASES[case] if head == "language" else reward_model(CASES[case])
    source, out = write(tmp_path / "source", config, dtype), tmp_path / "out"
    model = from_hf(source)
    assert isinstance(model, Decoder if head == "language" else ScalarModel)
    to_hf(model, out, source=read_config(source))
    assert contents(out) == contents(source) and len(contents(source)) > 20
    assert read_config(out) == read_config(source)


@pytest.mark.parametrize("case", ["llama-biases", "mistral", "qwen2-window", "qwen3", "gemma2", "gemma3"])
def test_an_export_needs_no_source(case, tmp_path):
    source = write(tmp_path / "source", CASES[case])
    to_hf(from_hf(source), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    assert read_config(tmp_path / "out")["model_type"] == CASES[case]["model_type"]
    assert from_hf(tmp_path / "out").config == from_hf(source).config


def test_files_say_their_layout_and_stay_below_the_limit(tmp_path):
    """In shards, of which each tensor is in exactly one; a tensor above the limit has a file of its own."""
    model = make_decoder(tied_embeddings=False)
    to_hf(model, tmp_path / "one")
    assert sorted(os.listdir(tmp_path / "one")) == ["config.json", "generation_config.json", "model.safetensors"]
    limit = 1600
    to_hf(model, tmp_path / "many", max_shard_bytes=limit)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(model))
    found = {}
    for file in files:
        with safe_open(tmp_path / "many" / file, "np") as shard:
            assert shard.metadata() == {"format": "pt"}
            arrays = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
            assert sum(array.nbytes for array in arrays.values()) <= limit or len(arrays) == 1
            assert not arrays.keys() & found.keys() and {index["weight_map"][name] for name in arrays} == {file}
            found |= arrays
    assert max(array.nbytes for array in found.values()) > limit and found.keys() == index["weight_map"].keys()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    for name, array in flatten(from_hf(tmp_path / "many")).items():
        np.testing.assert_array_equal(array, flatten(model)[name])


def test_the_head_of_a_reward_model_loses_no_digit(tmp_path):
    """It is float32: written in the dtype of its trunk only where that holds the same numbers."""
    model = make_scalar_model(param_dtype="bfloat16", tied_embeddings=False)
    assert model.scalar.weight[...].dtype == jnp.float32
    to_hf(model, tmp_path / "wide")
    wide = contents(tmp_path / "wide")
    assert wide["score.weight"][:2] == ("F32", (1, 16)) and wide["model.norm.weight"][0] == "BF16"
    assert "lm_head.weight" not in wide
    again = from_hf(tmp_path / "wide")
    assert again.config.param_dtype == "bfloat16"
    np.testing.assert_array_equal(again.scalar.weight[...], model.scalar.weight[...])
    model.scalar.weight[...] = jnp.full((16,), 0.5, jnp.float32)
    to_hf(model, tmp_path / "narrow")
    assert contents(tmp_path / "narrow")["score.weight"][0] == "BF16"


def test_what_has_no_place_in_a_checkpoint_is_refused(tmp_path):
    refused(make_decoder(lora=LoraConfig(rank=2)), tmp_path / "x", "adapters", "merge")
    biased = make_scalar_model()
    decoder = biased.decoder
    critic = jax.eval_shape(lambda: ScalarModel(Decoder(decoder.config, key=jax.random.key(0)), bias=1.0))
    critic = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), critic)
    refused(critic, tmp_path / "x", "bias", "ForSequenceClassification")
    refused(make_decoder(post_norms=True), tmp_path / "x", "no family", "post_norms=True")
    source = export_config(decoder_config(CASES["llama"], "here"), reward_model=False)
    refused(decoder, tmp_path / "x", "source", "vocab_size=32 (not 40)", source=source)
    assert os.listdir(tmp_path) == []


def test_the_directory_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    model, out = make_decoder(layers=1), tmp_path / "deep" / "out"
    to_hf(model, out)
    refused(model, out, str(out), "is there already")
    file = tmp_path / "file"
    file.write_text("")
    refused(model, file, "is there already")
    empty = tmp_path / "empty"
    empty.mkdir()
    to_hf(model, empty)
    assert contents(empty) == contents(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prl_jax.models.hf.save.save_file", full)
    refused(model, tmp_path / "other", str(tmp_path / "other"), "No space left on device")
    assert sorted(os.listdir(tmp_path)) == ["deep", "empty", "file"]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_tokenizer_is_written_beside_and_its_ids_into_both_configs(kind, tmp_path):
    tokenizer = ByteTokenizer() if kind == "bytes" else BPETokenizer.train(["some text, some more"] * 3, 280)
    model = make_decoder(layers=1, vocab_size=tokenizer.vocab_size)
    to_hf(model, tmp_path / "out", tokenizer=tokenizer)
    ids = dict(eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == ids
    assert ids.items() <= read_config(tmp_path / "out").items()
    again = load_tokenizer(tmp_path / "out")
    assert again.encode("some text") == tokenizer.encode("some text") and again.eos_id == tokenizer.eos_id
    # The tokens that end the source's sequences still end sequences.
    source = {**read_config(tmp_path / "out"), "eos_token_id": [7, tokenizer.eos_id], "bos_token_id": 5}
    to_hf(model, tmp_path / "again", tokenizer=tokenizer, source=source)
    generation = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert generation == {**ids, "eos_token_id": [tokenizer.eos_id, 7], "bos_token_id": 5}
    assert read_config(tmp_path / "again") == source
    # What the source leaves open is filled in: transformers finds a reward model's last token by its pad token.
    to_hf(model, tmp_path / "open", tokenizer=tokenizer, source={**source, "pad_token_id": None})
    assert read_config(tmp_path / "open")["pad_token_id"] == tokenizer.pad_id
    # An exported tokenizer is a Hugging Face one, and goes out again.
    to_hf(model, tmp_path / "third", tokenizer=again)
    assert load_tokenizer(tmp_path / "third").encode("some text") == tokenizer.encode("some text")


def test_tokenizers_that_do_not_fit_are_refused(tmp_path):
    refused(make_decoder(layers=1), tmp_path / "x", "LetterTokenizer", tokenizer=LetterTokenizer())
    refused(make_decoder(layers=1), tmp_path / "x", "272 ids", "only 32", tokenizer=ByteTokenizer())


def test_dtype_and_heads_follow_the_model_not_the_source(tmp_path):
    source = {**CASES["llama"], "torch_dtype": "float16", "dtype": "float16"}
    model = from_hf(write(tmp_path / "source", source, "bfloat16"), dtype="float32")
    to_hf(model, tmp_path / "out", source=source)
    assert read_config(tmp_path / "out") == {**source, "torch_dtype": "float32", "dtype": "float32"}
    judge = make_scalar_model()
    config = dataclasses.replace(judge.config, tied_embeddings=False)  # of no matter without an output embedding
    to_hf(judge, tmp_path / "judge", source=export_config(config, reward_model=False))
    written = read_config(tmp_path / "judge")
    assert written["architectures"] == ["LlamaForSequenceClassification"] and written["id2label"] == {"0": "LABEL_0"}
