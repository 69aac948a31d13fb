"""Every shipped config builds, says what it takes, and can be overridden key by key."""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from running import ROOT, refused

from prl_jax.commands import run
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.stages import KINDS
from prl_jax.stages import config as c

FILES = sorted((ROOT / "experiments").glob("*.py"))
MODEL = ROOT / "tests" / "configs" / "models" / "qwen3_0_6b"
WITH_MODEL = (
    "own_model",
    "qwen3_0_6b_lora_gpu",
    "gemma3_4b_h100x8",
    "gemma3_4b_v6e_4x4",
    "llama3_2_1b_v5e_4x4",
    "llama3_8b_v5e_8x8",
    "llama3_8b_v5p_4x4x4",
)
VARIANTS = {"quickstart": ("", ":full", ":smoke"), **{name: (f":{MODEL},pairs.jsonl",) for name in WITH_MODEL}}
CONFIGS = [f"{path}{variant}" for path in FILES for variant in VARIANTS.get(path.stem, ("",))]


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(name: str) -> ConfigDict:
    path, _, variant = name.partition(":")
    return module_of(Path(path)).get_config(*([variant] if variant else []))


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_there_are_configs():
    assert {"quickstart", "ukp_judges", "hh_pairwise_ppo"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("name", CONFIGS, ids=os.path.basename)
def test_it_builds_locked_with_declared_keys_only(name, monkeypatch):
    monkeypatch.delenv("PRL_DATA_DIR", raising=False)  # building needs no data
    config = config_of(name)
    assert isinstance(config, ConfigDict) and config.is_locked and config.title
    for section in (config, *(config[stage] for stage in config.stages)):
        with pytest.raises(AttributeError):
            section.no_such_key = 1
    check_config(config)
    assert set(config) == set(c.build({})) | set(config.stages)
    assert config.stages[-1] == "evaluation"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_docstring_says_what_to_type_and_what_to_expect(path):
    text = module_of(path).__doc__
    assert f"prl run --config experiments/{path.name}" in text and "--workdir" in text
    for variant in VARIANTS.get(path.stem, ("",))[2:]:
        assert f"{path.name}{variant}" in text
    for word, told in (
        ("Hardware", r".*\d.* (CPU|GPU|TPU)"),
        ("Time", r".*\d+ (second|minute)"),
        ("Result", r"[^.]*\d"),
    ):
        assert re.search(rf"^{word}: {told}", text, re.MULTILINE), f"{word} is not told"
    uses_data = "PRL_DATA_DIR" in path.read_text().replace(text, "")
    assert ("PRL_DATA_DIR" in text) == uses_data


def test_the_smoke_test_is_the_quickstart_with_less_of_everything():
    path = str(ROOT / "experiments" / "quickstart.py")
    full, smoke = config_of(path), config_of(path + ":smoke")
    assert full.stages == smoke.stages and dict(leaves(config_of(path + ":full"))) == dict(leaves(full))
    mine, theirs = dict(leaves(full)), dict(leaves(smoke))
    assert mine.keys() == theirs.keys()
    changed = {key for key in mine if mine[key] != theirs[key]}
    sizes = (
        "model.layers",
        "duration",
        "limit",
        "_rows",
        "batch_size",
        "samples",
        "bootstrap",
        "prompts_per_step",
        "_every",
        "every",
        "title",
    )
    assert changed and all(key.endswith(sizes) or ".evaluation." in key for key in changed), changed
    with pytest.raises(ValueError, match="expected 'full', 'smoke', or a method"):
        module_of(Path(path)).get_config("small")


def another(value: Any) -> Any:
    """A different value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (1, 2) if value and isinstance(value[0], int) else ("some", "words here")
    return value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("name", CONFIGS, ids=os.path.basename)
def test_every_key_can_be_overridden(name, monkeypatch, tmp_path):
    captured = []

    def capture(config: ConfigDict, path: Path, stop: Any) -> None:
        captured.append(config)
        raise UserError("captured")

    monkeypatch.setattr(run, "run_stages", capture)
    wanted = {key: another(value) for key, value in leaves(config_of(name))}
    assert {type(value) for value in wanted.values()} == {str, int, float, bool, tuple} and len(wanted) > 60
    flags = [f"--config.{key}={value}" for key, value in wanted.items()]
    assert refused("run", f"--config={name}", *flags, "--workdir", tmp_path) == "prl: captured"
    found = dict(leaves(captured[0]))
    assert found == wanted and all(type(found[key]) is type(wanted[key]) for key in wanted)
    # Flags with a space; a switch.
    spaced = ("--config", name, "--config.seed", "7", "--noconfig.logging.progress", "--workdir", str(tmp_path))
    assert refused("run", *spaced) == "prl: captured"
    assert captured[1].seed == 7 and captured[1].logging.progress is False
    assert {k: v for k, v in leaves(captured[1]) if k not in ("seed", "logging.progress")} == {
        k: v for k, v in leaves(config_of(name)) if k not in ("seed", "logging.progress")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_know_every_source_optimizer_duration_and_stage_of_a_section(kind):
    """What is added to a section later is not forgotten in what is checked before a run."""
    section, rules = ConfigDict(KINDS[kind].declare()), KINDS[kind].rules
    every = dict(leaves(section))
    # What depends on a kind within is checked by the stage itself.
    keys = {key: value for key, value in every.items() if key.split(".")[0] not in rules.unions}
    assert keys["kind"] == kind
    assert {key.removesuffix(".split") for key in keys if key.endswith("split")} == set(rules.sources)
    assert {key.removesuffix(".b2") for key in keys if key.endswith("b2")} == set(rules.optimizers)
    durations = {key for key, value in keys.items() if isinstance(value, str) and re.fullmatch(r"\d+ ?(%|\w+)", value)}
    assert durations == {*rules.lengths, *rules.durations}
    assert {*rules.stages, *rules.choices, *rules.at_least} <= set(keys)
    told = {*rules.stages, *rules.choices, *durations, "kind", *(f"{key}.schedule" for key in rules.optimizers)}
    texts = {key for key, value in keys.items() if isinstance(value, str)} - told
    assert {key for key in texts if not key.endswith((".kind", ".path", ".split"))} == set()
