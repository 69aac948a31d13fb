"""The releases of flax and JAX that are allowed go together on every Python; a pair that does not is one line."""

import itertools
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from running import ROOT, refused, says

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# The releases from the oldest that works to the newest that was tried.
FLAX = ("0.12.8", "0.12.9", "0.12.10", "0.12.12")
JAX = ("0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def allowed(name: str, releases: tuple[str, ...], python: str, extra: str = "") -> list[Version]:
    """The releases of a package that the requirements of the project, and those of an extra, allow on a Python."""
    lines = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    bounds = [r for r in map(Requirement, lines) if r.name == name]
    bounds = [r for r in bounds if r.marker is None or r.marker.evaluate({"python_version": python})]
    assert bounds, f"nothing bounds {name} on Python {python}"
    return [v for v in map(Version, releases) if all(v in r.specifier for r in bounds)]


def can_be_imported(flax: Version, jax: Version) -> bool:
    """flax 0.12.8 asks jax for a class that 0.11.1 took away; later ones ask for what that release brought."""
    return (flax >= Version("0.12.9")) == (jax >= Version("0.11.1"))


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
@pytest.mark.parametrize("python", PYTHONS)
def test_whatever_a_resolver_takes_can_be_imported(python, extra):
    pairs = list(itertools.product(allowed("flax", FLAX, python, extra), allowed("jax", JAX, python, extra)))
    assert pairs and all(can_be_imported(*pair) for pair in pairs)


def test_each_python_may_have_the_newest_release_for_it():
    newest = {python: (allowed("flax", FLAX, python)[-1], allowed("jax", JAX, python)[-1]) for python in PYTHONS}
    first, last = (Version("0.12.8"), Version("0.10.2")), (Version("0.12.12"), Version("0.12.0.1"))
    assert newest == {"3.11": first, "3.12": last, "3.13": last, "3.14": last}
    assert all(f"Programming Language :: Python :: {python}" in PROJECT["classifiers"] for python in PYTHONS)


def test_what_is_installed_here_is_allowed_here():
    for name in ("flax", "jax"):
        version = metadata.version(name)
        assert allowed(name, (version,), THIS_PYTHON), f"{name} {version}"


@pytest.mark.parametrize(("flax", "jax"), [("0.12.8", "0.11.1"), ("0.12.8", "0.12.0.1"), ("0.12.7", "0.13.0.dev1")])
def test_a_pair_that_cannot_be_imported_is_one_line(flax, jax, monkeypatch):
    monkeypatch.setattr(metadata, "version", {"flax": flax, "jax": jax}.__getitem__)
    says(refused("report", "--workdir", "nowhere"), f"flax {flax}", f"jax {jax}", "pip install --upgrade flax")


@pytest.mark.parametrize(("flax", "jax"), [("0.12.8", "0.11.0"), ("0.12.10", "0.11.1"), ("0.13.0", "0.12.0.1")])
def test_other_pairs_are_not_refused(flax, jax, monkeypatch):
    monkeypatch.setattr(metadata, "version", {"flax": flax, "jax": jax}.__getitem__)
    says(refused("report", "--workdir", "nowhere"), "no such workdir")
