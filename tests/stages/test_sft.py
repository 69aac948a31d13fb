"""SFT on conversations: the config says which turns train, and the stage encodes rows so."""

from running import MICRO, prl, write_rows

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
    decode = tasks[0].tokenizer.decode
    assert [decode(row.targets[row.mask].tolist()) for row in (last, every)] == ["ciao", "hellociao"]
    assert every.mask.sum() == len("hello") + len("ciao") + 2
