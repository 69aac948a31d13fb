"""The examples of docs/adding.md do what the page says."""

from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
from fakes import UtilityJudge, make_decoder, make_rollout, on_mesh, one_device, user
from ml_collections import ConfigDict
from transformers import MinistralConfig

from prl_jax.commands.run import run_stages
from prl_jax.data import parsers
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.sources import SourceSpec, load_records
from prl_jax.errors import UserError
from prl_jax.file_names import RESULT_FILE
from prl_jax.inputs.checks import check_config
from prl_jax.methods import METHODS, PIECES, Method, Reward, method_of, sections
from prl_jax.metrics import read_result
from prl_jax.models import LOGICAL_AXES
from prl_jax.models.hf import config as hf_config
from prl_jax.models.hf import decoder_config, export_config
from prl_jax.models.hf.families import FAMILIES
from prl_jax.optim import make_optimizer
from prl_jax.runs.context import StageContext
from prl_jax.runs.judges import JUDGES
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.workdir import Workdir
from prl_jax.stages import KINDS, online_section
from prl_jax.stages import config as c
from prl_jax.stages.kind import Kind
from prl_jax.training.compare import rewards_of
from prl_jax.training.policy import Schedule, make_updates, prepare, run_updates
from prl_jax.training.state import create_state, initial_state

PAGE = pages.sections("docs/adding.md")


def test_every_row_of_the_first_table_has_its_section():
    named = [line.split("|")[1].strip() for line in PAGE["Adding to it"].splitlines() if line.startswith("| a ")]
    titles = [title.lower() for title in PAGE if title != "Adding to it"]
    assert len(named) == len(titles) and all(title.startswith(name) for name, title in zip(named, titles, strict=True))


def test_a_method(monkeypatch):
    row = pages.run(PAGE["A method"])["row"]
    monkeypatch.setattr(online_section, "METHODS", {**METHODS, "reinforce": row})
    section = ConfigDict(c.online("reinforce", judge="bt"))
    assert online_section.method_in(section) == row.method and not section.critic
    assert isinstance(row.method, Method) and row.group_size == section.group_size == 1

    mesh, optimizer = one_device(), make_optimizer(learning_rate=0.1, total_steps=10)
    reference = on_mesh(make_decoder(0, layers=1), mesh)
    policy = create_state(on_mesh(make_decoder(0, layers=1), mesh), optimizer, mesh, LOGICAL_AXES)
    pieces = dict(method=row.method, schedule=Schedule(epochs=1, minibatches=1))
    rollout = make_rollout(0, [2, 2], [2, 3], [False, False], room=3)
    state = initial_state(policy, None, row.method)
    experience, _ = prepare(state, reference, rollout, None, jnp.array([1.5, -0.5]), **pieces)
    np.testing.assert_allclose(experience.frozen.advantages[:, 0], [1.0, -1.0], atol=1e-5)
    updates = make_updates(row.method, pieces["schedule"], optimizer)
    state, _ = run_updates(updates, state, experience, jax.random.key(0), **pieces, train_policy=True)
    after, _ = prepare(state, reference, rollout, None, jnp.zeros(2), **pieces)
    gained = (after.frozen.logp_old - experience.frozen.logp_old).sum(1)
    assert gained[0] > 0 > gained[1]


def test_a_piece_of_methods(monkeypatch):
    names = pages.run(PAGE["A piece of methods"])
    beaten, slots = names["Beaten"], dict(PIECES)
    assert isinstance(beaten(), Reward)
    slots["reward"] = MappingProxyType({**PIECES["reward"], beaten.kind: beaten})
    monkeypatch.setattr(sections, "PIECES", slots)
    section = c.online("spo", judge="gold", reward=names["section"])
    method = method_of({slot: section[slot] for slot in PIECES})
    assert method.reward == beaten(least=0.6) and section["reward"] == names["section"]
    with pytest.raises(UserError, match=r"reward\.least=2\.0, expected at least 0 and at most 1"):
        c.online("spo", reward=dict(kind="beaten", least=2))

    # Four responses: the first beats all others, the second the last one and, by too little, the third.
    utility = {"a": 3.0, "b": 1.0, "c": 0.9, "d": 0.0}
    judge = UtilityJudge(lambda prompt, response: utility[response])
    prompts, keys = [user("p")] * 4, jax.random.split(jax.random.key(0), 1)
    asked = dict(group_size=4, anchors=[()] * 4, keys=keys)
    found = rewards_of([judge], method.opponents, method.reward, prompts, [*utility], **asked)
    np.testing.assert_allclose(found.reward, [1.0, 1 / 3, 1 / 3, 0.0])


def test_a_judge(monkeypatch, tmp_path):
    rules, in_a_config, a_kind = pages.code(PAGE["A judge"])
    (tmp_path / "my_rules.py").write_text(rules)
    monkeypatch.chdir(tmp_path)
    config = pages.run_block(in_a_config)["config"]
    check_config(config)
    judged = judge_in(config, "house")([user("q")] * 2, ["4", "four"], ["four", "4"])
    np.testing.assert_allclose(judged.p_first, [0.9, 0.1], rtol=1e-6)

    kind = pages.run_block(a_kind)["KIND"]
    monkeypatch.setitem(JUDGES, kind.name, kind)
    config = c.build({"sft": c.sft()}, judges=dict(near=c.judge("near_length", words=2)))
    check_config(config)
    judged = judge_in(config, "near")([user("q")] * 2, ["two words", "a"], ["just these three words", "b"])
    assert judged.p_first[0] > 0.8 and judged.p_first[1] == 0.5


def judge_in(config, name):
    """The judge of a config, as its stages load it."""
    context = StageContext("sft", config, Workdir(Path("run"), config), one_device())
    return LoadedModels(context).judge(name, batch_size=4)


def test_a_row_format(monkeypatch, tmp_path):
    arena, plain = pages.run(PAGE["A row format"])["arena"], parsers.plain_row

    def plain_row(row, where):
        return plain(arena(row, where) if row.get("conversation_a") is not None else row, where)

    monkeypatch.setattr(parsers, "plain_row", plain_row)
    said = lambda text: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]  # noqa: E731
    row = dict(question_id="7", model_a="x", model_b="y", conversation_a=said("one"), conversation_b=said("two"))
    rows = [{**row, "winner": winner} for winner in ("model_a", "model_b", "tie (bothbad)", "both")]
    write_jsonl(tmp_path / "arena.jsonl", [*rows, {"prompt": "q", "chosen": "a", "rejected": "b"}])
    records = load_records(SourceSpec("jsonl", str(tmp_path / "arena.jsonl")), "preference", data_dir=tmp_path)
    found = [(records[i].chosen, records[i].rejected, records[i].tie) for i in (0, 1, 2, 4)]
    assert found == [("one", "two", False), ("two", "one", False), ("one", "two", True), ("a", "b", False)]
    assert records[0].prompt == user("q") and records[0].unused == ("question_id",)
    with pytest.raises(UserError, match=r'arena.jsonl:4: field "winner" is a string \(expected one of model_a'):
        records[3]


def test_a_kind_of_stage(monkeypatch, tmp_path):
    kind = pages.run(PAGE["A kind of stage"])["KIND"]
    assert isinstance(kind, Kind)
    monkeypatch.setitem(KINDS, kind.name, kind)
    rows = [{"prompt": "q", "chosen": "a b c", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": "a b"}]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    source = c.source(kind="jsonl", path=str(tmp_path / "pairs.jsonl"))
    config = c.build(dict(counts=kind.declare(pairs=source)), logging=dict(progress=False))
    workdir = run_stages(config, tmp_path / "run")
    result = read_result(workdir.stage("counts") / RESULT_FILE)
    assert (result["kind"], result["family"]) == ("word_counts", "statistics")
    assert result["metrics"] == {"chosen_words": 2.0, "rejected_words": 1.5}
    wrong = c.build(dict(counts=kind.declare(pairs=source, first=0)))
    with pytest.raises(UserError, match=r"counts\.first=0, expected at least 1"):
        check_config(wrong)


def test_a_family_of_models(monkeypatch):
    ministral = pages.run(PAGE["A family of models"])["ministral"]
    monkeypatch.setattr(hf_config, "FAMILIES", {**FAMILIES, "ministral": ministral})
    written = MinistralConfig(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]).to_dict()
    written["architectures"] = ["MinistralForCausalLM"]
    config = decoder_config(written, "config.json")
    assert (config.width, config.kv_heads, config.window, config.windowed) == (4096, 8, 4096, (True, False))
    assert decoder_config(export_config(config, reward_model=False, source=written), "again") == config
    with pytest.raises(UserError, match="qk_norm=True .unknown"):
        decoder_config({**written, "qk_norm": True}, "config.json")
