"""SFT: the config says which turns train, the stage encodes rows so, and imitates no response that is not better."""

from running import MICRO, prl, refused, write_rows

from prl_jax.stages import supervised


def test_which_turns_train_is_up_to_the_config(tmp_path, monkeypatch):
    said = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao")]
    messages = [{"role": role, "content": content} for role, content in said]
    path = write_rows(tmp_path / "talks.jsonl", [{"messages": messages}] * 16)
    tasks = []
    monkeypatch.setattr(supervised, "train", lambda context, task: tasks.append(task) or {})
    for what in ("last", "all"):
        values = {"kind": "jsonl", "path": path}
        sources = [f"--config.sft.{key}.{k}={v}" for key in ("data", "validation") for k, v in values.items()]
        own = ("--config.stages=('sft',)", f"--config.sft.train_on={what}", "--config.sft.max_prompt=40")
        assert prl("run", "--config", MICRO, "--workdir", tmp_path / what, *own, *sources).code == 0
    (last, _), (every, _) = (task.encode(task.records[0]) for task in tasks)
    decode = tasks[0].models.tokenizer.decode
    assert [decode(row.targets[row.mask].tolist()) for row in (last, every)] == ["ciao", "hellociao"]
    assert every.mask.sum() == len("hello") + len("ciao") + 2


def test_a_pair_without_a_better_response_is_left_out_and_counted(tmp_path, monkeypatch):
    pair = {"prompt": "hi", "chosen": "hello", "rejected": "bye"}
    undecided = [{**pair, "tie": True}, {**pair, "p_chosen": 0.5}, {**pair, "p_chosen": 0.1}, {**pair, "chosen": "bye"}]
    path = write_rows(tmp_path / "pairs.jsonl", [*undecided, *[pair] * 16])
    tasks = []
    monkeypatch.setattr(supervised, "train", lambda context, task: tasks.append(task) or {})
    sources = [f"--config.sft.{key}.{k}" for key in ("data", "validation") for k in ("kind=jsonl", f"path={path}")]
    done = prl("run", "--config", MICRO, "--workdir", tmp_path / "run", "--config.stages=('sft',)", *sources)
    assert done.code == 0 and "data: 4 of 20 rows left out: pairs without a better response to imitate" in done.err
    assert len(tasks[0].records) == len(tasks[0].validation) == 16
    assert tasks[0].counters == {"undecided_pairs_skipped": 4}
    write_rows(path, undecided)
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "new", "--config.stages=('sft',)", *sources)
    assert "none of its 4 pairs has a better response to imitate" in line and not (tmp_path / "new").exists()
