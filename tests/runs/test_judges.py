"""Judges by name: a section of the config, any kind, wherever a stage asks."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import make_setup, policy_state
from fakes import make_decoder, user
from ml_collections import ConfigDict
from running import prl, refused, says

from prl_jax.costs.models import AbstractModels
from prl_jax.data.jsonl import write_jsonl
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.inputs.checks_of_data import check_inputs, recognise_models
from prl_jax.inputs.lengths import uses
from prl_jax.inputs.measurements import Measurements
from prl_jax.judges import GoldJudge, PythonJudge, load_function
from prl_jax.plan.functions import abstract_steps
from prl_jax.plan.work import expected_work
from prl_jax.runs.context import StageContext
from prl_jax.runs.judges import JUDGES
from prl_jax.runs.judges.kind import JudgeKind
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import KINDS
from prl_jax.stages import config as c
from prl_jax.stages.kind import Checking
from prl_jax.stages.online_samples import roll_out
from prl_jax.text.chat import encode_prompt, encode_response

RULES = """
def shorter(prompts, first, second):
    return [0.9 if len(a) < len(b) else 0.1 if len(a) > len(b) else 0.5 for a, b in zip(first, second)]

def brevity(prompts, responses):
    return [-len(text) for text in responses]

def broken(prompts, first, second):
    return [float("nan") if i == 1 else 0.5 for i, _ in enumerate(first)]
"""


@pytest.fixture
def rules(tmp_path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(RULES)
    return path


def config_with(judges, **section):
    prompts = c.source(limit=8)
    stages = dict(
        sft=c.sft(max_prompt=12, max_response=6),
        policy=c.online("pairwise_rl", opponents=dict(kind="peer"), group_size=2, prompts=prompts, **section),
        evaluation=c.evaluation(judges=tuple(judges), prompts=prompts, arms=dict(policy=dict(title="P", judge=""))),
    )
    return c.build(stages, judges=judges)


def judge_in(config, name: str, tmp_path):
    context = StageContext("policy", config, Workdir(tmp_path / "run", config), make_mesh())
    return LoadedModels(context).judge(name, batch_size=4)


def test_a_function_and_the_exact_judge_are_asked_by_their_names(rules, tmp_path):
    judges = {"house": c.judge("python", path=f"{rules}:shorter"), "exact": c.judge("gold")}
    config = config_with(judges, judge="house", evaluation=dict(judge="exact"))
    check_config(config)
    asked = judge_in(config, "house", tmp_path)([user("a"), user("b")], ["x", "xxx"], ["xx", "x"])
    np.testing.assert_allclose(asked.p_first, [0.9, 0.1], rtol=1e-6)
    assert isinstance(judge_in(config, "exact", tmp_path), GoldJudge)
    assert isinstance(judge_in(config, "gold", tmp_path), GoldJudge)  # every config has it


def test_a_trained_judge_by_another_name_is_the_model_behind_it():
    stages = dict(
        sft=c.sft(max_prompt=12, max_response=6),
        bt=c.bradley_terry(init_from="sft"),
        policy=c.online("ppo", judge="taste", prompts=c.source(limit=8)),
    )
    config = c.build(stages, judges={"taste": c.judge("model", model="bt")})
    check_config(config)
    assert {use.model for use in uses(config) if use.stage == "policy"} == {"sft", "bt"}
    config = ConfigDict(config.to_dict())
    config.judges.taste.model = "sft"
    with pytest.raises(UserError, match=r"policy.judge='taste': judges.taste.model='sft' is a sft stage"):
        check_config(config)


def test_scores_are_asked_of_who_has_them(rules):
    scoring = {"house": c.judge("python", path=f"{rules}:brevity", gives="scores")}
    stages = lambda judge: dict(sft=c.sft(), policy=c.online("rloo", judge=judge, prompts=c.source(limit=8)))  # noqa: E731
    check_config(c.build(stages("house"), judges=scoring))
    with pytest.raises(UserError, match="policy.judge='gold' compares, and does not score .* expected one of: 'house'"):
        check_config(c.build(stages("gold"), judges=scoring))


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ({"house": {"kind": "oracle"}}, "judges.house: is no judge"),
        ({"house": c.judge("python", path="nowhere.py:f")}, r"judges.house.path: .*nowhere.py"),
        ({"house": c.judge("python", gives="stars", path="x.py:f")}, "judges.house.gives='stars'"),
        ({"house": c.judge("model")}, "judges.house.model: empty"),
        ({"house": {"kind": "gold", "path": ""}}, "judges.house.path: no such key"),
        ({"v": c.judge("verifier", check="taste")}, "judges.v.check='taste', expected one of 'exact', 'number'"),
        ({"v": c.judge("verifier", tolerance=0.1)}, "judges.v.tolerance=0.1: check='exact' does not read it"),
        ({"v": c.judge("verifier", check="number", tolerance=-1.0)}, "judges.v.tolerance=-1.0, expected at least 0"),
        ({"v": c.judge("verifier", even=3.5)}, "judges.v.even=3.5: check='exact' does not read it"),
        ({"v": c.judge("verifier", check="regex")}, "judges.v.pattern: empty"),
        ({"v": c.judge("verifier", check="regex", pattern="(")}, r'judges.v.pattern: "\(" is no regular expression'),
        (
            {"v": c.judge("verifier", check="regex", pattern="a", answers=c.source(split="test"))},
            r"judges.v.answers: the pattern has no group \(\?P<answer>",
        ),
        ({"v": c.judge("verifier", answers=c.source(kind="csv"))}, "judges.v.answers.kind='csv', expected one of"),
        ({"r": c.judge("density_ratio")}, "judges.r.strong: empty, expected a stage that trains a policy"),
        ({"r": c.judge("density_ratio", weak="sft")}, "judges.r.strong: empty, expected a stage"),
        (
            {"r": c.judge("density_ratio", strong="./a", weak="sft", length="max")},
            "judges.r.length='max', expected one of 'sum', 'mean'",
        ),
        (
            {"r": c.judge("density_ratio", strong="./a", weak="sft", beta=0.0)},
            "judges.r.beta=0.0, expected more than 0",
        ),
        (
            {"r": c.judge("density_ratio", strong="sft", weak="sft")},
            "judges.r.weak='sft': is the strong model too, so that every score is 0",
        ),
        ({"n": c.judge("annotator", noise=0.6)}, "judges.n.noise=0.6, expected 0 to 0.5, or -1: what the section gold"),
        ({"n": c.judge("annotator", ties=-0.5)}, "judges.n.ties=-0.5, expected 0 to 1, or -1"),
        ({"n": c.judge("annotator", seed=-1)}, "judges.n.seed=-1, expected at least 0"),
        ({"sft": c.judge("gold")}, "judges.sft: a judge has a name of its own"),
        ({"a/b": c.judge("gold")}, "judges.a/b: a judge has a name of its own"),
        ({"house": c.judge("model", model="house")}, "judges.house.model='house': is one of judges"),
        ({"house": c.judge("model", model="gold")}, "judges.house.model='gold': is one of judges"),
        (
            {"gold": c.judge("model", model="./judge")},
            "judges.gold.kind='model', expected 'gold', as every config",
        ),
    ],
)
def test_judges_that_cannot_be_are_refused_by_key(judges, message):
    with pytest.raises(UserError, match=message):
        check_config(config_with(judges, judge="gold"))


@pytest.mark.parametrize("kind", [dict(kind="gold"), dict(kind="model", model="sft")])
@pytest.mark.parametrize("key", ["policy.policy", "more.init_from", "evaluation.opponent", "evaluation.arms"])
def test_a_judge_is_no_model_to_start_from(key, kind):
    """Also where a stage that trains a policy stands behind its name."""
    config = c.build(
        dict(
            sft=c.sft(),
            more=c.sft(init_from="sft"),
            policy=c.online("spo", judge="gold", prompts=c.source(limit=8)),
            evaluation=c.evaluation(),
        ),
        judges=dict(taste=c.judge(**kind)),
    )
    check_config(config)
    arms = {"taste": dict(title="", judge="")}
    config.update_from_flattened_dict({key: arms if key.endswith("arms") else "taste"})
    with pytest.raises(UserError, match=f"{key}='taste' is not among the stages; expected one of: "):
        check_config(config)


def answered(tmp_path, rows) -> dict:
    write_jsonl(tmp_path / "answers.jsonl", rows)
    return c.source(kind="jsonl", path=str(tmp_path / "answers.jsonl"))


SUMS = [{"prompt": "1+1", "reference": "#### 2"}, {"prompt": "2+2", "response": "It is 4."}]


def test_a_verifier_knows_what_its_source_says(tmp_path):
    """A prompt that it does not know is named before anything runs."""
    judges = {"sums": c.judge("verifier", check="number", answers=answered(tmp_path, SUMS))}
    config = config_with(judges, judge="sums", evaluation=dict(judge="sums"))
    check_config(config)
    judged = judge_in(config, "sums", tmp_path)([user("1+1"), user("2+2")], ["2", "5"], ["3", "four: 4"])
    np.testing.assert_allclose(judged.p_first, [1, 0], atol=1e-6)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "1+1"}, {"prompt": "5+5"}])
    prompts = c.source(kind="jsonl", path=str(tmp_path / "prompts.jsonl"))
    policy = c.online("ppo", judge="sums", prompts=prompts, evaluation=dict(prompts=prompts, judge="sums"))
    config = c.build(dict(sft=c.sft(max_prompt=12, max_response=6), policy=policy), judges=judges)
    context = StageContext("policy", config, Workdir(tmp_path / "run", config), make_mesh())
    with pytest.raises(UserError, match='policy.prompts: judges.sums: .*answers.jsonl: none of its 2 prompts is "5'):
        check_inputs([context], Measurements())
    check_inputs([context], Measurements(), absent=True)  # a plan does without


def test_a_verifier_reads_the_constraints_of_prompts(tmp_path):
    """Rows as those of IFEval: one object of arguments for each constraint, {} where it has none."""
    meta = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 3}],
    }
    source = answered(tmp_path, [{"id": "ifeval:1", "prompt": "Write.", "source": "ifeval", "meta": meta}])
    config = config_with({"form": c.judge("verifier", check="constraints", answers=source)}, judge="form")
    check_config(config)
    judge, asked = judge_in(config, "form", tmp_path), [user("Write.")] * 3
    np.testing.assert_array_equal(judge.scored(asked, ["one two three", "one, two", "one"]).scores, [1, 0, 0.5])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*SUMS, {"prompt": "3+3"}, {"prompt": "4"}], r"answers.jsonl:3: no reference answer.*\(1 more of 4 rows"),
        ([*SUMS, {"prompt": "2+2", "reference": "5"}], r"answers.jsonl:3: another answer .* answers.jsonl:2$"),
        ([*SUMS, {"prompt": 7}], "answers.jsonl:3: field"),
    ],
)
def test_a_source_that_says_nothing_or_two_things_is_refused(tmp_path, monkeypatch, rows, message):
    monkeypatch.chdir(tmp_path)
    answered(tmp_path, rows)
    judges = {"sums": c.judge("verifier", check="number", answers=c.source(kind="jsonl", path="answers.jsonl"))}
    with pytest.raises(UserError, match=f"judges.sums: answers: {message}"):
        judge_in(config_with(judges, judge="sums"), "sums", tmp_path)


def panel_of(*of, judge="panel", method="ppo", **more):
    """A config whose policy asks an ensemble."""
    stages = dict(
        sft=c.sft(max_prompt=12, max_response=6),
        bt=c.bradley_terry(init_from="sft"),
        genrm=c.generative(init_from="sft", max_length=64),
        policy=c.online(method, judge=judge, prompts=c.source(limit=8), **more.pop("section", {})),
    )
    return c.build(stages, judges=dict(panel=c.judge("ensemble", of=of), **more))


def test_an_ensemble_asks_whoever_a_stage_could_ask(rules, tmp_path):
    """Stages, other judges, other ensembles: all are checked, measured and counted."""
    more = dict(
        house=c.judge("python", path=f"{rules}:brevity", gives="scores"),
        taste=c.judge("model", model="bt"),
        inner=c.judge("ensemble", of=("taste", "house"), combine="min"),
    )
    config = panel_of("inner", "bt", **more)
    check_config(config)
    assert {use.model for use in uses(config) if use.stage == "policy"} == {"sft", "bt"}
    models = AbstractModels(config, make_mesh(), Checking(config, KINDS).card)
    assert len(models.judge("panel")) == 2 and models.scores("panel") and not models.judge("house")
    assert not AbstractModels(panel_of("gold", "bt"), make_mesh(), lambda _: None).scores("panel")
    both = panel_of("house", "gold", house=more["house"], method="spo")
    check_config(both)
    judged = judge_in(both, "panel", tmp_path)([user("sort dbca!")], ["abcd!"], ["nothing"])
    assert judged.deviation is not None and 0.5 < judged.p_first[0] < 1


@pytest.mark.parametrize(
    ("of", "more", "message"),
    [
        ((), {}, "judges.panel.of=\\(\\), expected the names of judges"),
        (("bt", "bt"), {}, "judges.panel.of=.*'bt' is named twice; give it a weight"),
        (("panel", "bt"), {}, "judges.panel.of: 'panel' asks itself: panel -> panel"),
        (
            ("inner", "bt"),
            {"inner": c.judge("ensemble", of=("panel",))},
            "judges.panel.of: 'inner' asks itself: inner -> panel -> inner",
        ),
        (("bt", "nobody"), {}, "policy.judge='panel': judges.panel.of='nobody' is not among the stages"),
        (("bt", "sft"), {}, "policy.judge='panel': judges.panel.of='sft' is a sft stage"),
        (("bt", "gold"), {}, "policy.judge='panel': judges.panel.of='gold' compares, and does not score"),
        (("bt", "genrm"), {}, "policy.judge='panel': judges.panel.of='genrm' is a generative stage"),
        (("bt",), {"w": c.judge("ensemble", of=("bt",), weights=(1,))}, "judges.w.weights=.*does not read them"),
        (
            ("bt",),
            {"w": c.judge("ensemble", of=("bt",), combine="weighted", weights=(1, 2))},
            "judges.w.weights=.*, expected 1, one for each of of=",
        ),
        (
            ("bt",),
            {"w": c.judge("ensemble", of=("bt",), combine="weighted", weights=("much",))},
            "judges.w.weights=.*, expected numbers",
        ),
    ],
)
def test_ensembles_that_cannot_be_are_refused_by_key(of, more, message):
    with pytest.raises(UserError, match=message):
        check_config(panel_of(*of, **more))


def test_a_plan_counts_every_member():
    """Their parameters are held, and each judges all rows."""

    def judging(*of):
        config = panel_of(*of, method="spo")
        work = expected_work(config, make_mesh(), lambda stage, key: 8)[-1]
        return work.held["judge"], [(call.function, call.calls > 0) for call in work.calls if call.function == "judge"]

    bt, genrm, both = judging("bt"), judging("genrm"), judging("bt", "genrm")
    assert both[0] == bt[0] + genrm[0] and both[1] == [("judge", True)] * 2


def ratio_of(strong="dpo", weak="sft", *, asks="policy", **more):
    """A config with a policy of DPO, and a judge of it over its reference that a stage asks."""
    prompts, lengths = c.source(limit=8), dict(max_prompt=12, max_response=6)
    stages = dict(
        sft=c.sft(**lengths),
        bt=c.bradley_terry(init_from="sft", **lengths),
        policy=c.online("rloo", judge="taste" if asks == "policy" else "bt", prompts=prompts),
        dpo=c.direct("dpo", **lengths),
        later=c.online("rloo", judge="taste" if asks == "later" else "bt", prompts=prompts),
    )
    return c.build(stages, judges=dict(taste=c.judge("density_ratio", strong=strong, weak=weak, **more)))


@pytest.mark.parametrize(
    ("strong", "weak", "asks", "message"),
    [
        ("dpo", "sft", "policy", "policy.judge='taste': judges.taste.strong='dpo' does not run before policy"),
        ("sft", "later", "policy", "policy.judge='taste': judges.taste.weak='later' does not run before policy"),
        ("dpo", "nobody", "later", "later.judge='taste': judges.taste.weak='nobody' is not among the stages"),
        (
            "bt",
            "sft",
            "later",
            "later.judge='taste': judges.taste.strong='bt' is a bradley_terry stage; expected one of",
        ),
        ("gold", "sft", "later", "later.judge='taste': judges.taste.strong='gold' is not among the stages"),
        ("later", "sft", "later", "judges.taste.strong='later' does not run before later"),
        ("./nothing", "sft", "later", "later.judge='taste': judges.taste.strong: nothing: no such directory"),
    ],
)
def test_a_density_ratio_is_one_of_policies_that_exist(strong, weak, asks, message):
    with pytest.raises(UserError, match=message):
        check_config(ratio_of(strong, weak, asks=asks))


def test_both_policies_of_a_density_ratio_are_counted():
    """Alone and in an ensemble; a policy that its stage holds anyway is held once."""
    config = ratio_of(asks="later")
    check_config(config)
    assert {use.model for use in uses(config) if use.stage == "later"} == {"sft", "dpo"}
    models = AbstractModels(config, make_mesh(), Checking(config, KINDS).card)
    strong, weak = models.judge("taste")
    assert models.scores("taste") and strong.verdicts is weak.verdicts is None
    assert strong.length == weak.length == strong.logits == 18
    assert strong.model is models.policy("dpo").model and weak.model is models.policy("sft").model

    def asked(config):
        work = expected_work(config, make_mesh(), lambda stage, key: 8)[-1]
        return work.held, [call.flops for call in work.calls if call.function == "judge"]

    held, ratio = asked(config)
    _, scalar = asked(ratio_of(asks="nobody"))
    assert held["judge"] == held["reference"] > 0  # the reference of the stage is the weak model
    assert len(ratio) == 2 and len(scalar) == 1 and min(ratio) > scalar[0]  # of each token, logits
    panel = panel_of("taste", "bt", taste=c.judge("density_ratio", strong="sft", weak="sft", criteria="Be brief."))
    check_config(panel)
    models = AbstractModels(panel, make_mesh(), Checking(panel, KINDS).card)
    assert len(models.judge("panel")) == 3 and models.scores("panel")


SMALL = dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32)


@pytest.mark.slow
def test_a_run_asks_both_policies_and_the_annotator(tmp_path):
    """A plan knows the functions that it runs."""
    steps = dict(duration="2 steps", batch_size=8, validation=c.source(limit=8), max_prompt=12, max_response=6)
    stages = dict(
        sft=c.sft(**steps),
        dpo=c.direct("dpo", **steps),
        evaluation=c.evaluation(
            judges=("taste", "noisy"), opponent="", pairs=c.source(split="test", limit=16), batch_size=8
        ),
    )
    taste = c.judge("density_ratio", strong="dpo", weak="sft", beta=0.1)
    gold = dict(families=("sort",), train_rows=32, validation_rows=16, test_rows=16)
    config = c.build(stages, judges=dict(taste=taste, noisy=c.judge("annotator")), gold=gold, model=SMALL)
    file = tmp_path / "config.py"
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({config.to_dict()!r})\n"
    )
    done = prl("run", "--config", file, "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [summary["judges"][name]["order_consistency"] for name in ("taste", "noisy")] == [1, 1]
    planned = [step.function for step in abstract_steps(config, make_mesh()) if step.function.endswith("judge")]
    assert planned == ["taste_1_judge", "taste_2_judge"]

    models = LoadedModels(StageContext("evaluation", config, Workdir(tmp_path / "run", config), make_mesh()))
    judge, policies = models.judge("taste", batch_size=4), [models.policy(name) for name in ("dpo", "sft")]
    assert [judge.strong.model, judge.weak.model] == [policy.model for policy in policies]  # in memory once
    prompt, answers = user("sort cab!"), ("abcd", "ABCD")
    ids = [encode_prompt(policies[0].tokenizer, prompt) + encode_response(policies[0].tokenizer, y) for y in answers]
    dpo, sft = (jax.nn.log_softmax(policy.model(jnp.array(ids)))[:, -6:-1] for policy in policies)
    ratio = np.take_along_axis(np.asarray(dpo - sft), np.array(ids)[:, -5:, None], 2).sum((1, 2))
    found = judge.scored([prompt] * 2, answers)
    np.testing.assert_allclose(found.scores, 0.1 * ratio, rtol=1e-3, atol=1e-6)
    assert np.abs(ratio).min() > 1e-3 and not found.cut.any()


def test_an_annotator_errs_as_the_section_gold_says(tmp_path):
    """Unless its own section says otherwise."""
    prompts, right, wrong = [user("sort dbca!")] * 400, ["ABCD"] * 400, [f"x{i}" for i in range(400)]

    def judged(gold, **values):
        config = config_with({"noisy": c.judge("annotator", **values)}, judge="noisy", evaluation=dict(judge="gold"))
        config = ConfigDict(config.to_dict())
        config.gold.update(gold)
        check_config(config)
        return judge_in(config, "noisy", tmp_path)(prompts, right, wrong).p_first

    sure, unsure = dict(noise=0.0, ties=0.0), dict(noise=0.5, ties=0.0)
    assert judged(sure).mean() > 0.98 and judged(unsure, noise=0.0).mean() > 0.98
    half = judged(unsure)
    assert 0.4 < half.mean() < 0.6 and set(np.round(half, 6)) == {0, 1}
    np.testing.assert_array_equal(half, judged(sure, noise=0.5))
    assert (half != judged(unsure, seed=1)).mean() > 0.3


def test_a_kind_is_its_file_and_a_row_of_the_table(tmp_path, monkeypatch):
    """Nothing else of the package knows of this one: it is checked, measured, planned and asked."""

    class Dummy:
        merge = "probability"

        def __call__(self, prompts, first, second):
            return GoldJudge(lambda prompt, a, b: 0.75)(prompts, first, second)

    declare = lambda **values: {"kind": "dummy", "strength": 1.0, **values}  # noqa: E731
    monkeypatch.setitem(JUDGES, "dummy", JudgeKind("dummy", declare, lambda section, around: Dummy()))
    config = config_with({"mine": c.judge("dummy", strength=2.0)}, judge="mine", evaluation=dict(judge="mine"))
    check_config(config)
    assert judge_in(config, "mine", tmp_path)([user("a")], ["x"], ["y"]).p_first[0] == pytest.approx(0.75)
    assert "mine" not in {use.model for use in uses(config)}
    config = config_with({"mine": {"kind": "dummy", "strength": "strong"}}, judge="mine")
    with pytest.raises(UserError, match="judges.mine.strength='strong': expected a number"):
        check_config(config)


def test_a_run_goes_on_with_the_rules_that_it_began_with(rules, tmp_path):
    config = config_with({"house": c.judge("python", path=f"{rules}:shorter")}, judge="house")
    workdir = lambda: Workdir(tmp_path / "run", config)  # noqa: E731
    began = StageContext("policy", config, workdir(), make_mesh())
    recognise_models(began)
    began.workdir.create()
    recognise_models(dataclasses.replace(began, workdir=workdir()))
    rules.write_text(RULES.replace("0.9", "0.8"))
    with pytest.raises(UserError, match=r"judges.house: has changed since .*/run was made from it: .*my_rules.py had"):
        recognise_models(dataclasses.replace(began, workdir=workdir()))


def test_criteria_are_no_directory_whatever_they_say(tmp_path):
    criteria = "Be brief and/or clear. " * 300
    config = ratio_of(strong="sft", asks="later", criteria=criteria)
    recognise_models(StageContext("later", config, Workdir(tmp_path / "run", config), make_mesh()))


def test_the_file_of_a_function_is_known_however_it_is_named(rules):
    section = lambda path: ConfigDict(c.judge("python", path=path))  # noqa: E731
    files = JUDGES["python"].files
    assert files(section(f"{rules}:shorter")) == [rules] and files(section("sys:intern")) == []
    assert files(section("json:dumps")) == [Path(json.__file__)]


def test_a_command_does_not_write_over_rules_nor_go_on_with_others(tmp_path):
    rules, pairs, out = (tmp_path / name for name in ("my_rules.py", "pairs.jsonl", "out.jsonl"))
    write_jsonl(pairs, [{"prompt": "a", "chosen": x, "rejected": "ccc"} for x in "bx"])
    rules.write_text(
        "def rule(prompts, first, second):\n    return [1 / (a != 'x' != b) for a, b in zip(first, second)]\n"
    )
    argv = ("judge", "--judge", f"{rules}:rule", "--data", pairs, "--batch_size", "1", "--out")
    assert says(refused(*argv, rules, "--overwrite"), "my_rules.py: is the file that is read")
    assert says(refused(*argv, out, "--max_length", "64"), "--max_length=64", "has no model", "leave the flag out")
    assert says(refused(*argv, out), "my_rules.py:rule: failed on 1 rows: ZeroDivisionError")
    rules.write_text(rules.read_text().replace("1 / ", "0.5 * "))
    assert says(refused(*argv, out), "holds 1 rows of a command that was interrupted, with another code")


def test_a_function_that_fails_ends_a_command_with_its_name_and_row(rules, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "ccc"}, {"prompt": "d", "chosen": "ee", "rejected": "f"}]
    write_jsonl(pairs, rows)
    argv = ("--data", str(pairs), "--out", str(tmp_path / "out.jsonl"))
    good = prl("judge", "--judge", f"{rules}:shorter", *argv)
    assert good.code == 0 and json.loads(good.out)["accuracy"] == 0.5
    bad = prl("judge", "--judge", f"{rules}:broken", *argv, "--overwrite")
    assert bad.code == 2 and "my_rules.py:broken: row 2 of 2 is nan" in bad.err


def test_a_function_that_fails_ends_a_step_with_its_name_and_row(rules):
    """In the first half of the step, which updates nothing."""
    policy = make_decoder(0, layers=1)
    setup = make_setup(policy)._replace(judges=[PythonJudge(load_function(f"{rules}:broken"), f"{rules}:broken")])
    with pytest.raises(UserError, match=r"my_rules.py:broken: row 2 of \d+ is nan"):
        roll_out(setup, policy_state(policy), np.arange(4), 1)
