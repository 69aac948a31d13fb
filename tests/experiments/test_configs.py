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
from prl_jax.methods import METHODS
from prl_jax.recipes.judges import WORDS
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
VARIANTS = {
    "quickstart": ("", ":full", ":smoke"),
    "online": (":uwo", ":paco_grpo"),
    "direct": (":dpo", ":sppo"),
    "iterative": (":cream", ":mnpo"),
    **{name: (f":{MODEL},pairs.jsonl",) for name in WITH_MODEL},
}
METHOD_FILES = ("quickstart", "online", "own_model")
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


def test_every_method_has_its_config_with_the_judges_that_it_can_use():
    quickstart, online, own = (module_of(ROOT / "experiments" / f"{name}.py") for name in METHOD_FILES)
    for name, preset in METHODS.items():
        check_config(quickstart.get_config(f"smoke,{name}"))
        check_config(own.get_config(f"{MODEL},pairs.jsonl,{name}"))
        config = online.get_config(name)
        check_config(config)
        assert config.stages[-2:] == (name, "evaluation") and config.evaluation.arms[name].title == preset.title
        assert ("anchors" in config.stages) == (preset.method.opponents.candidates == "anchors")
        for word in WORDS:
            scores = word in ("gold", "genrm") and preset.method.reward.asks == "scores"
            if scores or word != preset.judge.get("kind", word):
                with pytest.raises(ValueError, match=f"{name},{word}: .* {'use' if not preset.judge else 'leave'} "):
                    online.get_config(f"{name},{word}")
            else:
                judged = online.get_config(f"{name},{word},smoke")
                assert judged.evaluation.arms[name].judge in {word, "bt"}  # two of these stand for an ensemble
                if word == "gold":
                    check_config(judged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("", "expected NAME"), ("grop", "expected NAME"), ("p3o,bt,gold", "expected NAME"), ("p3o,none", "no such judge")],
)
def test_what_is_no_method_or_no_judge_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        module_of(ROOT / "experiments" / "online.py").get_config(arguments)


def test_members_of_an_ensemble_and_judges_of_a_reward_are_stages_that_train():
    online = module_of(ROOT / "experiments" / "online.py")
    careful, several, lsc = (online.get_config(name) for name in ("uwo", "paco_grpo", "lsc"))
    assert careful.judges.ensemble.to_dict() == c.judge(
        "ensemble", of=("bt", "bt_2", "bt_3"), combine="uwo", coefficient=0.1
    )
    assert careful.uwo.judge == "ensemble" and careful.stages[1:4] == careful.judges.ensemble.of
    assert several.paco_grpo.judge == "" and several.stages[1:3] == several.paco_grpo.reward.judges == ("bt", "bt_2")
    assert (lsc.anchors.keep, several.anchors.keep) == (4, 1)


def test_a_third_word_of_own_model_is_a_method_and_two_words_are_pairwise_rl():
    own, given = module_of(ROOT / "experiments" / "own_model.py"), f"{MODEL},pairs.jsonl"
    plain, rloo = own.get_config(given), own.get_config(f"{given},rloo")
    assert plain.to_dict() == own.get_config(f"{given},pairwise_rl").to_dict() and "pairwise_ppo" in plain.stages
    assert rloo.stages == ("bt", "referee", "rloo", "evaluation") and rloo.rloo.prompts_per_step == 16
    lsc, par = (own.get_config(f"{given},{name}").anchors for name in ("lsc", "par"))
    assert (lsc.choice, lsc.keep, lsc.policy, lsc.judge) == (
        "best_of_n",
        4,
        str(MODEL),
        "bt",
    ) and par.choice == "reference"
    assert own.get_config(f"{MODEL},some,pairs.jsonl").genrm.data.path == "some,pairs.jsonl"
    with pytest.raises(ValueError, match="'grop' is no method"):
        own.get_config(f"{given},grop")


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

    def capture(config: ConfigDict, path: Path, stop: Any, **_: Any) -> None:
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
    # No stages: what the stages check themselves.
    told |= {"online": {"watch"}, "direct": {"certainty", "precomputed"}}.get(kind, set())
    texts = {key for key, value in keys.items() if isinstance(value, str)} - told
    assert {key for key in texts if not key.endswith((".kind", ".path", ".split"))} == set()
