"""The command line, `prl run | judge | generate | export | report`: reads flags and calls stages, nothing else."""

from __future__ import annotations

import ctypes
import difflib
import errno
import functools
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from prl_jax.errors import UserError

USAGE = """Usage: prl COMMAND [flags]

  prl run       --config FILE.py[:args] --workdir DIR [--config.a.b=value ...]
                runs the stages of a config; finished stages are skipped, interrupted ones continue
  prl judge     --model DIR --data FILE.jsonl[.gz] --out FILE.jsonl
                scores preference pairs with a trained judge, prints its metrics as JSON
  prl generate  --model DIR --prompts FILE.jsonl --out FILE.jsonl [--max_new_tokens N --temperature T --seed S]
                writes a response to each prompt
  prl export    --workdir DIR --stage NAME --out DIR [--adapters] [--dtype bfloat16]
                writes the model of a stage as a Hugging Face checkpoint, or its adapters for PEFT
  prl report    --workdir DIR [DIR ...]
                builds report.html, report.md and the figures from the files of one or several runs

For --model, DIR is a stage directory of a workdir or a Hugging Face checkpoint. `prl COMMAND --help` lists the flags of
a command."""

EXIT_USER_ERROR = 2
# A disk that is full or closed to us; whatever meets one first, a library included, it is for the user to mend.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else EXIT_USER_ERROR
    _quiet()
    keep_heap()
    try:
        if argv[0] not in COMMANDS:
            near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
            raise UserError(f"unknown command {argv[0]!r}; {hint}")
        command, rest = argv[0], argv[1:]
        if {"-h", "--help"} & set(rest):
            print(_help(command))
        else:
            COMMANDS[command](rest)
    except UserError as error:
        print(f"prl: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"prl: {where}{error.strerror}; what was saved before is kept", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nprl: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _run(argv: Sequence[str]) -> None:
    _check_overrides(argv, _load_config(argv))
    values = _run_flags(argv)
    _parse(values, ["prl run", *argv], required=("config", "workdir"))
    from prl_jax.reporting import build_report, terminal_table
    from prl_jax.stages.run import run_stages

    workdir = run_stages(values.config, Path(values.workdir))
    report = build_report([workdir.path])
    summary = workdir.path / "summary.json"
    if summary.is_file():
        print(terminal_table(json.loads(summary.read_text())))
    print(f"Report: {report}")


def _run_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    # The module under whose name ml_collections loads a config file; what another file has left in it would stay.
    sys.modules.pop("config_config", None)
    flags.DEFINE_string("workdir", None, "Folder of the run, new or to be continued.", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values, sys_argv=["prl run", *argv])
    return values


def _judge(argv: Sequence[str]) -> None:
    values = _judge_flags(argv)
    _parse(values, ["prl judge", *argv], required=("model", "data", "out"))
    from prl_jax.stages.commands import judge_file

    metrics = judge_file(Path(values.model), Path(values.data), Path(values.out), batch_size=values.batch_size)
    print(json.dumps(metrics))


def _judge_flags(_: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "model", None, "Directory of a judge: a stage's, or a Hugging Face checkpoint.", flag_values=values
    )
    flags.DEFINE_string("data", None, "Preference pairs, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the judgements go, .jsonl.", flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "Rows of a forward pass.", lower_bound=1, flag_values=values)
    return values


def _generate(argv: Sequence[str]) -> None:
    values = _generate_flags(argv)
    _parse(values, ["prl generate", *argv], required=("model", "prompts", "out"))
    from prl_jax.stages.commands import generate_file

    written = generate_file(
        Path(values.model),
        Path(values.prompts),
        Path(values.out),
        max_new_tokens=values.max_new_tokens,
        temperature=values.temperature,
        top_k=values.top_k,
        top_p=values.top_p,
        seed=values.seed,
        batch_size=values.batch_size,
    )
    print(f"{written} responses: {values.out}")


def _generate_flags(_: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string(
        "model", None, "Directory of a policy: a stage's, or a Hugging Face checkpoint.", flag_values=values
    )
    flags.DEFINE_string("prompts", None, "Prompts, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the responses go, .jsonl.", flag_values=values)
    number("max_new_tokens", 0, "Tokens of a response at most; 0: as the model was trained.", lower_bound=0)
    flags.DEFINE_float("temperature", 1.0, "0 is greedy.", lower_bound=0.0, flag_values=values)
    number("top_k", 0, "Sample from the k likeliest tokens; 0: all.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Sample from the likeliest tokens of this probability.", flag_values=values)
    number("seed", 0, "Of sampling.", lower_bound=0, upper_bound=2**31 - 1)
    number("batch_size", 256, "Prompts of a batch.", lower_bound=1)
    return values


def _export(argv: Sequence[str]) -> None:
    values = _export_flags(argv)
    _parse(values, ["prl export", *argv], required=("workdir", "stage", "out"))
    from prl_jax.stages.commands import export_model

    export_model(
        Path(values.workdir),
        values.stage,
        Path(values.out),
        adapters=values.adapters,
        dtype=values.dtype,
        with_tokenizer=values.tokenizer,
    )
    print(f"Exported: {values.out}")


def _export_flags(_: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("stage", None, "Stage whose model to export.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write, in Hugging Face's format.", flag_values=values)
    flags.DEFINE_bool("adapters", False, "Only the adapters, in PEFT's format.", flag_values=values)
    flags.DEFINE_bool("tokenizer", True, "Write the tokenizer too.", flag_values=values)
    dtypes = ["", "float32", "bfloat16"]
    flags.DEFINE_enum("dtype", "", dtypes, "Of the parameters; '' as trained.", flag_values=values)
    return values


def _report(argv: Sequence[str]) -> None:
    values = _report_flags(argv)
    rest = _parse(values, ["prl report", *argv], required=("workdir",), positional=True)
    from prl_jax.reporting import build_report

    print(f"Report: {build_report([Path(p) for p in (*values.workdir, *rest)])}")


def _report_flags(_: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; several give one report.", flag_values=values)
    return values


COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = MappingProxyType(
    {"run": _run, "judge": _judge, "generate": _generate, "export": _export, "report": _report}
)
_FLAGS: Mapping[str, Callable[[Sequence[str]], flags.FlagValues]] = MappingProxyType(
    {
        "run": _run_flags,
        "judge": _judge_flags,
        "generate": _generate_flags,
        "export": _export_flags,
        "report": _report_flags,
    }
)


def _parse(
    values: flags.FlagValues, argv: Sequence[str], *, required: Sequence[str], positional: bool = False
) -> list[str]:
    """Parses the flags of a command; every mistake in them is a `UserError`."""
    try:
        with warnings.catch_warnings():
            # ml_collections 1.1 still loads config files through load_module().
            warnings.filterwarnings("ignore", message="the load_module", category=DeprecationWarning)
            rest = values(list(argv), known_only=False)[1:]
    except UserError:
        raise
    except flags.Error as error:
        # What get_config() raised comes with its traceback, of which the last line is the error.
        lines = str(error).strip().split("\n")
        raise UserError(f"{argv[0]}: {lines[0]}{' ' + lines[-1] if len(lines) > 1 else ''}") from error
    except Exception as error:  # get_config() is the user's code and raises what it likes
        raise _not_loaded(error) from error
    missing = [name for name in required if not values[name].value]
    if missing:
        raise UserError(f"{argv[0]}: --{missing[0]} is missing; see {argv[0]} --help")
    if rest and not positional:
        raise UserError(f"{argv[0]}: unexpected argument {rest[0]!r}; see {argv[0]} --help")
    return rest


def _help(command: str) -> str:
    values, lines = _FLAGS[command]([]), []
    for name in sorted(values):
        default = "" if values[name].default is None else f" (default: {values[name].default})"
        lines.append(f"  --{name:<16} {values[name].help}{default}")
    return f"Flags of prl {command}:\n" + "\n".join(lines)


def _load_config(argv: Sequence[str]) -> ConfigDict:
    """The config that `--config` names, without overrides."""
    plain = list(_config_argument(argv))
    values = _run_flags(plain)
    path = re.sub(r"^--?config=?", "", plain[-1]).split(":", 1)[0] if plain else ""
    if path and not Path(path).is_file():
        raise UserError(f"--config: {path}: no such file; expected a Python file with a get_config()")
    _parse(values, ["prl run", *plain], required=() if plain else ("config",))
    config = values.config
    if not isinstance(config, ConfigDict):
        try:
            hasattr(config, "lock")  # an OSError of get_config() waits until the config is looked at
        except OSError as error:
            raise _not_loaded(error.__cause__ or error) from error
        raise UserError(f"--config: get_config() returned {type(config).__name__}, expected a ConfigDict")
    return config


def _not_loaded(error: BaseException) -> UserError:
    if isinstance(error, AttributeError) and error.name == "get_config":
        return UserError("--config: the file defines no get_config()")
    return UserError(f"--config: cannot be loaded ({type(error).__name__}: {error})")


def _check_overrides(argv: Sequence[str], config: ConfigDict) -> None:
    """Refuses `--config.x.y` where the config has no such key, with the nearest key that it has."""
    given = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=[]+)", arg))]
    known = list(_keys(config))
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"--config.{key}: the config has no such key; the nearest is --config.{near[0]}")


def _config_argument(argv: Sequence[str]) -> Iterator[str]:
    for i, arg in enumerate(argv):
        if re.match(r"--?config=", arg):
            yield arg
        elif re.fullmatch(r"--?config", arg):
            yield from argv[i : i + 2]


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{name}.")


def _quiet() -> None:
    """Libraries keep to themselves: what they log is not for the user's terminal, which shows the error itself."""
    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def keep_heap() -> None:
    """Tells glibc to keep freed memory instead of handing it back to the kernel after every step.

    XLA's CPU backend allocates a step's buffers anew each time; clearing and mapping fresh pages took half of the time
    of a training step of the built-in configs. Other C libraries have no such call, and nothing happens there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    largest = 2**31 - 1
    mallopt(_M_MMAP_THRESHOLD, largest)
    mallopt(_M_TRIM_THRESHOLD, largest)
    mallopt(_M_ARENA_MAX, 1)  # the arenas of further threads are too small for such buffers and map each one anew
