"""The command line, `prl run | plan | judge | ...`: reads flags and calls stages, nothing else."""

from __future__ import annotations

import difflib
import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from absl import flags

from prl_jax.command_line import check_overrides, define_config, parse
from prl_jax.errors import Stopped, UserError
from prl_jax.process_setup import check_versions, keep_heap, quiet
from prl_jax.stages.stopping import StopSignal

USAGE = """Usage: prl COMMAND [flags]

  prl run       --config FILE.py[:args] --workdir DIR [--config.a.b=value ...]
                runs the stages of a config; finished stages are skipped, interrupted ones continue
  prl plan      --config FILE.py[:args] --topology v5e:8x8 [--json] [--functions NAME,...] [--config.a.b=value ...]
                compiles every step function of a config for a slice of TPUs and says whether it fits; needs no TPU
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

EXIT_DOES_NOT_FIT = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
# A disk that is full or closed to us; whatever meets one first, a library included, it is for the user to mend.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code.

    It is 0, 1 for a plan that does not fit, 2 for a user's mistake, 75 after SIGTERM, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else EXIT_USER_ERROR
    quiet()
    keep_heap()
    try:
        check_versions()
        if argv[0] not in COMMANDS:
            near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
            raise UserError(f"unknown command {argv[0]!r}; {hint}")
        command, rest = argv[0], argv[1:]
        if {"-h", "--help"} & set(rest):
            print(_help(command))
        else:
            return COMMANDS[command](rest) or 0
    except BaseException as error:
        return tell(error)
    return 0


def tell(error: BaseException) -> int:
    """Says on the terminal why a command ends, in one line where it is for the user to mend; returns the exit code."""
    if isinstance(error, UserError):
        line, code = " ".join(str(error).split()), EXIT_USER_ERROR
    elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        line, code = f"{where}{error.strerror}; what was saved before is kept", EXIT_USER_ERROR
    elif isinstance(error, Stopped):
        line, code = f"stopped by SIGTERM: {error}; the same command continues", EXIT_STOPPED
    elif isinstance(error, KeyboardInterrupt):
        line, code = "interrupted; the same command continues from what was saved", 128 + signal.SIGINT
        print(file=sys.stderr)
    else:
        raise error
    print(f"prl: {line}", file=sys.stderr)
    return code


def _run(argv: Sequence[str]) -> None:
    stop = StopSignal()
    with stop.caught():
        _run_until(stop, argv)


def _run_until(stop: StopSignal, argv: Sequence[str]) -> None:
    check_overrides("prl run", argv)
    values = _run_flags(argv)
    parse(values, ["prl run", *argv], required=("config", "workdir"))
    from prl_jax.processes import is_leader, joined
    from prl_jax.reporting import build_report, terminal_table
    from prl_jax.stages.caching import use_compilation_cache
    from prl_jax.stages.run import run_stages

    several = values.distributed or values.coordinator
    if not several and max(values.num_processes, values.process_id) >= 0:
        raise UserError(
            "--num_processes and --process_id go with --coordinator HOST:PORT, the place of process 0, or with "
            "--distributed, which asks the cluster"
        )
    use_compilation_cache(values.compilation_cache_dir)
    number = values.num_processes if several else 1
    timeout = values.heartbeat_timeout
    with joined(values.coordinator, number, values.process_id, heartbeat_timeout=timeout, tell=tell):
        workdir = run_stages(values.config, Path(values.workdir), stop)
        if not is_leader():
            return
    report = build_report([workdir.path])
    summary = workdir.path / "summary.json"
    if summary.is_file():
        print(terminal_table(json.loads(summary.read_text())))
    print(f"Report: {report}")


def _run_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run, new or to be continued.", flag_values=values)
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


def _plan(argv: Sequence[str]) -> int:
    check_overrides("prl plan", argv)
    values = _plan_flags(argv)
    parse(values, ["prl plan", *argv], required=("config", "topology"))
    # The plan is made on the CPU, whatever else is there; compilers say on standard error what it looks for.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
    import jax

    from prl_jax.plan import as_json, as_text, plan_config

    jax.config.update("jax_platforms", "cpu")
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    plan = plan_config(values.config, values.topology, functions=values.functions or None, tell=tell)
    print(json.dumps(as_json(plan, plan.config)) if values.json else as_text(plan, plan.config))
    return 0 if plan.fits else EXIT_DOES_NOT_FIT


def _plan_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "topology", None, "v5e:8x8 and the like (v4, v5e, v5p, v6e), or cpu:8 for so many CPU devices.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("json", False, "Print one JSON document.", flag_values=values)
    flags.DEFINE_list("functions", [], "Compile these alone, such as sft/train_step.", flag_values=values)
    define_config(values, argv)
    return values


def _define_cache(values: flags.FlagValues) -> None:
    text = "Folder for compiled programs, a cache folder of the user's unless given; '' keeps none."
    flags.DEFINE_string("compilation_cache_dir", None, text, flag_values=values)


def _judge(argv: Sequence[str]) -> None:
    values = _judge_flags(argv)
    parse(values, ["prl judge", *argv], required=("model", "data", "out"))
    from prl_jax.stages.caching import use_compilation_cache
    from prl_jax.stages.commands import judge_file

    use_compilation_cache(values.compilation_cache_dir)
    metrics = judge_file(Path(values.model), Path(values.data), Path(values.out), batch_size=values.batch_size)
    print(json.dumps(metrics))


def _judge_flags(_: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "model", None, "Directory of a judge: a stage's, or a Hugging Face checkpoint.", flag_values=values
    )
    _define_cache(values)
    flags.DEFINE_string("data", None, "Preference pairs, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the judgements go, .jsonl.", flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "Rows of a forward pass.", lower_bound=1, flag_values=values)
    return values


def _generate(argv: Sequence[str]) -> None:
    values = _generate_flags(argv)
    parse(values, ["prl generate", *argv], required=("model", "prompts", "out"))
    from prl_jax.stages.caching import use_compilation_cache
    from prl_jax.stages.commands import generate_file

    use_compilation_cache(values.compilation_cache_dir)
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
    _define_cache(values)
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
    parse(values, ["prl export", *argv], required=("workdir", "stage", "out"))
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
    rest = parse(values, ["prl report", *argv], required=("workdir",), positional=True)
    from prl_jax.reporting import build_report

    print(f"Report: {build_report([Path(p) for p in (*values.workdir, *rest)])}")


def _report_flags(_: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; several give one report.", flag_values=values)
    return values


COMMANDS: Mapping[str, Callable[[Sequence[str]], int | None]] = MappingProxyType(
    {"run": _run, "plan": _plan, "judge": _judge, "generate": _generate, "export": _export, "report": _report}
)
_FLAGS: Mapping[str, Callable[[Sequence[str]], flags.FlagValues]] = MappingProxyType(
    {
        "run": _run_flags,
        "plan": _plan_flags,
        "judge": _judge_flags,
        "generate": _generate_flags,
        "export": _export_flags,
        "report": _report_flags,
    }
)


def _help(command: str) -> str:
    values, lines = _FLAGS[command]([]), []
    for name in sorted(values):
        default = "" if values[name].default is None else f" (default: {values[name].default})"
        lines.append(f"  --{name:<16} {values[name].help}{default}")
    return f"Flags of prl {command}:\n" + "\n".join(lines)
