"""The keys of a config's root and the sections that stages share, with their defaults. The keys of each kind of stage
stand in its own file (`prl_jax/stages`). Experiments call `build` with their stages.

Durations are strings: "300 steps", "2 epochs", "20000 examples", "10%" (of the stage). Lengths (`max_prompt`,
`max_response`, `max_length`) are in tokens; 0 is as long as the data need, at most the model's context.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.errors import UserError
from prl_jax.models import preset
from prl_jax.models.config import LORA_TARGETS


def build(stages: dict[str, dict[str, Any]], **values: Any) -> ConfigDict:
    """A locked config: the stages, run in the order given, and the root's values.

    Raises:
      UserError: a value has no such key.
    """
    judges = {"gold": {"kind": "gold"}, **values.pop("judges", {})}
    root = filled(
        dict(
            title="",
            seed=0,
            # Rows of a file that cannot be read (malformed, or refused by the chat template) that each source may have:
            # they are left out and counted. `skip` and `limit` of a source count them too.
            skip_invalid=0,
            # Run in this order. Each name is a section of the config, whose `kind` says what it does.
            stages=tuple(stages),
            tokenizer=dict(
                kind="byte",  # byte, bpe (trained on `data`), or huggingface (read from `path`)
                path="",
                vocab_size=4096,
                data=source(),
            ),
            model={
                **preset("tiny"),
                "rope_theta": 10_000.0,
                "tied_embeddings": True,
                "dtype": "float32",
                "remat": False,
                "attention": "auto",  # auto, einsum, chunked, cudnn (NVIDIA GPUs) or splash (TPUs)
            },
            # Tokens that Hugging Face models are used with, whose directories do not say (0: as many as the data need),
            # and what their chat templates are given beside the conversation, such as dict(enable_thinking=False);
            # their activations have the `dtype` of `model`, its `remat` and its `attention`. `stop_tokens` end a
            # response beside those that config.json, generation_config.json and the chat template name, such as
            # ("<|eom_id|>",).
            huggingface=dict(max_prompt=1024, max_response=1024, template_args={}, stop_tokens=()),
            # Whom stages may ask beside the judges that they train, by name: sections of `judge`.
            judges=judges,
            # The built-in tasks, for sources of kind "gold" (`GoldArguments`); () and 0 rows keep its defaults.
            gold=dict(
                seed=0,
                families=(),
                difficulties=(0,),
                train_rows=0,
                validation_rows=1000,
                test_rows=1000,
                form_ignored=0.65,
                filler=0.65,
                slip=0.6,
                noise=0.05,
                ties=0.1,
                intransitivity=0.0,
                scale=0.0,
                reference="demonstration",
            ),
            # Sizes of the axes of the device mesh (`sharding.make_mesh`); one may be -1, the rest.
            mesh=dict(data=-1, fsdp=1, decode=1, tensor=1, sequence=1),
            logging=dict(progress=True),
            # Of files of rows, in MiB: what a gzip file may unpack to, and the length of a line.
            limits=dict(max_unpacked_mib=2048, max_line_mib=64),
            profile=dict(steps=""),  # of each training stage, "10-12" or "10": jax.profiler traces them
        ),
        values,
        "config",
    )
    return ConfigDict({**root, **stages}).lock()


def source(**values: Any) -> dict[str, Any]:
    """Where records come from: kind "gold" (built-in tasks), "jsonl" (files), "tfds" (a prepared builder), "stage" (the
    pairs of an earlier stage of the run, which `path` names) or "mix" (several sources: `mix` names them, and each is a
    `part`)."""
    return filled(dict(kind="gold", path="", split="train", limit=0, skip=0, mix={}), values, "source")


def part(weight: float = 1.0, **values: Any) -> dict[str, Any]:
    """A source of a mixture. Weights say how often its records come, relative to those of the other parts: an epoch has
    each record at least once, and those of the part that is scarcest for its weight more often."""
    found = source(**values)
    del found["mix"]
    return {"weight": float(weight), **found}


def lora(**values: Any) -> dict[str, Any]:
    """Low-rank adapters on a frozen model: all that the stage trains. Rank 0 trains the whole model.

    Dropout is for SFT and judges: never in rollouts or scoring, nor where a policy learns from its own samples, whose
    ratios it would move.
    """
    return filled(dict(rank=0, alpha=16.0, targets=LORA_TARGETS, dropout=0.0), values, "lora")


def sampling(**values: Any) -> dict[str, Any]:
    """How responses are sampled, beside the temperature; see `SamplingConfig`, and `prl generate`, whose flags have the
    same names. By default nothing is cut off.

    Ids are those of the policy's tokenizer.
    """
    defaults = dict(
        top_k=0,  # keep the k likeliest tokens; 0: all
        top_p=1.0,  # keep the likeliest tokens of this probability
        min_p=0.0,  # keep tokens with this share of the likeliest one's probability, at least
        repetition_penalty=1.0,  # divides positive logits of tokens that are there already, multiplies negative ones
        stop=(),  # texts that end a response right before them; nobody reads what stands behind
        stop_token_ids=(),  # tokens that end a response, beside those of the model
        suppressed_tokens=(),  # ids that are never sampled
        min_new_tokens=0,  # tokens of a response before a stop token can be sampled, or a text of `stop` counts
        # A response ends, as one that ran out of room, once its last tokens are the same n-gram, of at most so many
        # tokens, so many times in a row; both 0: never.
        repetition_ngram=0,
        repetition_times=0,
    )
    return filled(defaults, values, "sampling")


def optimizer(**values: Any) -> dict[str, Any]:
    """AdamW behind global-norm clipping."""
    defaults = dict(
        learning_rate=1e-3,
        schedule="cosine",
        warmup="5%",
        weight_decay=0.0,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    return filled(defaults, values, "optimizer")


def filled(defaults: dict[str, Any], values: dict[str, Any], what: str) -> dict[str, Any]:
    """Defaults with some values replaced, one level deep; a key that is not among them is a `UserError`."""
    out = dict(defaults)
    for name, value in values.items():
        if name not in defaults:
            raise UserError(f"{what}: no key {name!r}; known: {', '.join(sorted(defaults))}")
        current = defaults.get(name)
        if isinstance(current, dict) and isinstance(value, dict):
            unknown = sorted(set(value) - set(current)) if current else []
            if unknown:
                raise UserError(f"{what}.{name}: no key {unknown[0]!r}; known: {', '.join(sorted(current))}")
            out[name] = {**current, **value}
        else:
            out[name] = value
    return out
