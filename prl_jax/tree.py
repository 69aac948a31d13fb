"""Pytrees as flat dictionaries of named arrays."""

from __future__ import annotations

from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree, arrays or abstract ones, by their dotted path, `blocks.attention.q.weight`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {leaf_name(path): leaf for path, leaf in leaves}


def unflatten(like: Tree, arrays: dict[str, Any]) -> Tree:
    """The inverse of `flatten` for a tree with the structure of `like`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(structure, [arrays[leaf_name(path)] for path, _ in paths])


def leaf_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a key path."""
    # An NNX variable adds ".value" to the path of its array; the name of a parameter should not tell.
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    return ".".join(name for name in names if name != "value") or "value"
