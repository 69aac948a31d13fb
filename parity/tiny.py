"""Models and a tokenizer of a few thousand parameters, made on the spot, and comparison of arrays."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

VOCAB, PAD, EOS, STOP = 24, 0, 1, 2
WIDTH = 16


def tokenizer(pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, VOCAB)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")),
        pad_token="<eos>" if pad_is_eos else "<pad>",
        eos_token="<eos>",
        unk_token="w2",
        padding_side="left",
    )


def config(pad_is_eos: bool = False, **kwargs) -> LlamaConfig:
    """Weights larger than usual, so that log-probabilities, values and scores are far from constant."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=EOS if pad_is_eos else PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        tie_word_embeddings=False,
        **kwargs,
    )


def policy(seed: int, pad_is_eos: bool = False) -> LlamaForCausalLM:
    """A language model whose output bias makes responses end after a few tokens, and never draws `<pad>`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(pad_is_eos))
    head = torch.nn.Linear(WIDTH, VOCAB)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[PAD] = -30.0
        head.bias[EOS] = head.bias[STOP] = 1.0
    model.lm_head = head
    return model


def scalar(seed: int, pad_is_eos: bool = False) -> LlamaForSequenceClassification:
    """A reward or value model: the same decoder with a scalar head."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config(pad_is_eos, num_labels=1))


def to_jax(x: torch.Tensor) -> Array:
    """A copy: trainers and optimizers change tensors in place. bfloat16, which numpy lacks, becomes float32."""
    return jnp.array((x.float() if x.dtype == torch.bfloat16 else x).detach().numpy())


def assert_close(actual: Array, expected: Array, rtol: float = 1e-5, scale: float | None = None) -> None:
    """Equal to float32 rounding: `rtol` of each element, and a fifth of that of `scale`, by default the largest one."""
    expected = np.asarray(expected)
    if scale is None:
        scale = float(np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=0.2 * rtol * scale)


def assert_differs(actual: Array, expected: Array, rtol: float = 1e-2) -> None:
    """Further apart somewhere than `rtol` of the largest element."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    gap, scale = np.abs(actual - expected).max(), np.abs(expected).max()
    assert gap > rtol * scale, f"expected a difference above {rtol * scale}, found {gap}"
