"""What README and the pages of docs name is there: files, kinds of stages, keys of configs, flags, methods."""

import importlib.util
import re
from pathlib import Path

import pages
import pytest
from ml_collections import ConfigDict

from prl_jax.commands import flags
from prl_jax.config.rules import value_at
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.methods import METHODS
from prl_jax.runs.judges import JUDGES
from prl_jax.stages import KINDS
from prl_jax.stages import config as c

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/methods.md",
    "docs/pairs.md",
    "docs/rewards.md",
    "docs/adding.md",
    "docs/parity.md",
)
MODEL = pages.ROOT / "tests" / "configs" / "models" / "qwen3_0_6b"


def text_of(page: str) -> str:
    return (pages.ROOT / page).read_text()


def config_of(file: str, arguments: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(Path(file).stem, pages.ROOT / "experiments" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page):
    text = text_of(page)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    paths = re.findall(r"(?<![\w/.-])(?:prl_jax|tests|docs|experiments|benchmarks|notebooks)/[\w/.]*\w", text)
    assert [link for link in links if not ((pages.ROOT / page).parent / link).exists()] == []
    assert [path for path in paths if not (pages.ROOT / path).exists() and "row_NN" not in path] == []


def test_the_table_of_kinds_is_the_table_of_kinds():
    section = pages.sections("README.md")["Configs"]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(KINDS)
    assert all(f"`{kind}`" in section for kind in JUDGES)


def test_keys_that_are_set_on_a_command_line_exist():
    files = {"quickstart.py": "grpo", "own_model.py": f"{MODEL},pairs.jsonl", "direct.py": "dpo"}
    configs = [config_of(file, words) for file, words in files.items()]
    named = {key for page in PAGES for key in re.findall(r"--config\.([\w.]*\w)", text_of(page))} - {"a.b"}
    assert len(named) >= 6
    for key in named:
        assert any(_has(config, key) for config in configs), key


def _has(config: ConfigDict, key: str) -> bool:
    try:
        value_at(config, key)
    except (AttributeError, KeyError):
        return False
    return True


def test_flags_of_the_commands_about_rows_exist():
    section = pages.sections("README.md")["Command line"]
    known = {*flags.judge_flags(()), *flags.generate_flags(())}
    for line in re.findall(r"^(?:prl (?:judge|generate) .*|\| `--.*)$", section, re.MULTILINE):
        assert set(re.findall(r"--(\w+)", line)) <= known, line


def test_methods_of_the_quickstart_are_methods():
    text = "\n".join(map(text_of, PAGES))
    named = set(re.findall(r"(?:quickstart|online)\.py:(?:smoke,)?(\w+)", text)) - {"smoke", "full", "NAME"}
    assert named - {"reinforce"} <= METHODS.keys() and "grpo" in named


# What the right column of the table in CHANGELOG.md says, as values of a stage.
NEW_KEYS = {
    "pairwise_rl": [
        dict(opponents=dict(kind="pool", draws=2), reward=dict(map="centred")),
        dict(opponents=dict(stage="anchors"), baseline=dict(sees_opponent=True)),
    ],
    "ppo": [
        dict(critic=dict(optimizer=dict(warmup="1 steps"), warmup="5 steps"), optimizer=dict(warmup="1 steps")),
        dict(epochs=1, minibatches=1, accumulate=2, missing_eos_penalty=0.1, mask_truncated=True),
        dict(baseline=dict(gamma=0.9, lam_actor=0.9, lam_critic=0.9, whiten=False, bootstrap_truncated=True)),
        dict(baseline=dict(weight=0.5, clip=0.2), surrogate=dict(low=0.1, high=0.3, dual=3.0, reduce="token_mean")),
        dict(regulariser=dict(coefficient=0.1, entropy=0.01, steer=(6.0, 1000))),
        dict(regulariser=dict(kind="loss_kl", estimator="k2")),
    ],
}


@pytest.mark.parametrize(("method", "values"), [(m, values) for m, sections in NEW_KEYS.items() for values in sections])
def test_keys_that_the_changelog_names_can_be_set(method, values):
    table = text_of("CHANGELOG.md").split("| before | now |")[1].split("\n\n")[0]
    inner = [key for value in values.values() if isinstance(value, dict) for key in value]
    assert all(key in table for key in (*values, *inner))
    policy = c.online(method, judge="bt" if method == "ppo" else "gold", prompts=c.source(limit=512), **values)
    stages = dict(sft=c.sft(), bt=c.bradley_terry(init_from="sft"), anchors=c.anchors(prompts=c.source(limit=512)))
    check_config(c.build({**stages, "policy": policy}))


def test_keys_that_are_gone_are_refused():
    with pytest.raises(UserError, match="no key 'algorithm'"):
        c.online("ppo", algorithm=dict(kl_coef=0.1))
