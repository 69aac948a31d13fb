"""Whose workdir it is, and what is finished in it."""

import json

import pytest
from ml_collections import ConfigDict

from prl_jax.errors import UserError
from prl_jax.runs.workdir import Workdir


def config(**changes):
    tree = {"seed": 1, "sft": {"rate": 0.5, "words": ("a", "b")}, "mesh": {"data": 1}, "logging": {"progress": True}}
    out = ConfigDict(tree)
    out.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return out


@pytest.fixture
def made(tmp_path):
    Workdir(tmp_path / "run", config()).create()
    return tmp_path / "run"


def test_opening_writes_nothing(tmp_path):
    workdir = Workdir(tmp_path / "a" / "run", config())
    assert not (tmp_path / "a").exists() and not workdir.finished("sft")


def test_its_config_stays_as_it_was_made(made):
    written = (made / "config.json").read_text()
    assert json.loads(written)["config"]["sft"]["words"] == ["a", "b"]
    Workdir(made, config(mesh__data=8, logging__progress=False)).create()
    assert (made / "config.json").read_text() == written


def test_another_config_is_refused_by_key(made):
    with pytest.raises(UserError, match=r"run: belongs to another config: sft.rate is 0.5 there and 0.25 here; give"):
        Workdir(made, config(sft__rate=0.25))
    with pytest.raises(UserError, match=r"seed is 1 there and 2 here and 1 more"):
        Workdir(made, config(seed=2, sft__words=("a",)))
    more = config()
    more.bt = ConfigDict({"rate": 1})
    with pytest.raises(UserError, match=r"bt.rate is '\(absent\)' there and 1 here"):
        Workdir(made, more)


def test_what_is_no_workdir_is_refused(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file"):
        Workdir(tmp_path / "file", config())
    with pytest.raises(UserError, match="is not empty and holds no config.json"):
        Workdir(tmp_path, config())
    for text in ("{", "[]", '{"other": 1}', '"config"', '{"config": []}', '{"config": {"seed": 1}, "data": 1}'):
        (made / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json: cannot be read"):
            Workdir(made, config())
    with pytest.raises(UserError, match="file/run: cannot make this folder"):
        Workdir(tmp_path / "file" / "run", config()).create()


def test_a_stage_is_finished_by_its_result(made):
    workdir = Workdir(made, config())
    workdir.stage("sft").mkdir()
    (workdir.stage("sft") / ".result.json.0123456789abcdef.tmp").write_text("{")
    assert not workdir.finished("sft")
    workdir.finish("sft", kind="sft", family="policy", metrics={"loss": 0.5}, seconds=1.23456)
    assert workdir.finished("sft") and not workdir.finished("bt")
    result = json.loads((made / "sft" / "result.json").read_text())
    assert result == {"kind": "sft", "family": "policy", "metrics": {"loss": 0.5}, "seconds": 1.235}
    for text in ("{}", "", '{"kind": "sft", "metrics": [], "seconds": 1}'):
        (made / "sft" / "result.json").write_text(text)
        with pytest.raises(UserError, match="sft/result.json: .*delete it, and prl run will finish the stage again"):
            workdir.finished("sft")
