"""The layout of a workdir: what is in it, what is finished, whose config it belongs to."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import prl_jax
from prl_jax.artifacts.fingerprints import difference
from prl_jax.data.sources import Fingerprint
from prl_jax.errors import UserError
from prl_jax.file_names import CONFIG_FILE, DATA_DIR, RESULT_FILE
from prl_jax.files import is_leftover, leaves, local_path, parse_json, write_json
from prl_jax.metrics import read_result

# Sections that may differ between the runs that share a workdir: where and how it runs, not what it computes.
_FREE = ("mesh.", "profile.", "logging.", "limits.")


class Workdir:
    """A folder with one run: `config.json`, a folder a stage, the summary and the report.

    Opening it for a config checks that it is new or belongs to this config; `create` makes it.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path = local_path(path)
        self._plain = json.loads(json.dumps(config.to_dict()))
        self._document, self._data, self._models = self._read_config()
        if self._document is not None:
            _check_same(path, self._document["config"], self._plain)

    def create(self) -> None:
        """Writes `config.json` where it is not there yet, or does not know all data and models that `recognise` and
        `recognise_model` have met."""
        data = {name: dataclasses.asdict(found) for name, found in sorted(self._data.items())}
        read = {"data": data, "models": dict(sorted(self._models.items()))}
        if self._document is None or any(self._document.get(key, {}) != value for key, value in read.items()):
            self._document = {**(self._document or self._new_document()), **read}
            write_json(self.path / CONFIG_FILE, self._document)

    def recognise(self, name: str, found: Fingerprint) -> None:
        """Remembers a file of data by the name that the config has for it.

        Raises:
          UserError: it is another file than the one that this run has read under that name.
        """
        before = self._data.setdefault(name, found)
        if before != found:
            raise UserError(
                f"{name}: has changed since {self.path} was made from it: {_difference(before, found)}; put back what "
                "was there, or give another --workdir"
            )

    def recognise_model(self, name: str, files: dict[str, str]) -> None:
        """Remembers the files of a model directory (`model_files`), or those that a judge is made of (`looks`), by the
        name that the config has for it.

        Raises:
          UserError: they are others than those that this run began with.
        """
        changed = difference(self._models.setdefault(name, files), files)
        if changed:
            raise UserError(
                f"{name}: has changed since {self.path} was made from it: {changed}; put back what was there, or give "
                "another --workdir"
            )

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.path / name

    def finished(self, name: str) -> bool:
        """Whether a stage ran to its end here. Errors: `UserError` for a damaged result."""
        path = self.stage(name) / RESULT_FILE
        return path.is_file() and bool(read_result(path))

    def finish(self, name: str, *, kind: str, family: str, metrics: Mapping[str, Any], seconds: float) -> None:
        """Marks a stage as finished, at once and as a whole; `family` is that of its result (`stages.Kind`)."""
        result = {"kind": kind, "family": family, "metrics": dict(metrics), "seconds": round(seconds, 3)}
        write_json(self.stage(name) / RESULT_FILE, result)

    def _read_config(self) -> tuple[dict[str, Any] | None, dict[str, Fingerprint], dict[str, dict[str, str]]]:
        """Returns what `config.json` holds, None where there is none, and the data and models that it knows."""
        path = self.path / CONFIG_FILE
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file, expected a folder for --workdir")
        if not path.exists():
            # A run that was stopped before it wrote its config leaves these at most.
            if self.path.is_dir() and any(p.name != DATA_DIR and not is_leftover(p) for p in self.path.iterdir()):
                raise UserError(f"{self.path}: is not empty and holds no {CONFIG_FILE}; give an empty --workdir")
            return None, {}, {}
        try:
            document = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(document["config"], dict):
                raise TypeError("its config is no object")
            # Of workdirs from before fingerprints were kept, nothing is known.
            data = {name: Fingerprint(**values) for name, values in document.get("data", {}).items()}
            return document, data, {name: dict(files) for name, files in document.get("models", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give another --workdir") from error

    def _new_document(self) -> dict[str, Any]:
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")
        versions = {"prl_jax": prl_jax.__version__, **{name: metadata.version(name) for name in packages}}
        devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
        return {"config": self._plain, "versions": versions, "git_revision": _git_revision(), "devices": devices}


def kept_config(path: Path) -> Mapping[str, Any]:
    """The sections of the config that a workdir belongs to; none where it cannot be read, which `Workdir` tells."""
    try:
        found = parse_json((local_path(path) / CONFIG_FILE).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _check_same(path: Path, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    before, now = dict(leaves(known)), dict(leaves(given))
    different = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key, "(absent)") != now.get(key, "(absent)") and not key.startswith(_FREE)
    )
    if different:
        key = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise UserError(
            f"{path}: belongs to another config: {key} is {before.get(key, '(absent)')!r} there and "
            f"{now.get(key, '(absent)')!r} here{more}; give another --workdir, or the config that it was made with"
        )


def _difference(before: Fingerprint, now: Fingerprint) -> str:
    """Returns a difference that the user can see: sizes and rows where they differ, the beginning of the checksums."""
    parts = [
        f"{getattr(before, field):,} {what} then, {getattr(now, field):,} now"
        for field, what in (("rows", "rows"), ("size", "bytes"))
        if getattr(before, field) != getattr(now, field)
    ]
    return "; ".join([*parts, f"SHA-256 {before.sha256[:12]} then, {now.sha256[:12]} now"])


def _git_revision() -> str | None:
    """Revision of the checkout that the package runs from; None for an installed copy."""
    try:
        command = ["git", "-C", str(Path(prl_jax.__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
