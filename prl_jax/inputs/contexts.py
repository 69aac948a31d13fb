"""The model directories of a config before anything runs: their files, and lengths against their contexts."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from prl_jax.artifacts.cards import Defaults, ModelCard, check_lengths, is_huggingface, read_card
from prl_jax.errors import UserError, naming
from prl_jax.models.hf.load import check_weights
from prl_jax.models.hf.peft import adapter_base
from prl_jax.runs.context import is_directory

_LEAD = 8  # tokens that introduce the anchor to a critic, at most


def check_context(config: ConfigDict, name: str) -> None:
    """Raises `UserError` for a stage whose rows are longer than its model's context. A length of 0 is found later."""
    section = config[name]
    if section.kind == "generative":
        needed, keys = section.max_length, f"{name}.max_length={section.max_length}"
    elif section.kind in ("sft", "bradley_terry"):
        needed = section.max_prompt + section.max_response
        keys = f"{name}.max_prompt={section.max_prompt} and {name}.max_response={section.max_response}"
    elif section.kind == "ppo" and section.critic_sees_anchor:
        prompt, response = _policy_lengths(config, section.policy)
        needed = prompt + 2 * response + _LEAD
        keys = f"{name}.critic_sees_anchor, with a prompt of {prompt} tokens, a response and an anchor of {response}"
    else:
        return
    context = _context(config, name)
    if context and needed > context:
        raise UserError(f"{keys}: take {needed} tokens, the context of the model holds {context}; give less")


def check_directory(config: ConfigDict, key: str, directory: str) -> ModelCard:
    """The card of a model directory that a key names, whose lengths have to fit where it is used with them, and the
    headers of whose weights, where they are there, have to fit its config.json."""
    lengths = config.huggingface
    with naming(key):
        card = read_card(Path(directory), Defaults(lengths.max_prompt, lengths.max_response))
        if not key.endswith(".init_from"):
            check_lengths(card, directory)
        weights = adapter_base(directory) or Path(directory)
        if is_huggingface(weights):
            check_weights(weights)
    return card


def _context(config: ConfigDict, name: str) -> int:
    """Of the model directory that a stage's model descends from; 0 where there is none."""
    while name and not is_directory(name):
        section = config[name]
        name = section.policy if section.kind == "ppo" else section.init_from
    return read_card(Path(name)).context if name else 0


def _policy_lengths(config: ConfigDict, name: str) -> tuple[int, int]:
    """Tokens of prompts and responses of a policy."""
    while not is_directory(name):
        section = config[name]
        if section.kind == "sft":
            return section.max_prompt, section.max_response
        name = section.policy
    card = read_card(Path(name), Defaults(config.huggingface.max_prompt, config.huggingface.max_response))
    return card.max_prompt, card.max_response
