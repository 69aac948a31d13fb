"""Flags and configs as users give them: every mistake in them is a `UserError` of one line."""

from __future__ import annotations

import difflib
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from prl_jax.errors import UserError
from prl_jax.files import local_path

# What Python says of the arguments of a config, `FILE.py:ARGUMENTS`, and what it means.
_ARGUMENTS = {
    "get_config() takes 0 positional arguments": (
        "this file takes no arguments: give its name alone, without a colon and what follows"
    ),
    "get_config() missing": "this file needs an argument: give it behind a colon, --config FILE.py:ARGUMENT",
}


def parse(
    values: flags.FlagValues, argv: Sequence[str], *, required: Sequence[str], positional: bool = False
) -> list[str]:
    """Parses the flags of a command, `argv[0]`; returns what is no flag.

    Raises:
      UserError: a flag is unknown, wrong or missing, or the config cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            # ml_collections 1.1 still loads config files through load_module().
            warnings.filterwarnings("ignore", message="the load_module", category=DeprecationWarning)
            remainder = values(list(argv), known_only=False)[1:]
    except UserError:
        raise
    except flags.Error as error:
        # What get_config() raised comes with its traceback, of which the last line is the error.
        lines = str(error).strip().split("\n")
        for words, meaning in _ARGUMENTS.items():
            if words in lines[-1]:
                raise UserError(f"--config: {meaning}") from error
        raise UserError(f"{argv[0]}: {lines[0]}{' ' + lines[-1] if len(lines) > 1 else ''}") from error
    except Exception as error:  # get_config() is the user's code and raises what it likes
        raise _not_loaded(error) from error
    for name in values:
        if isinstance(values[name].value, float) and not math.isfinite(values[name].value):
            raise UserError(f"{argv[0]}: --{name}={values[name].value}, expected a finite number")
    missing = [name for name in required if not values[name].value]
    if missing:
        raise UserError(f"{argv[0]}: --{missing[0]} is missing; see {argv[0]} --help")
    if remainder and not positional:
        raise UserError(f"{argv[0]}: unexpected argument {remainder[0]!r}; see {argv[0]} --help")
    return remainder


def define_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds `--config FILE.py[:args]` and an override `--config.a.b` for each of its keys."""
    # The module under whose name ml_collections loads a config file; what another file has left in it would stay.
    sys.modules.pop("config_config", None)
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values, sys_argv=["prl", *argv])


def check_overrides(command: str, argv: Sequence[str]) -> None:
    """Refuses `--config.x.y` where the config has no such key, with the nearest key that it has."""
    known = list(_keys(_load_config(command, argv)))
    for key in [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=[]+)", arg))]:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"--config.{key}: the config has no such key; the nearest is --config.{near[0]}")


def _load_config(command: str, argv: Sequence[str]) -> ConfigDict:
    """The config that `--config` names, without overrides."""
    plain, values = list(_config_argument(argv)), flags.FlagValues()
    define_config(values, plain)
    given = re.sub(r"^--?config=?", "", plain[-1]) if plain else ""
    local_path(given)  # before a scheme is taken for the name of a file
    path = given.split(":", 1)[0]
    if path and not Path(path).is_file():
        raise UserError(f"--config: {path}: no such file; expected a Python file with a get_config()")
    parse(values, [command, *plain], required=() if plain else ("config",))
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
