"""A judge behind an endpoint by its section in a config: what is refused, and where its answers and numbers go."""

import json

import numpy as np
import pytest
from correctness.world import make_setup, policy_state
from endpoints import fails, in_turn, likes_long, says, served
from fakes import make_decoder, one_device, user
from running import prl

from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.judges.endpoint import Endpoint
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.pieces import pieces
from prl_jax.runs.workdir import Workdir
from prl_jax.stages import config as c
from prl_jax.stages import evaluation
from prl_jax.stages.judging import imitations, judge_counters
from prl_jax.stages.online_samples import roll_out

URL, KEY = "http://localhost:8000/v1", "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.delenv("NO_KEY", raising=False)


def config_with(**section):
    return c.build({"sft": c.sft()}, judges={"far": c.judge("remote", **{"url": URL, "model": "m", **section})})


def judge_in(config, folder):
    return LoadedModels(StageContext("sft", config, Workdir(folder, config), one_device())).judge("far", batch_size=4)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(url=""), r"url='', expected http://HOST"),
        (dict(url="ftp://host/v1"), "url='ftp://host/v1', expected http"),
        (dict(url="file:///etc/passwd"), "url='file:///etc/passwd', expected http"),
        (dict(url="http://host:port/v1"), "url=.*, expected http"),
        (dict(url="http://host/v 1"), "url=.*, expected http"),
        (dict(url="http://a..b/v1"), "url=.*, expected http"),
        (
            dict(url="https://me:secret@host/v1"),
            "url: holds a user, a query or a fragment; give the key by api_key_env",
        ),
        (dict(url="https://host/v1?key=secret"), "url: holds a user, a query"),
        (dict(model=""), "model: empty"),
        (dict(reads="stars"), "reads='stars', expected one of 'text', 'logprobs'"),
        (dict(top_logprobs=5), "top_logprobs=5 is not read, since reads is 'text'"),
        (dict(reads="logprobs", max_tokens=50), "max_tokens=50 is not read, since reads is 'logprobs'"),
        (dict(reads="logprobs", temperature=0.5), "temperature=0.5 is not read"),
        (dict(reads="logprobs", top_logprobs=1), "top_logprobs=1, expected at least 2"),
        (dict(concurrency=0), "concurrency=0, expected at least 1"),
        (dict(retries=-1), "retries=-1, expected at least 0"),
        (dict(timeout=0.0), "timeout=0.0, expected more than 0"),
        (dict(price_in=-1.0), "price_in=-1.0, expected at least 0"),
        (dict(verdicts=("Y", "Y")), "verdicts=.*, expected two different words"),
        (dict(verdicts=("Y",)), "verdicts=.*, expected two different words"),
        (dict(verdicts=("one.", "two")), "verdicts=.*, expected two different words"),
        (dict(question="Which one, Yes or N?"), "question: does not name the verdict 'Y'"),
        (dict(extra=dict(stream=True)), "extra.stream: is no further field"),
        (dict(api_key_env="NO_KEY"), "api_key_env='NO_KEY': there is no such environment variable"),
    ],
)
def test_sections_that_cannot_be_asked_are_refused_by_key(section, message):
    with pytest.raises(UserError, match=f"judges.far.{message}"):
        check_config(config_with(**section))


def test_a_key_in_the_place_of_its_name_is_not_repeated(monkeypatch):
    with pytest.raises(UserError, match="expected the name of an environment variable") as error:
        check_config(config_with(api_key_env=KEY))
    monkeypatch.setenv("SOME_KEY", f"{KEY}\nX: y")
    with pytest.raises(UserError, match="api_key_env='SOME_KEY': the variable holds characters") as other:
        check_config(config_with(api_key_env="SOME_KEY"))
    assert KEY not in str(error.value) + str(other.value)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ({}, dict(max_tokens=16, temperature=0.0)),
        (dict(max_tokens=0, extra=dict(max_completion_tokens=9)), dict(max_completion_tokens=9, temperature=0.0)),
        (dict(max_tokens=9, extra=dict(a=dict(b=False))), dict(max_tokens=9, temperature=0.0, a=dict(b=False))),
        (
            dict(reads="logprobs", top_logprobs=5),
            dict(max_tokens=1, temperature=1.0, logprobs=True, top_logprobs=5),
        ),
    ],
)
def test_a_section_becomes_requests(section, fields, tmp_path):
    with served(lambda n, body: says("Y", [("Y", -0.1), ("N", -2.1)])) as server:
        config = config_with(url=f"{server.url}/", api_key_env="SOME_KEY", **section)
        check_config(config)
        judged = judge_in(config, tmp_path / "run")([user("a")], ["x"], ["y"])
    assert judged.z_12[0] == judged.z_21[0] > 1.9
    assert [{k: v for k, v in body.items() if k != "messages"} for body in server.asked] == [
        {"model": "m", **fields}
    ] * 2
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [tmp_path / "run" / "data" / "answers"]
    assert KEY not in config.to_json() and all(KEY not in p.read_text() for p in tmp_path.rglob("*") if p.is_file())


def test_runs_can_share_answers(tmp_path):
    with served(likes_long) as server:
        config = config_with(url=server.url, cache=str(tmp_path / "shared"))
        for run in ("one", "two"):
            judge_in(config, tmp_path / run)([user("a")], ["x"], ["yy"])
    assert len(server.asked) == 2 and len([*(tmp_path / "shared").iterdir()]) == 1


def test_an_endpoint_is_named_on_the_command_line(tmp_path):
    """And what it came to is printed. Words that name no endpoint are refused."""
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "bb", "rejected": text} for text in ("c", "ddd")])
    argv = ("--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    with served(likes_long) as server:
        done = prl("judge", "--judge", f"{server.url}#some/model", *argv)
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert (printed["accuracy"], printed["judge_asked"], printed["judge_tokens_in"]) == (0.5, 4, 400)
    assert {body["model"] for body in server.asked} == {"some/model"} and len([*(tmp_path / "answers").iterdir()]) == 1
    wrong = prl("judge", "--judge", server.url, *argv, "--overwrite")
    assert wrong.code == 2 and "model: empty" in wrong.err


def test_a_step_that_an_endpoint_ends_continues_with_what_is_missing(tmp_path, monkeypatch):
    """The same step samples the same responses, so that it asks the same questions."""
    monkeypatch.setattr(Endpoint, "_pause", lambda self, attempt: 0.0)
    policy, setup = make_decoder(0, layers=1), make_setup(make_decoder(0, layers=1))
    with served(in_turn(*[says("Y")] * 3, then=lambda n, body: fails(503, "down"))) as server:
        config = config_with(url=server.url, retries=1, concurrency=1)
        with pytest.raises(
            UserError, match=r"status 503: down \(attempts: 2\); 3 of \d+ questions are answered and kept"
        ):
            roll_out(setup._replace(judges=[judge_in(config, tmp_path)]), policy_state(policy), np.arange(4), 1)
    with served(likes_long) as server:
        judge = judge_in(config_with(url=server.url), tmp_path)
        done = roll_out(setup._replace(judges=[judge]), policy_state(policy), np.arange(4), 1)
    counts = judge_counters(judge)
    assert counts["judge_cached"] == 3 and counts["judge_asked"] == len(server.asked) > 0
    assert np.isfinite(done.reward).all() and imitations(judge, ["[Question]", "b"]) == {"frame_imitations": 0.5}


def test_an_evaluation_says_what_its_judge_counts(tmp_path):
    with served(in_turn(says("well"), fails(429, Retry_After="0.01"))) as server:
        config = config_with(url=server.url, concurrency=1, price_out=1e6)
        config = c.build({"evaluation": c.evaluation(judges=("far",))}, judges=config.judges.to_dict())
        context = StageContext("evaluation", config, Workdir(tmp_path, config), one_device())
        records = [PreferenceRecord("0", user("a"), "aa", "a"), PreferenceRecord("1", user("b"), "bb", "b")]
        with pieces(context, 1) as piece:
            metrics = evaluation.evaluate_judge(context, "far", records, piece)
    expected = {"judge_asked": 4, "judge_cached": 0, "judge_retried": 1, "judge_unparsed": 1, "judge_cost": 8}
    assert metrics.items() >= expected.items() and metrics["accuracy"] == 1
