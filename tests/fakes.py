"""Small models, a small tokenizer and judges with known answers, shared by the tests."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prl_jax.judges import Judged
from prl_jax.methods import Method
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel
from prl_jax.sharding import make_mesh, tree_shardings
from prl_jax.text.chat import Prompt, Turn
from prl_jax.text.padding import pad_rows
from prl_jax.types import Rollout, TokenRows

VOCAB = 32


def decoder_config(**overrides: Any) -> DecoderConfig:
    fields = dict(vocab_size=VOCAB, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=24)
    return DecoderConfig.from_dict(fields, **overrides)


def fill(shapes: Any, seed: int) -> Any:
    """Arrays for abstract ones. A leaf depends on its name, shape and the seed, not on what else the model has.

    Values are large enough that every parameter matters: logits vary by about 2, norm scales differ from 1.
    """

    def leaf(path, shape):
        name = jax.tree_util.keystr(path)
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=shape.shape)
        values = 1.0 + 0.2 * values if "scale" in name else 0.5 * values
        return jnp.asarray(values, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_decoder(seed: int = 0, **overrides: Any) -> Decoder:
    """A decoder with random parameters, made without compiling its initialiser."""
    config = decoder_config(**overrides)
    return fill(jax.eval_shape(lambda: Decoder(config, key=jax.random.key(0))), seed)


def make_scalar_model(seed: int = 0, **overrides: Any) -> ScalarModel:
    config = decoder_config(**overrides)
    return fill(jax.eval_shape(lambda: ScalarModel(Decoder(config, key=jax.random.key(0)))), seed)


def with_pieces(method: Method, **slots: Any) -> Method:
    """The method with other pieces: by its slot a whole piece, or those fields of the present one that differ."""
    present = {slot: getattr(method, slot) for slot in slots}
    pieces = {k: dataclasses.replace(present[k], **x) if isinstance(x, dict) else x for k, x in slots.items()}
    return dataclasses.replace(method, **pieces)


def copy(tree: Any) -> Any:
    """For functions that donate their arguments."""
    return jax.tree.map(jnp.copy, tree)


def one_device() -> jax.sharding.Mesh:
    return make_mesh(devices=jax.devices()[:1])


def on_mesh(model: Any, mesh: jax.sharding.Mesh) -> Any:
    """A copy of the model with the shardings that a stage gives it."""
    return jax.device_put(copy(model), tree_shardings(model, mesh, LOGICAL_AXES))


def token_rows(rows: Any, length: int, *, side: str = "right", pad_id: int = 0) -> TokenRows:
    """Padded rows (lists, or an array) as jax arrays."""
    ids = [[int(i) for i in row] for row in rows]
    return TokenRows(*map(jnp.asarray, pad_rows(ids, length, pad_id=pad_id, side=side)))


def random_tokens(seed: int, *shape: int, low: int = 0, high: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def make_rollout(
    seed: int, prompt_lengths: Sequence[int], lengths: Sequence[int], truncated: Sequence[bool], *, room: int
) -> Rollout:
    """A rollout of random tokens with the given lengths; the sampler's log-probs are zero."""
    width = max(prompt_lengths)
    prompt, response = random_tokens(seed, len(lengths), width), random_tokens(seed + 1, len(lengths), room)
    prompt_mask = np.arange(width) >= width - np.asarray(prompt_lengths)[:, None]
    mask = np.arange(room) < np.asarray(lengths)[:, None]
    logp = np.zeros(mask.shape, np.float32)
    return Rollout(*map(jnp.asarray, (prompt, prompt_mask, response * mask, mask, logp, np.asarray(truncated))))


class LetterTokenizer:
    """One token a letter: "a".."r", "Y", "N", then the structural tokens."""

    vocab_size = VOCAB

    def __init__(self, *, pad_is_eos: bool = False):
        self.letters = "abcdefghijklmnopqrYN"
        names = ("pad", "eos", "system", "user", "assistant", "first", "second", "verdict", "reference")
        self.specials = {name: len(self.letters) + i for i, name in enumerate(names)}
        self.eos_id = self.specials["eos"]
        self.pad_id = self.eos_id if pad_is_eos else self.specials["pad"]

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[i] for i in ids if i < len(self.letters))

    def special(self, name: str) -> int | None:
        return self.specials.get(name)

    def save(self, directory: Any) -> None:
        raise NotImplementedError


def user(text: str) -> Prompt:
    return (Turn("user", text),)


class UtilityJudge:
    """A judge whose verdicts follow from texts: `z = utility(1) - utility(2) + bias`, and that counts its pairs.

    `bias` favours slot 1, so that the order in which it is asked matters.
    """

    def __init__(self, utility: Callable[[str, str], float], bias: float = 0.0, merge: str = "probability"):
        self.utility, self.bias, self.merge, self.asked = utility, bias, merge, []

    def z(self, prompt: str, first: str, second: str) -> float:
        return self.utility(prompt, first) - self.utility(prompt, second) + self.bias

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        texts = [prompt[-1].content for prompt in prompts]
        self.asked += list(zip(texts, first, second, strict=True))
        z_12 = [self.z(*row) for row in zip(texts, first, second, strict=True)]
        z_21 = [self.z(*row) for row in zip(texts, second, first, strict=True)]
        return Judged(np.array(z_12, np.float32), np.array(z_21, np.float32), self.merge)
