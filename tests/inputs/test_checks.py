"""What is wrong with a run is told before it starts, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
from chat_families import FAMILIES, write_tokenizer
from running import MICRO, ROOT, prl, refused, says, write_rows

PAIR = {"prompt": "rev ab.", "chosen": "ba", "rejected": "ab"}


def run(tmp_path: Path, *overrides: str, config: object = MICRO) -> str:
    """The message that a run with overrides is refused with; nothing is written."""
    line = refused("run", "--config", config, "--workdir", tmp_path / "run", *(f"--config.{o}" for o in overrides))
    assert not (tmp_path / "run").exists()
    return line


def stages(*names: str) -> str:
    return f"stages=({', '.join(map(repr, names))},)"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # Flags and keys.
        (["seed=abc"], ["--config.seed=abc", "int"]),
        (["seed=1.5"], ["--config.seed=1.5"]),
        (["sft.optimizer.learning_rate=fast"], ["learning_rate=fast"]),
        (["logging.progress=perhaps"], ["progress=perhaps"]),
        (["sft.batchsize=8"], ["--config.sft.batchsize", "nearest is --config.sft.batch_size"]),
        (["genrm.optimiser.b1=0.5"], ["no such key", "nearest is --config.genrm.optimizer.b1"]),
        (["sft=3"], ["--config.sft=3"]),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        # Durations.
        (["sft.duration=soon"], ["sft.duration='soon'", '"300 steps"']),
        (["bt.duration=10%"], ["bt.duration", "cannot be counted"]),
        (["genrm.save_every=2 epochs"], ["genrm.save_every", "cannot be counted"]),
        (["pairwise_ppo.critic.warmup=-1 steps"], ["pairwise_ppo.critic.warmup"]),
        (["ppo.evaluation.every=often"], ["ppo.evaluation.every"]),
        (["sft.optimizer.warmup=warm"], ["sft.optimizer.warmup"]),
        # Words that are options, in whichever stage.
        (["pairwise_ppo.opponents.kind=ancor"], ["pairwise_ppo.opponents.kind='ancor'", "'anchors', 'pool', 'peer'"]),
        (["ppo.reward.kind=points"], ["ppo.reward.kind='points'", "'win_probability', 'score'"]),
        (["group_ppo.reward.map=square"], ["group_ppo.reward.map", "'centred'"]),
        (["ppo.surrogate.reduce=mean"], ["ppo.surrogate.reduce", "'token_mean'"]),
        (["ppo.regulariser.kind=kl"], ["ppo.regulariser.kind='kl'", "'reward_kl', 'loss_kl', 'inside_kl'"]),
        (["ppo.regulariser.kind=inside_kl"], ["ppo.regulariser='inside_kl'", "'token_clip' has no divergence inside"]),
        (["group_ppo.baseline.kind=constant"], ["group_ppo.baseline.", "'constant' has no such key"]),
        (["ppo.opponents.kind=peer"], ["ppo.opponents='peer'", "compares with nobody"]),
        (["ppo.critic.optimizer.schedule=step"], ["ppo.critic.optimizer", "schedule='step'", "cosine"]),
        (["sft.train_on=first"], ["sft.train_on='first'", "'last', 'all'"]),
        (["genrm.template=compact"], ["genrm.template='compact'", "'compact-v1'"]),
        (["genrm.form=both"], ["genrm.form='both'", "'both_orders'"]),
        (["anchors.choice=best"], ["anchors.choice='best'", "'best_of_n'"]),
        (["evaluation.anchors=gold"], ["evaluation.anchors='gold'", "'reference'"]),
        (["evaluation.pairs.kind=csv"], ["evaluation.pairs.kind='csv'", "jsonl"]),
        (["sft.data.path=rows.jsonl"], ["sft.data.path='rows.jsonl' is not read", "sft.data.kind"]),
        (["sft.data.kind=mix"], ["sft.data: kind='mix' with 0 parts in sft.data.mix; a mix has some"]),
        (["evaluation.pairs.split=dev"], ["evaluation.pairs.split='dev'", "validation"]),
        (["tokenizer.kind=word"], ["tokenizer.kind='word'", "'bpe'"]),
        (["model.dtype=float16"], ["dtype='float16'", "bfloat16"]),
        (["gold.reference=best"], ["reference = 'best'", "'gold'"]),
        # Numbers that make no sense, alone or together.
        (["limits.max_line_mib=0"], ["limits.max_line_mib=0", "at least 1"]),
        (["sft.batch_size=0"], ["sft.batch_size=0", "at least 1"]),
        (["bt.accumulate=17"], ["bt.accumulate=17", "batch_size=16"]),
        (["ppo.accumulate=9"], ["ppo: ", "2 minibatches", "accumulate=9"]),
        (["genrm.data.limit=-1"], ["genrm.data", "limit=-1"]),
        (["genrm.max_length=4"], ["genrm", "without any content", "4"]),
        (["sft.optimizer.learning_rate=0"], ["sft.optimizer", "learning_rate=0"]),
        (["anchors.keep=5"], ["anchors.keep=5", "samples=3"]),
        (["ppo.prompts_per_step=3"], ["ppo: 3 rows a step", "2 minibatches"]),
        (["ppo.temperature=0"], ["ppo.temperature=0"]),
        (["ppo.surrogate.dual=0.5"], ["ppo.surrogate.dual=0.5", "above 1"]),
        (["ppo.epochs=0"], ["ppo.epochs=0", "at least 1"]),
        (["ppo.missing_eos_penalty=0.1", "ppo.baseline.bootstrap_truncated=True"], ["ppo.missing_eos_penalty=0.1"]),
        (["peer_ppo.group_size=3", "peer_ppo.prompts_per_step=4"], ["peer_ppo.group_size=3", "even"]),
        (["group_ppo.group_size=1", "group_ppo.prompts_per_step=8"], ["group_ppo.group_size=1", "at least 2"]),
        (["model.heads=3", "model.kv_heads=2"], ["heads=3", "kv_heads=2"]),
        (["mesh.data=3"], ["mesh", "devices"]),
        # Verdict words.
        (["genrm.verdicts=('yes', 'no')"], ["genrm", 'verdict word "no"', "2 tokens"]),
        (["genrm.verdicts=('Y', 'Y')"], ["genrm", "Y"]),
        # Stages and what they name.
        (["stages=()"], ["stages: empty"]),
        ([stages("sft", "sft")], ["'sft' is listed twice"]),
        ([stages("sft", "policy")], ["stages: 'policy' has no section"]),
        ([stages("sft", "model")], ["stages: 'model' cannot be the name"]),
        ([stages("genrm", "sft")], ["genrm.init_from='sft' does not run before genrm"]),
        ([stages("genrm")], ["genrm.init_from='sft' is not among the stages", "'' for none"]),
        (["sft.init_from=bt"], ["sft.init_from='bt' does not run before sft"]),
        (["sft.init_from=sft"], ["sft.init_from='sft' does not run before sft"]),
        (["bt.init_from=anchors"], ["bt.init_from='anchors'"]),
        (["pairwise_ppo.judge=sft"], ["pairwise_ppo.judge='sft' is a sft stage", "bt, genrm"]),
        (["pairwise_ppo.policy=genrm"], ["pairwise_ppo.policy='genrm' is a generative stage", "sft"]),
        (["pairwise_ppo.opponents.stage="], ["pairwise_ppo.opponents.stage=''", "anchors"]),
        (["pairwise_ppo.opponents.stage=bt"], ["pairwise_ppo.opponents.stage='bt' is a bradley_terry", "anchors"]),
        (["pairwise_ppo.prompts.split=test"], ["pairwise_ppo.prompts", "anchors.prompts", "same source"]),
        (["pairwise_ppo.prompts.limit=25"], ["pairwise_ppo.prompts", "anchors.prompts", "same source"]),
        (["ppo.judge=genrm"], ["ppo.judge='genrm' is a generative stage", "bt"]),
        (["ppo.judge=gold"], ["ppo.judge='gold' compares, and does not score", "bt"]),
        (["ppo.watch=bt"], ["ppo.watch='bt': is none of judges", "'gold', '' for none"]),
        (["pairwise_ppo.judge=gold", "pairwise_ppo.watch=gold"], ["pairwise_ppo.watch='gold': gives the reward"]),
        (["ppo.evaluation.judge=silver"], ["ppo.evaluation.judge='silver'", "'gold'"]),
        (["evaluation.judges=('bt', 'sft')"], ["evaluation.judges='sft' is a sft stage"]),
        (["evaluation.opponent="], ["evaluation.opponent", "compared"]),
        (["evaluation.arms.ppo.judge=pairwise_ppo"], ["evaluation.arms.ppo.judge='pairwise_ppo'"]),
        ([stages("sft", "bt", "genrm", "evaluation")], ["evaluation.arms='pairwise_ppo' is not among the stages"]),
        (["ppo.kind=dpo"], ["ppo.kind='dpo'", "bradley_terry"]),
    ],
    ids=lambda value: ",".join(value)[:60].replace("/", "_") if isinstance(value, list) else None,
)  # fmt: skip
def test_configs_that_cannot_run_are_refused_by_key(tmp_path, overrides, words):
    assert says(run(tmp_path, *overrides), *words)


MIXED = """
from prl_jax.stages import config as c

def get_config():
    parts = dict(built_in=c.part(2.0, limit=8), own=c.part(1.0, kind="jsonl", path="PATH"))
    data = c.source(kind="mix", mix=parts)
    few = dict(duration="1 steps", batch_size=4, max_prompt=12, max_response=6, validation=c.source(limit=4))
    return c.build(dict(sft=c.sft(data=data, **few)), model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8))
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("mix.own.weight=0", ["sft.data.mix.own.weight=0", "above 0"]),
        ("mix.own.kind=mix", ["sft.data.mix.own.kind='mix', expected one of gold, jsonl, tfds, stage"]),
        ("mix.own.kind=stage", ["sft.data.mix.own.path", "rows.jsonl: no such directory"]),
        ("mix.own.path=rows", ["sft.data.mix.own", "no such file"]),
        ("mix.built_in.split=dev", ["sft.data.mix.built_in.split='dev'"]),
        ("split=test", ["sft.data: split='test': nothing reads that of a mix; each part"]),
        ("kind=gold", ["sft.data: kind='gold' with 2 parts in sft.data.mix"]),
        ("skip=2", ["sft.data: skip=2: nothing reads that of a mix"]),
        ("mix.own.limit=2", ["sft.data.mix.own", "rows.jsonl:2", '"response" is missing']),
    ],
)  # fmt: skip
def test_parts_of_a_mixture_are_sources_by_their_keys(tmp_path, change, words):
    write_rows(tmp_path / "rows.jsonl", [PAIR, {"prompt": "a"}])
    (tmp_path / "mixed.py").write_text(MIXED.replace("PATH", str(tmp_path / "rows.jsonl")))
    assert says(run(tmp_path, f"sft.data.{change}", config=tmp_path / "mixed.py"), *words)


def test_weights_of_a_mixture_that_no_data_can_fill_are_refused(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    (tmp_path / "mixed.py").write_text(MIXED.replace("PATH", str(tmp_path / "rows.jsonl")))
    line = run(tmp_path, "sft.data.mix.own.weight=1e9", config=tmp_path / "mixed.py")
    assert says(line, "sft.data: weights (2.0, 1000000000.0)", "1 of part 2", "more than 10,000 times")


def test_data_of_a_later_stage_is_read_before_the_first_one(tmp_path):
    data = tmp_path / "pairs.jsonl"
    rows = [f"genrm.data.{key}" for key in ("kind=jsonl", f"path={data}")]
    assert says(run(tmp_path, *rows), "genrm.data", str(data), "no such file")
    data.write_text(json.dumps(PAIR) + '\n{"prompt": ')
    assert says(run(tmp_path, *rows), "genrm.data", f"{data}:2", "malformed JSON")
    write_rows(data, [PAIR, {"prompt": "a", "chosen": "b"}])
    assert says(run(tmp_path, *rows), "genrm.data", f"{data}:2", '"rejected" is missing')
    write_rows(data, [PAIR | {"chosen": 7}])
    assert says(run(tmp_path, *rows), "genrm.data", f"{data}:1", '"chosen" is 7')
    trained = ["tokenizer.kind=bpe", *(f"tokenizer.data.{key}" for key in ("kind=jsonl", f"path={data}"))]
    assert says(run(tmp_path, *trained), "tokenizer.data", f"{data}:1", '"chosen" is 7')
    data.write_text("\n")
    assert says(run(tmp_path, *rows), "genrm.data", str(data), "empty")
    write_rows(data, [PAIR])
    assert says(run(tmp_path, *rows, "genrm.data.skip=1"), "genrm.data: skip=1 leaves no record")
    assert says(run(tmp_path, "sft.data.kind=tfds", "sft.data.path=no_such_data"), "sft.data", "no_such_data")
    assert says(run(tmp_path, "sft.data.kind=jsonl"), "sft.data", "no path")


def test_prompts_that_the_exact_judge_cannot_read_are_refused(tmp_path):
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "rev abc."}, {"prompt": "What is up?"}])
    rows = [f"evaluation.prompts.{key}" for key in ("kind=jsonl", f"path={data}")]
    assert says(run(tmp_path, *rows), "evaluation.prompts", "What is up?", "sort dbca!")
    rows = [f"{stage}.prompts.{key}" for stage in ("references", "peer_ppo") for key in ("kind=jsonl", f"path={data}")]
    assert says(run(tmp_path, *rows), "references.prompts", f"{data}:1", "no reference")


def test_judges_that_a_hugging_face_tokenizer_cannot_serve_are_refused(tmp_path):
    folder = write_tokenizer(tmp_path / "mistral", FAMILIES["mistral"])
    own = [f"tokenizer.{key}" for key in ("kind=huggingface", f"path={folder}")]
    assert says(run(tmp_path, *own), "genrm", 'compact-v1 needs the structural token "first"', "use question-v1")
    own += ["genrm.template=question-v1", "genrm.max_length=300"]
    assert says(
        run(tmp_path, *own, "genrm.verdicts=('Y','bad')"), "genrm", "verdict word \"bad\" is 3 tokens ['b', 'a'"
    )
    assert says(run(tmp_path, *own, "genrm.max_length=50"), "genrm", "question-v1 takes", "context holds 50")


def test_an_unset_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("PRL_DATA_DIR", raising=False)
    for name in ("ukp_judges", "hh_pairwise_ppo"):
        assert says(run(tmp_path, config=ROOT / "experiments" / f"{name}.py"), "PRL_DATA_DIR is not set")
    monkeypatch.setenv("PRL_DATA_DIR", str(tmp_path / "nowhere"))
    assert says(run(tmp_path, config=ROOT / "experiments" / "ukp_judges.py"), str(tmp_path / "nowhere"), "no such file")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config(:", ["SyntaxError", "line 1"]),
        ("x = 1", ["defines no get_config()"]),
        ("def get_config():\n    return undefined", ["NameError", "undefined"]),
        ("import no_such_module", ["No module named 'no_such_module'"]),
        ("def get_config():\n    open('/no/such/file')", ["/no/such/file"]),
        ("def get_config(): pass", ["returned NoneType", "ConfigDict"]),
        ("def get_config(): return {'seed': 1}", ["returned dict", "ConfigDict"]),
        ("def get_config(): raise ValueError('bad\\nvalue')", ["value"]),
        ("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'a': 1})", ["'a' is neither"]),
        (
            "from prl_jax.stages import config as c\ndef get_config(): return c.build(dict(s=c.sft(steps=3)))",
            ["'steps'"],
        ),
        (
            "from prl_jax.stages import config as c\ndef get_config(): return c.build(dict(s=c.sft(batch_size='16')))",
            ["s.batch_size='16'", "an integer"],
        ),
        (
            "from prl_jax.stages import config as c\ndef get_config():\n    return c.build(dict(s={'kind': 'sft'}))",
            ["s.", "is missing", "prl_jax.stages.config"],
        ),
        ("from prl_jax.stages import config as c\ndef get_config(): return c.build({'../s': c.sft()})", ["../s"]),
        (
            "from prl_jax.stages import config as c\ndef get_config(): return c.build({'data': c.sft()})",
            ["'data' cannot"],
        ),
    ],
)
def test_config_files_that_cannot_be_read_are_refused(tmp_path, source, words):
    (tmp_path / "config.py").write_text(source)
    assert says(run(tmp_path, config=tmp_path / "config.py"), *words)


def test_flags_that_are_wrong_are_refused(tmp_path):
    workdir = tmp_path / "run"
    assert says(refused("run", "--workdir", workdir), "--config is missing")
    assert says(refused("run", "--config", MICRO), "--workdir is missing")
    assert says(refused("run", "--config", tmp_path / "no.py", "--workdir", workdir), "no.py", "no such file")
    assert says(refused("run", "--config", tmp_path, "--workdir", workdir), str(tmp_path), "no such file")
    assert says(refused("run", "--config", MICRO + ":", "--workdir", workdir, "--config"), "config")
    assert says(refused("run", "--config", MICRO, "--workdir", workdir, "--sede=1"), "sede")
    assert says(refused("run", "--config", MICRO, "--workdir", workdir, "more"), "unexpected argument 'more'")
    assert says(refused("runs"), "unknown command 'runs'", "did you mean 'run'")
    assert says(refused("xyz"), "expected one of run, plan, judge, generate, export, report")
    assert says(refused("judge", "--model", workdir), "--data is missing")
    assert says(refused("judge", "--model=a", "--data=b", "--out=c", "--batch_size=0"), "batch_size=0")
    for flag in ("--max_new_tokens=-1", "--temperature=-1", "--temperature=hot", "--seed=-1", "--top_k=-2", "--seed=x"):
        line = refused("generate", "--model=a", "--prompts=b", "--out=c", flag)
        assert says(line, flag.strip("-").split("=")[0])
    assert says(refused("report"), "--workdir is missing")
    assert not workdir.exists()


def test_help_is_no_mistake(capsys):
    assert prl("--help").code == prl("help").code == 0 and prl().code == 2
    for command in ("run", "plan", "judge", "generate", "export", "report"):
        done = prl(command, "--help")
        assert done.code == 0 and done.err == "" and f"prl {command}" in done.out and "--" in done.out
