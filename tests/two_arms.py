"""Policies that are compared: three little ones, of which two are equal, as curves and as the final table."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from fakes import LetterTokenizer, UtilityJudge, make_decoder, one_device
from running import write_rows

from prl_jax.artifacts.cards import ModelCard
from prl_jax.runs import models
from prl_jax.runs.context import StageContext
from prl_jax.runs.pieces import pieces
from prl_jax.runs.workdir import Workdir
from prl_jax.sampling import SamplingConfig
from prl_jax.stages import arms, win_rate
from prl_jax.stages import config as c

N, TOKENIZER = 7, LetterTokenizer()
SAMPLING = SamplingConfig(5, (TOKENIZER.eos_id,), TOKENIZER.pad_id)
POLICIES = {"sft": make_decoder(0, layers=1), "alike": make_decoder(0, layers=1), "other": make_decoder(1, layers=1)}


def make_judge(bias: float = 0.0) -> UtilityJudge:
    """Counts letters, each of its own worth, so that hardly two responses are worth the same."""
    return UtilityJudge(lambda prompt, text: 0.1 * len(text) + sum(map(ord, text)) % 97 / 50, bias)


def write_prompts(folder) -> str:
    """A file with one prompt for each of seven letters."""
    rows = [{"id": x, "prompt": x, "response": "aa"} for x in "abcdefg"]
    return str(write_rows(folder / "prompts.jsonl", rows))


def make_context(tmp_path, name, **sections):
    config = c.build(sections, seed=3)
    return StageContext(name, config, Workdir(tmp_path / "run", config), one_device())


def curve(tmp_path, prompts, stage, judge=None, *, policy="alike", seen=None, **values):
    """What PPO's evaluation measures of a policy in the stage of that name."""
    judge = judge or make_judge()
    found = measurer(tmp_path, prompts, stage, judge, **values)(POLICIES[policy])
    if seen is not None:
        seen += judge.asked
    return found


def measurer(tmp_path, prompts, stage, judge, **values):
    """The function by which PPO measures its policies in the stage of that name."""
    batch_size = values.pop("batch_size", 4)
    source = c.source(kind="jsonl", path=prompts, **values)
    context = make_context(
        tmp_path, stage, **{stage: c.online("pairwise_rl", evaluation=dict(prompts=source, batch_size=batch_size))}
    )
    section = context.section.evaluation
    return win_rate.policy_win_rate(
        context, POLICIES["sft"], TOKENIZER, SAMPLING, judge=judge, max_prompt=4, section=section
    )


def tables(folder, prompts: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., arms.Table]:
    """A function for the final table of two arms, one of which equals the opponent, by a judge that may be set."""
    card = ModelCard("policy", {}, 4, 5)
    chosen = {"judge": make_judge()}
    monkeypatch.setattr(models, "load_policy", lambda path, *_, **__: (card, POLICIES[path.name], TOKENIZER))
    monkeypatch.setattr(models, "named_judge", lambda *_, **__: chosen["judge"])
    monkeypatch.setattr(win_rate, "read_card", lambda *_: card)
    of_judge = lambda *_: SimpleNamespace(kind="scalar_judge" if hasattr(chosen["judge"], "scored") else "judge")  # noqa: E731
    monkeypatch.setattr(arms, "read_card", of_judge)
    monkeypatch.setattr(win_rate, "model_tokenizer", lambda *_: TOKENIZER)

    def compare(judge=None, arms_of=None, **values):
        chosen["judge"] = judge or make_judge()
        two = dict(alike=dict(title="Twin", judge=""), other=dict(title="", judge="genrm"))
        section = c.evaluation(
            judge="genrm",
            prompts=c.source(kind="jsonl", path=prompts),
            arms=arms_of or two,
            samples=2,
            batch_size=4,
            bootstrap=100,
            **values,
        )
        stages = {name: c.sft() for name in POLICIES} | {"genrm": c.generative(), "evaluation": section}
        context = make_context(folder / str(len(values)) / str(id(judge)), "evaluation", **stages)
        context.workdir.create()
        records = list(context.records(context.section.prompts, "prompt"))
        count, known = arms.arms_pieces(context, records), {"genrm": {"accuracy": 0.7}}
        with pieces(context, count) as piece:
            first = arms.compare_arms(context, records, known, piece)
        with pieces(context, count) as piece:  # an interrupted evaluation reads what was kept
            again = arms.compare_arms(context, records, known, piece)
        assert first == again
        return first

    return compare
