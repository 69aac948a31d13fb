"""The flags of each command, with their meaning; `prl COMMAND --help` shows them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from absl import flags

from prl_jax.commands.line import define_config
from prl_jax.errors import UserError
from prl_jax.files import finite, parse_json


def run_flags(argv: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl run`."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run, new or to be continued.", flag_values=values)
    flags.DEFINE_string(
        "shared", "", "Folder through which runs share stages that are the same, such as judges.", flag_values=values
    )
    processes = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_bool("distributed", False, "Join the processes that the cluster has started.", flag_values=values)
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, where no cluster tells; implies --distributed.", flag_values=values
    )
    processes("num_processes", -1, "Processes of the run; -1 asks the cluster.", lower_bound=-1)
    processes("process_id", -1, "Which of them this is, from 0; -1 asks the cluster.", lower_bound=-1)
    processes("heartbeat_timeout", 30, "Seconds after which a silent process counts as lost.", lower_bound=1)
    _define_cache(values)
    define_config(values, argv)
    return values


def plan_flags(argv: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl plan`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "topology", None, "v5e:8x8 and the like (v4, v5e, v5p, v6e), or cpu:8 for so many CPU devices.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("json", False, "Print one JSON document.", flag_values=values)
    flags.DEFINE_list("functions", [], "Compile these alone, such as sft/train_step.", flag_values=values)
    define_config(values, argv)
    return values


def judge_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl judge`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "judge", "",
        "A judge: its directory as of --model, a function of yours as FILE.py:FUNCTION, an endpoint as URL#MODEL, or "
        "gold.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "model", "", "Directory of a judge: a stage's, or a Hugging Face checkpoint.", flag_values=values
    )
    flags.DEFINE_string("data", None, "Preference pairs, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the judgements go, .jsonl.", flag_values=values)
    _define_rows(values)
    return values


def generate_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl generate`."""
    values = flags.FlagValues()
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string(
        "model",
        None,
        "Directory of a policy: a stage's, or a Hugging Face checkpoint; or a GGUF file.",
        flag_values=values,
    )
    flags.DEFINE_string("prompts", None, "Prompts, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the responses go, .jsonl.", flag_values=values)
    number("max_new_tokens", 0, "Tokens of a response at most; 0: as the model was trained.", lower_bound=0)
    _define_sampling(values)
    number("seed", 0, "Seed of sampling.", lower_bound=0, upper_bound=2**31 - 1)
    _define_rows(values)
    return values


def export_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl export`."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("stage", None, "Stage whose model to export.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write; with --format gguf a file.", flag_values=values)
    formats, text = ["huggingface", "gguf"], "Hugging Face's, or the one of llama.cpp."
    flags.DEFINE_enum("format", formats[0], formats, text, flag_values=values)
    kinds = ["", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
    text = "With --format gguf: type of the matrices; '' as the parameters."
    flags.DEFINE_enum("gguf_type", "", kinds, text, flag_values=values)
    flags.DEFINE_bool("adapters", False, "Only the adapters, in PEFT's format.", flag_values=values)
    flags.DEFINE_bool("tokenizer", True, "Write the tokenizer too.", flag_values=values)
    dtypes = ["", "float32", "bfloat16"]
    flags.DEFINE_enum("dtype", "", dtypes, "Type of the parameters; '' as trained.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace an earlier export in --out.", flag_values=values)
    return values


def compare_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl compare`."""
    values = flags.FlagValues()
    number = functools.partial(flags.DEFINE_integer, flag_values=values, lower_bound=1)
    text = "FILE.py[:ARGUMENTS], an experiment with a get_comparison()."
    flags.DEFINE_string("config", None, text, flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the comparison, new or to be continued.", flag_values=values)
    number("seeds", 3, "Sets of data, SFT and judges.")
    number("repetitions", 5, "How often each arm is trained on each set.")
    number("jobs", 1, "Runs at once.")
    flags.DEFINE_bool("quick", False, "Everything small, to see it work.", flag_values=values)
    return values


def report_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl report`."""
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; several give one report.", flag_values=values)
    return values


def pairs_export_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl pairs export`."""
    values = flags.FlagValues()
    number = functools.partial(flags.DEFINE_integer, flag_values=values, lower_bound=0)
    flags.DEFINE_string("pairs", None, "Preference pairs, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("out", None, "The file to fill in, .csv or .jsonl.", flag_values=values)
    number("seed", 0, "Draws which response stands first.")
    number("limit", 0, "Only the first so many pairs; 0: all.")
    _define_limits(values)
    return values


def pairs_import_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl pairs import`."""
    values = flags.FlagValues()
    flags.DEFINE_string("pairs", None, "The pairs that were exported.", flag_values=values)
    flags.DEFINE_string("labels", None, "The file that was filled in.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the labelled pairs go, .jsonl.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace --out where it is there already.", flag_values=values)
    _define_limits(values)
    return values


def models_get_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl models get`."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", "", "Folder to make; '' for one in the user's cache.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace --out where it is there already.", flag_values=values)
    return values


def models_list_flags(_: Sequence[str]) -> flags.FlagValues:
    """Flags of `prl models list`, which has none."""
    return flags.FlagValues()


def _define_cache(values: flags.FlagValues) -> None:
    text = "Folder for compiled programs, a cache folder of the user's unless given; '' keeps none."
    flags.DEFINE_string("compilation_cache_dir", None, text, flag_values=values)


def _define_sampling(values: flags.FlagValues) -> None:
    """Defines the flags that say how responses are sampled; configs have keys of the same names."""
    number = functools.partial(flags.DEFINE_integer, flag_values=values, lower_bound=0)
    share = functools.partial(flags.DEFINE_float, flag_values=values, lower_bound=0.0)
    ids = functools.partial(flags.DEFINE_list, default=[], flag_values=values)
    share("temperature", 1.0, "0 is greedy.")
    number("top_k", 0, "Sample from the k likeliest tokens; 0: all.")
    share("top_p", 1.0, "Sample from the likeliest tokens of this probability.")
    share("min_p", 0.0, "Sample from tokens with this share of the likeliest one's probability, at least.")
    share("repetition_penalty", 1.0, "Makes tokens that are there already less likely; 1: does not.")
    text = "A text that ends a response right before it (repeat it for more)."
    flags.DEFINE_multi_string("stop", [], text, flag_values=values)
    ids("stop_token_ids", help="Ids of tokens that end a response, beside the model's own.")
    ids("suppressed_tokens", help="Ids of tokens that are never sampled.")
    number("min_new_tokens", 0, "Tokens of a response before it may end.")
    number("repetition_ngram", 0, "With --repetition_times: an n-gram of at most so many tokens; 0: none.")
    number("repetition_times", 0, "The same n-gram so many times in a row ends a response.")


def sampling_flags(values: flags.FlagValues) -> dict[str, Any]:
    """Returns how responses are sampled, as `sampling_config` takes it.

    Raises:
      UserError: an id is no integer.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens")
    found = {name: values[name].value for name in (*names, "repetition_ngram", "repetition_times")}
    found["stop"] = tuple(values.stop)
    for name in ("stop_token_ids", "suppressed_tokens"):
        texts = values[name].value
        try:
            found[name] = tuple(int(text) for text in texts)
        except ValueError:
            raise UserError(f"prl generate: --{name}={','.join(texts)}, expected ids such as 5,17") from None
    return found


def _define_rows(values: flags.FlagValues) -> None:
    """Defines the flags that `judge` and `generate` have in common."""
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    number("batch_size", 256, "Rows of a batch.", lower_bound=1)
    number("max_length", 0, "Tokens of a row, at most; 0: the model's own context.", lower_bound=0)
    flags.DEFINE_enum(
        "on_long", "error", ["error", "truncate", "skip"], "What becomes of a row that has more.", flag_values=values
    )
    number("skip_invalid", 0, "Leave out up to so many rows that cannot be read.", lower_bound=0)
    _define_limits(values)
    text = "What the chat template is given: NAME=VALUE (repeat it for more), or a JSON object."
    flags.DEFINE_multi_string("template_args", [], text, flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace --out where it is there already.", flag_values=values)
    _define_cache(values)


def _define_limits(values: flags.FlagValues) -> None:
    """Defines the bounds on a file of rows."""
    number = functools.partial(flags.DEFINE_integer, flag_values=values, lower_bound=1)
    number("max_unpacked_mib", 2048, "MiB that a gzip file of rows may unpack to.")
    number("max_line_mib", 64, "MiB that a line of the file of rows may have.")


def template_args(given: Sequence[str]) -> dict[str, Any]:
    """`["enable_thinking=false"]` or `['{"enable_thinking": false}'] -> {"enable_thinking": False}`.

    A value that is no JSON is text. Errors: `UserError` for what is neither form, for a name that is given twice, and
    for numbers that are not finite.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        values = _json_or_none(text)
        if not isinstance(values, dict):
            if not (equals and name.isidentifier()):
                raise UserError(f"--template_args={text}: expected NAME=VALUE, or a JSON object")
            parsed = _json_or_none(value)
            values = {name: value if parsed is None and value != "null" else parsed}
        if twice := found.keys() & values.keys():
            raise UserError(f"--template_args={text}: {min(twice)} is given twice, expected once")
        if finite(values) != values:
            raise UserError(f"--template_args={text}: NaN and infinities are no JSON, expected finite numbers")
        found |= values
    return found


def _json_or_none(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


FLAGS: Mapping[str, Callable[[Sequence[str]], flags.FlagValues]] = MappingProxyType(
    {
        "run": run_flags,
        "plan": plan_flags,
        "judge": judge_flags,
        "generate": generate_flags,
        "export": export_flags,
        "report": report_flags,
        "compare": compare_flags,
        "pairs export": pairs_export_flags,
        "pairs import": pairs_import_flags,
        "models get": models_get_flags,
        "models list": models_list_flags,
    }
)


def help_of(command: str) -> str:
    """The text that `prl COMMAND --help` prints; of a command of several parts, the flags of each."""
    return "\n".join(_help_of(name) for name in FLAGS if name == command or name.startswith(f"{command} "))


def _help_of(command: str) -> str:
    values, lines = FLAGS[command]([]), []
    for name in sorted(values):
        default = "" if values[name].default is None else f" (default: {values[name].default})"
        lines.append(f"  --{name:<21} {values[name].help}{default}")
    return f"Flags of prl {command}:\n" + "\n".join(lines)
