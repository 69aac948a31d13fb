"""Every shipped config runs to its end, on the data that its docstring asks for, with a tiny model of its family."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chat_families
import hf_checkpoints
import pytest
from running import ROOT, prl, says, unoptimised

from prl_jax.methods import METHODS

FILES = sorted((ROOT / "experiments").glob("*.py"))
WORDS = ("hi", "hello", "bye", "ciao", "brief", "user", "model")


class Run(NamedTuple):
    """How a config is run small.

    Attributes:
      checkpoint: a case of `hf_checkpoints`, of the family that the docstring names; "" where it asks for no model.
      tokenizer: its name in `chat_families`.
      overrides: what makes it small.
    """

    checkpoint: str
    tokenizer: str
    overrides: tuple[str, ...]


_JUDGED = ("evaluation.pairs.limit=4", "evaluation.prompts.limit=4", "evaluation.samples=1", "evaluation.bootstrap=20")
_PPO = ("prompts_per_step=4", "duration=2 steps", "critic.warmup=1 steps", "evaluation.every=2 steps",
        "evaluation.prompts.limit=4", "accumulate=2", "judge_batch_size=8")  # fmt: skip
_ADAPTERS = (
    "genrm.duration=2 steps",
    "genrm.batch_size=4",
    "genrm.accumulate=2",
    "genrm.validation.limit=4",
    "anchors.prompts.limit=24",
    "pairwise_ppo.prompts.limit=24",
    *(f"pairwise_ppo.{value}" for value in _PPO),
    *_JUDGED,
    "evaluation.batch_size=4",
)
_WHOLE = (
    *_ADAPTERS,
    "sft.duration=2 steps",
    "sft.batch_size=4",
    "sft.accumulate=2",
    "sft.validation.limit=4",
    "sft.max_prompt=32",
    "sft.max_response=8",
    "genrm.max_length=256",
    "huggingface.max_prompt=32",
    "huggingface.max_response=8",
)
# Of 600 pairs these hold out few enough to train a referee on others.
_REFEREE = tuple(f"referee.{value}" for value in ("duration=2 steps", "batch_size=4", "accumulate=2",
                                                  "validation.limit=4", "max_length=256"))  # fmt: skip
_FIVE = tuple(f"bt{i}" for i in range(5))
_MEMBERS = tuple(value.replace("genrm", name) for name in ("bt", "bt_2", "bt_3") for value in _ADAPTERS[:4])
_MODEL = ("model.width=16", "model.layers=1", "model.heads=2", "model.kv_heads=1", "model.head_dim=8",
          "model.mlp_width=32")  # fmt: skip


def _few(*stages: str) -> tuple[str, ...]:
    """Two steps of small batches."""
    rows = [("batch_size=4", "duration=2 steps", "validation.limit=4")]
    return tuple(f"{stage}.{value}" for stage in stages for value in rows[0])


def _policy(stage: str) -> tuple[str, ...]:
    """Two steps of a policy, as other stages have them; without a critic there is none to warm up."""
    critic = METHODS[stage].method.baseline.reads_values
    values = ("prompts.limit=24", *(value for value in _PPO if critic or "critic" not in value))
    return tuple(f"{stage}.{value}" for value in values)


def _optimised(*stages: str) -> tuple[str, ...]:
    """Two steps of PPO of each name, in whole batches."""
    values = ("prompts.limit=8", *(value for value in _PPO if "accumulate" not in value))
    return tuple(f"{stage}.{value}" for stage in stages for value in values)


def _judged_policies() -> tuple[str, ...]:
    """The stages behind the judges."""
    return *_optimised("ppo", "pairwise_ppo"), "anchors.prompts.limit=8", "anchors.batch_size=8", *_JUDGED


def _made(number: int) -> tuple[str, ...]:
    """Two steps of a round: pairs of few prompts, of which none is held out."""
    pairs = (f"pairs_{number}.prompts.limit=24", f"direct_{number}.data.skip=0")
    return *pairs, *_few(f"direct_{number}")


def _learned(stage: str) -> tuple[str, ...]:
    """Two steps of adapters on the user's pairs."""
    return *_few(stage), f"{stage}.accumulate=2"


def _sampled(number: int) -> tuple[str, ...]:
    """A round of demonstrations that end: of an untrained model's tokens every fourth one ends a response."""
    ends = tuple(range(0, 256, 4))
    pairs = (f"pairs_{number}.prompts.limit=8", f"pairs_{number}.sampling.stop_token_ids={ends}")
    return *pairs, *_learned(f"direct_{number}")


def _members(name: str) -> tuple[str, ...]:
    """Two steps of a judge with adapters."""
    return tuple(value.replace("genrm", name) for value in _ADAPTERS[:4])


# A name, and behind a colon the words of `--config` that follow on a model and pairs, where it asks for them.
RUNS = {
    "own_model": Run("mistral", "mistral", (*_ADAPTERS, *_REFEREE)),
    "own_model:uwo": Run(
        "mistral", "mistral", (*_MEMBERS, *_REFEREE, *_policy("uwo"), *_JUDGED, "evaluation.batch_size=4")
    ),
    "qwen3_0_6b_lora_gpu": Run("qwen3", "qwen3", _ADAPTERS),
    "gemma3_4b_h100x8": Run("gemma3", "gemma", (*_WHOLE, *_REFEREE)),
    "gemma3_4b_v6e_4x4": Run("gemma3", "gemma", (*_WHOLE, *_REFEREE)),
    "llama3_2_1b_v5e_4x4": Run("llama-llama3", "llama3", (*_WHOLE, *_REFEREE)),
    "llama3_8b_v5e_8x8": Run("llama", "llama3", _WHOLE),
    "llama3_8b_v5p_4x4x4": Run("llama", "llama3", _WHOLE),
    "quickstart": Run("", "", (*_MODEL, *_few("sft", "bt", "genrm"), *_judged_policies())),
    "online:paco_grpo,smoke": Run(
        "", "", (*_MODEL, *_few("sft", "bt", "bt_2"), *_policy("paco_grpo"), "anchors.prompts.limit=24", *_JUDGED)
    ),
    "online:tournament,gold,smoke": Run("", "", (*_MODEL, *_few("sft"), *_policy("tournament"), *_JUDGED)),
    "direct:mm_dpo,smoke": Run(
        "", "",
        (*_MODEL, "sft.batch_size=32", "pairs.prompts.limit=24", "mm_dpo.data.skip=0", *_few("bt", "mm_dpo"), *_JUDGED),
    ),
    "direct:kto": Run(
        "mistral", "mistral", (*_REFEREE, *_learned("kto"), *_JUDGED, "evaluation.batch_size=4")
    ),
    "iterative:cream,smoke": Run(
        "", "", (*_MODEL, "sft.batch_size=32", *_few("dpo"), *_made(1), *_made(2), *_JUDGED)
    ),
    "iterative:raft": Run(
        "mistral", "mistral",
        (*_REFEREE, *_members("bt"), *_sampled(1), *_sampled(2), *_JUDGED, "evaluation.batch_size=4"),
    ),
    "overoptimisation": Run(
        "", "", (*_MODEL, *_few("sft", *_FIVE), *_optimised("single", "mean", "worst", "uwo"), *_JUDGED)
    ),
    "ukp_judges": Run("", "", (*_MODEL, "tokenizer.vocab_size=300", *_few("bt", "genrm"), "evaluation.pairs.limit=4")),
    "hh_pairwise_ppo": Run(
        "",
        "",
        (*_MODEL, "tokenizer.vocab_size=300", *_few("sft", "bt", "genrm", "referee"), "evaluation.batch_size=4",
         *_judged_policies()),
    ),
}  # fmt: skip
# One of each kind; adapters alone, and families of models, are in tests/stages/test_huggingface.py.
LONG = ("own_model", "quickstart")
MARKS = {"ukp_judges": (), **dict.fromkeys(LONG, pytest.mark.long)}


def text(words: int, start: int) -> str:
    return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(words))


def pairs(number: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of the schema of preference data."""
    texts = lambda i: {"prompt": text(2 + i % 3, i), "chosen": text(3, i + 1), "rejected": text(4, i + 2)}  # noqa: E731
    return [
        {"id": f"pair:{i}", **texts(i), "label_source": "human", "source": "made_up", **more} for i in range(number)
    ]


def write_data(folder: Path) -> None:
    """Small files of the names and schemas of $PRL_DATA_DIR."""
    folder.mkdir()
    turns = [{"role": role, "content": text(3, i)} for i, role in enumerate(("user", "assistant", "user"))]
    for split, number in (("train", 800), ("validation", 8), ("test", 8)):
        votes = pairs(number, meta={"arg_1": "a", "arg_2": "b", "votes": [4, 1, 0], "pos": 1})
        write(folder / f"ukp_convarg1.{split}.jsonl.gz", votes)
        dialogues = [{**row, "prompt": turns} if i % 2 else row for i, row in enumerate(pairs(number))]
        write(folder / f"hh_harmless_base.{split}.jsonl.gz", dialogues)
        said = [
            {"id": f"said:{i}", "prompt": text(2, i), "response": text(3, i), "source": "made_up"} for i in range(8)
        ]
        write(folder / f"sft_dolly_sub.{split}.jsonl.gz", said)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_model(folder: Path, run: Run) -> Path:
    """A tiny checkpoint with its family's kind of tokenizer."""
    tokenizer = chat_families.write_tokenizer(folder, chat_families.FAMILIES[run.tokenizer])
    words = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + 16
    sizes = {"vocab_size": words, "max_position_embeddings": 1024, "num_hidden_layers": 1}
    config = {**hf_checkpoints.CASES[run.checkpoint], **sizes}
    return hf_checkpoints.write(folder, config, "bfloat16")


def test_each_config_has_an_entry():
    # `tests/comparing` has the configs of the comparison, and a run of one like it.
    assert {name.partition(":")[0] for name in RUNS} == {path.stem for path in FILES} - {"compare"}
    assert set(MARKS) < set(RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.nightly)) for name in RUNS])
def test_it_runs_to_its_end(name, tmp_path, monkeypatch):
    run, (file, _, words) = RUNS[name], name.partition(":")
    write_data(tmp_path / "data")
    monkeypatch.setenv("PRL_DATA_DIR", str(tmp_path / "data"))
    if run.checkpoint:
        model = write_model(tmp_path / "model", run)
        words = f"{model},{write(tmp_path / 'pairs.jsonl.gz', pairs(600))}{',' * bool(words)}{words}"
    argument = f":{words}" if words else ""
    overrides = [f"--config.{value}" for value in run.overrides]
    with unoptimised():
        done = prl("run", "--config", f"{ROOT / 'experiments' / file}.py{argument}", "--workdir", tmp_path / "run",
                   *overrides)  # fmt: skip
    assert done.code == 0, done.err
    report = tmp_path / "run" / "report.html"
    assert report.is_file() and says(done.out, f"Report: {report}")
