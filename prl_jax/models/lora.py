"""Low-rank adapters (arXiv 2106.09685) on a frozen decoder: what is trained, what is not, on and off.

A decoder whose config has adapters trains these alone. `split` tells them from the rest, so that the rest gets no
gradient, no optimizer state and no second copy: the policy, its reference and its critic can hold the same arrays.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key, PRNGKeyArray

from prl_jax.models.config import DecoderConfig, LoraConfig
from prl_jax.models.decoder import LOGICAL_AXES, Decoder
from prl_jax.sharding import tree_shardings
from prl_jax.tree import flatten, leaf_name, unflatten

Tree = TypeVar("Tree")


def split(tree: Any) -> tuple[Any, Any]:
    """Splits a tree with decoders in it into what is trained and what is not, each with None in the other's places.

    Everything is trained but the parameters of a decoder with adapters that are no adapters.
    """

    def mask(node: Any) -> Any:
        adapted = isinstance(node, Decoder) and node.config.lora is not None
        return jax.tree_util.tree_map_with_path(lambda path, _: not adapted or _is_adapter(leaf_name(path)), node)

    trained = jax.tree.map(mask, tree, is_leaf=lambda node: isinstance(node, Decoder))
    pick = lambda wanted: jax.tree.map(lambda x, t: x if t == wanted else None, tree, trained)  # noqa: E731
    return pick(True), pick(False)


def combine(trained: Any, frozen: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None)


def with_adapters(decoder: Decoder, lora: LoraConfig, mesh: Mesh, *, key: PRNGKeyArray) -> Decoder:
    """The same function, with fresh adapters; the other arrays are those of `decoder`, which has none."""
    arrays, like = flatten(decoder), _structure(decoder.config, lora=lora)
    shapes = {name: leaf for name, leaf in flatten(like).items() if name not in arrays}

    def fresh() -> dict[str, jax.Array]:
        return {name: _initial(name, leaf, key) for name, leaf in shapes.items()}

    shardings = {k: v for k, v in flatten(tree_shardings(like, mesh, LOGICAL_AXES)).items() if k in shapes}
    return unflatten(like, arrays | jax.jit(fresh, out_shardings=shardings)())


def without_adapters(decoder: Decoder) -> Decoder:
    """The decoder with its adapters off: the same arrays, none copied."""
    return unflatten(_structure(decoder.config, lora=None), flatten(decoder))


def merge(decoder: Decoder) -> Decoder:
    """The same function without adapters: their update is added to the weights, in float32."""
    return decoder if decoder.config.lora is None else _merged(decoder)


def with_dropout(tree: Tree, keys: Key[Array, "R"]) -> Tree:
    """The same models, whose adapters drop a share of their inputs, each layer and adapter another one.

    For one forward pass of training, inside jit, over as many rows as there are keys: what is dropped of a row depends
    on its key alone.
    """

    def one(node: Any) -> Any:
        lora = node.config.lora if isinstance(node, Decoder) else None
        if lora is None or not lora.dropout:
            return node
        node = jax.tree.map(lambda x: x, node)  # modules of its own, the same arrays
        blocks = node.blocks
        parts = {**vars(blocks.attention), **vars(blocks.mlp)}
        for i, target in enumerate(lora.targets):
            target_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            layers = jax.vmap(lambda key: jax.random.split(key, node.config.layers), out_axes=1)(target_keys)
            parts[target].lora.keys = nnx.data(layers)  # sliced by the scan over layers
        return node

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, Decoder))


@jax.jit
def _merged(decoder: Decoder) -> Decoder:
    lora, arrays = decoder.config.lora, flatten(decoder)
    for name in [name for name in arrays if name.endswith(".lora.a")]:
        target = name.removesuffix(".lora.a")
        a, b = (arrays[f"{target}.lora.{part}"].astype(jnp.float32) for part in "ab")
        weight = arrays[f"{target}.weight"]
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * lora.scale
        arrays[f"{target}.weight"] = (weight.astype(jnp.float32) + update).astype(weight.dtype)
    return unflatten(_structure(decoder.config, lora=None), arrays)


def _is_adapter(name: str) -> bool:
    return ".lora." in name


def _initial(name: str, shape: jax.ShapeDtypeStruct, key: PRNGKeyArray) -> jax.Array:
    """A of an adapter is random, B zero (section 4.1 of the paper)."""
    if name.endswith(".b"):
        return jnp.zeros(shape.shape, shape.dtype)
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.random.normal(key, shape.shape, shape.dtype) * shape.shape[-2] ** -0.5


def _structure(config: DecoderConfig, *, lora: LoraConfig | None) -> Decoder:
    """An abstract decoder of the same shape, with or without adapters."""
    config = dataclasses.replace(config, lora=lora)
    return jax.eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
