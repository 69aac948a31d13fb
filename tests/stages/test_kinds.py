"""A kind of stage is one object in its own file, and one row of the table."""

import ast
import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest
from configs import micro, rounds
from fakes import one_device
from ml_collections import ConfigDict
from running import unoptimised

import prl_jax
from prl_jax.artifacts.cards import ModelCard, read_card
from prl_jax.commands.run import run_stages
from prl_jax.config.declare import filled
from prl_jax.config.rules import NONE, Rules
from prl_jax.costs.models import AbstractModels, held_bytes
from prl_jax.costs.work import Estimate
from prl_jax.data.rows import encode_sft
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.inputs.lengths import uses
from prl_jax.plan.functions import abstract_steps
from prl_jax.plan.work import expected_work
from prl_jax.runs.models import LoadedModels
from prl_jax.sharding import AXES
from prl_jax.stages import KINDS, supervised
from prl_jax.stages import config as c
from prl_jax.stages.kind import Checking, Kind, Reads
from prl_jax.stages.supervised_costs import demonstrations, fitting_costs
from prl_jax.training.sft import SFT

ROOT = Path(prl_jax.__file__).parent
WRITES = {
    "policy": ("policy",),
    "judge": ("scalar_judge", "generative_judge"),
    "pairs": ("",),
    "anchors": ("",),
    "evaluation": ("",),
}


@pytest.fixture(scope="module")
def known():
    """Configs that have every kind of stage between them."""
    return [Checking(config.get_config(), KINDS) for config in (micro, rounds)]


def test_a_word_of_older_configs_is_refused_beside_the_words_of_today():
    with pytest.raises(UserError, match="no key 'baseline'; known: .* opponent, "):
        c.evaluation(baseline="sft")


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_complete(name, known):
    kind = KINDS[name]
    known = next(one for one in known if any(one.config[stage].kind == name for stage in one.config.stages))
    config = known.config
    section = ConfigDict(kind.declare())
    assert kind.name == name == section.kind and vars(c)[name] is kind.declare
    assert kind.family in WRITES and kind.writes in WRITES[kind.family]
    assert kind.card is None or kind.card(section).kind == kind.writes
    what, rows = kind.rows(section)
    assert what and rows >= 0
    with pytest.raises(UserError, match="no key 'nonsense'"):
        kind.declare(nonsense=1)
    models = AbstractModels(config, one_device(), known.card)
    estimate = Estimate(models, lambda stage, key: 10)
    for stage in (stage for stage in config.stages if config[stage].kind == name):
        unused = kind.rules.unused(config[stage])
        read = [key for key in kind.rules.sources if key not in unused]
        assert all(list(kind.reads(stage, config[stage], key)) for key in read)
        calls, held = list(kind.costs.calls(estimate, stage)), list(kind.costs.held(models, stage))
        copies = config[stage].get("choice") == "reference"  # text, without a model
        assert bool(calls) == bool(held) == (not copies)
        assert all(size > 0 for one in held for size in held_bytes(one).values())
        assert kind.costs.smaller(config[stage], stage, "judge", dict.fromkeys(AXES, 1))


# What is spelled like a kind and is none: the name -> where, and what it is there.
OTHER_MEANINGS = {
    "sft": {
        "data/gold/arguments.py": "a kind of record",
        "data/gold/builder.py": "a kind of record",
        "data/parsers.py": "a kind of record",
        "inputs/checks_of_data.py": "a kind of record",
        "stages/anchors.py": "the stage that a section names by default",
        "stages/evaluation.py": "the stage that a section names by default",
        "stages/online_section.py": "the stage that a section names by default",
        "recipes/direct.py": "a stage of the recipe",
        "recipes/own.py": "a stage of the recipe",
        "recipes/rounds.py": "the policy that rounds start from by default",
        "stages/direct_section.py": "the stage that a section names by default, and a term of a loss",
        "stages/pairs_section.py": "the stage that a section names by default",
        "training/direct.py": "a term of a loss",
        "recipes/built_in.py": "a stage of the recipe",
        "reporting/inputs.py": "workdirs from before results said their family",
        "recipes/comparison.py": "a stage of the recipe",
    },
    "online": {},
    "bradley_terry": {"reporting/inputs.py": "workdirs from before results said their family"},
    "generative": {"reporting/inputs.py": "workdirs from before results said their family"},
    "anchors": {
        "methods/method.py": "a key of a section",
        "methods/opponents.py": "a field of a piece",
        "stages/online_checks.py": "a kind of opponents, and a family",
        "stages/evaluation.py": "a key of a section",
        "reporting/inputs.py": "a family",
        "recipes/comparison.py": "a stage of the recipe",
    },
    "pairs": {
        "cli.py": "a command",
        "commands/flags.py": "a command",
        "inputs/checks.py": "a family",
        "methods/rewards.py": "what a judge is asked",
        "methods/selection.py": "what a selection gives",
        "recipes/direct.py": "a stage of the recipe",
        "reporting/figures.py": "a key of the summary",
        "reporting/tables.py": "a key of the summary",
        "stages/evaluation.py": "a key of a section",
        "stages/evaluation_costs.py": "a key of a section",
        "training/compare.py": "what a judge is asked",
    },
    "direct": {
        "methods/__init__.py": "a module",
        "training/direct.py": "a term of a loss",
    },
    "evaluation": {
        "commands/shortage.py": "a function",
        "recipes/direct.py": "a stage of the recipe",
        "recipes/comparison.py": "a stage of the recipe",
        "stages/online_costs.py": "the beginning of names of functions",
        "reporting/inputs.py": "a family",
        "reporting/names.py": "a key of a section",
    },
}


def test_nothing_outside_its_file_and_the_table_names_a_kind():
    found = {name: set() for name in KINDS}
    for path in sorted(ROOT.rglob("*.py")):
        place = str(path.relative_to(ROOT))
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        for name in set(KINDS) & {word for word in words if isinstance(word, str)}:
            # `stages/config.py` spells the names that config files use.
            if place not in ("stages/config.py", *(f"stages/{name}{part}.py" for part in ("", "_section"))):
                found[name].add(place)
    assert found == {name: set(OTHER_MEANINGS[name]) for name in KINDS}


def dummy_section(**values):
    """The section of the dummy kind."""
    defaults = dict(kind="dummy", max_prompt=12, max_response=6)
    return filled({**supervised.shared_section(), **defaults}, values, "dummy")


def dummy_card(section):
    """What the dummy's directory says of its policy."""
    return ModelCard("policy", {}, section.max_prompt, section.max_response)


def run_dummy(context):
    """Trains on the demonstrations of its source."""
    section, models = context.section, LoadedModels(context)
    records = context.records(section.data, "sft")
    encode = functools.partial(encode_sft, models.tokenizer, max_prompt=12, max_response=6, train_on="last")
    task = supervised.Supervised(
        card=dummy_card(section),
        models=models,
        fit=DUMMY_FIT,
        verdicts=(0, 0),
        records=records,
        validation=records[:8],
        encode=encode,
        sample=lambda model: [{"prompt": "nothing"}],
        counters={"dummies": 1},
    )
    return supervised.train(context, task)


DUMMY_FIT = supervised.Fit(lambda section, verdicts, packed: SFT)
DUMMY = Kind(
    name="dummy",
    family="policy",
    declare=dummy_section,
    rules=Rules(
        sources={"data": "sft", "validation": "sft"},
        at_least={"batch_size": 8},
        **{**supervised.RULES, "stages": {"init_from": ("policy", NONE)}},
    ),
    run=run_dummy,
    reads=lambda name, section, key: iter([Reads(name)]),
    checks=supervised.CHECKS,
    costs=fitting_costs(DUMMY_FIT, demonstrations, every_token=True),
    writes="policy",
    card=dummy_card,
)


@pytest.fixture
def dummy(monkeypatch):
    """A config with a stage of the dummy kind, and a reward model and a policy that start from it."""
    monkeypatch.setitem(KINDS, "dummy", DUMMY)
    little = dict(batch_size=8, log_every="1 steps", save_every="2 steps", evaluate_every="2 steps")
    small, prompts = dict(duration="2 steps", **little), c.source(limit=8)
    stages = dict(
        mine=dummy_section(**small),
        bt=c.bradley_terry(init_from="mine", max_prompt=12, max_response=6, **small),
        copied=c.anchors(prompts=prompts, choice="reference"),
        better=c.online("ppo", policy="mine", judge="bt", prompts=prompts, prompts_per_step=8),
    )
    shared = {key: value for key, value in micro.get_config().items() if key in ("gold", "model")}
    return c.build(stages, **{key: value.to_dict() for key, value in shared.items()})


def some_stages(config, *names):
    """The config with these of its stages alone."""
    config = config.copy_and_resolve_references().unlock()
    config.stages = names
    return config.lock()


def test_a_new_kind_is_checked_measured_and_planned(dummy):
    check_config(dummy)
    for key, value, words in (("batch_size", 7, "at least 8"), ("init_from", "copied", "does not run before mine")):
        wrong = dummy.copy_and_resolve_references()
        wrong.mine[key] = value
        with pytest.raises(UserError, match=f"mine.{key}=.*{words}"):
            check_config(wrong)
    assert ("mine", "data", "sft", "mine", "") in list(uses(dummy))
    mesh = one_device()
    with jax.set_mesh(mesh):
        names = [step.name for step in abstract_steps(dummy, mesh)]
    assert names[:4] == ["mine/train_step", "mine/validation", "bt/train_step", "bt/validation"]
    assert {"better/decode", "better/judge", "better/update"} <= set(names)
    work = {one.stage: one for one in expected_work(dummy, mesh, lambda stage, key: 64)}
    assert work["mine"].flops > 0 and work["mine"].held.keys() == {"parameters", "optimizer"}


def test_a_new_kind_runs(dummy, tmp_path):
    with unoptimised():
        workdir = run_stages(some_stages(dummy, "mine", "copied"), tmp_path / "run")
    result = json.loads((workdir.stage("mine") / "result.json").read_text())
    assert (result["kind"], result["family"], result["metrics"]["dummies"]) == ("dummy", "policy", 1)
    card = read_card(workdir.stage("mine"))
    assert dataclasses.replace(card, decoder={}) == dummy_card(dummy.mine) and card.config.width == 16
    assert json.loads((workdir.stage("copied") / "result.json").read_text())["family"] == "anchors"
