"""What is saved on real texts by batches that are as long as they need and by packed rows in training, against rows
padded to the configured maximum, and by a decode loop that finished responses leave, against one that goes on until the
longest response has ended?

    PRL_DATA_DIR=... .venv/bin/python benchmarks/real_lengths.py --out benchmarks/results/real_lengths.json

A generative judge (size S of `workload_shapes.py`, random weights) reads pairs of each data set in both orders, a
policy answers their prompts, and models are fitted to them, 16 records a step. A BPE tokenizer of the data gives the
lengths; the configured maximum is what the longest record takes, rounded up to a power of two, as a careful user would
set it. Responses that end do so at a random token, on average after as many as those of the data have. Both ways take
turns, in rounds; a ratio is the padded (or whole) way's seconds to the other's, so that above 1 is faster.
What both ways have found is compared too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result
from workload_shapes import OPTIMIZER, SIZES
from workload_steps import World

from prl_jax.data.records import PreferenceRecord, SFTRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair, encode_sft, stack_rows
from prl_jax.data.sources import SourceSpec, load_records
from prl_jax.judges import GenerativeJudge, generative
from prl_jax.models import LOGICAL_AXES, Decoder
from prl_jax.models.packing import rows_needed
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.sampling import SamplingConfig, respond
from prl_jax.text.chat import encode_prompt
from prl_jax.text.judging import JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.tokenizer import BPETokenizer
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.sft import sft_objective
from prl_jax.training.state import create_state
from prl_jax.training.step import Objective, make_train_step
from prl_jax.types import Rollout, TokenRows

BATCH = 16
SETS = ("ukp_convarg1", "hh_harmless_base", "oasst_en100_ranked", "fg_qa_feedback")
generating = importlib.import_module("prl_jax.sampling.generate")  # the package has a function of that name
USERS = ("prl_jax.judges.base", "prl_jax.sampling.respond")  # of `static_length`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.sets:
        for row in measured(name, args.pairs, args.new_tokens, args.rounds):
            rows.append({"data": name, **row})
            print(json.dumps(rows[-1]), flush=True)
    if args.out:
        write_result(args.out, rows)


def measured(name: str, count: int, new_tokens: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for the judge and one for the policy."""
    records = pairs_of(name, count)
    tokenizer = BPETokenizer.train([text for r in records for text in texts_of(r)], 2048)
    size = SIZES["S"]._replace(vocab=tokenizer.vocab_size)
    world, template = World(size), JudgeTemplate()
    model = world.decoder(0)
    prompts, first, second = [r.prompt for r in records], [r.chosen for r in records], [r.rejected for r in records]
    orders = [*zip(prompts, first, second, strict=True), *zip(prompts, second, first, strict=True)]
    lengths = [len(encode_judge_row(tokenizer, template, *order, max_length=2**20).ids) for order in orders]
    most = rounded(max(lengths))
    judge = GenerativeJudge(model, tokenizer, template, max_length=most, batch_size=16, mesh=world.mesh)
    times, found = alternated(both_ways(lambda: judge(prompts, first, second).z_12), rounds)
    gap = float(np.abs(found["padded"] - found["bucketed"]).max())
    yield {"work": "judge", **filled(lengths, most), **times, "largest_difference_of_logits": gap}
    yield {"work": "both orders", **shared(judge, prompts, first, second, rounds)}
    yield {"work": "four responses with each other", **shared(judge, *groups(records), rounds)}
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    most = rounded(max(lengths))
    answer = lambda: answered(model, tokenizer, prompts, most, new_tokens, world.mesh).response  # noqa: E731
    times, _ = alternated(both_ways(answer), rounds)
    yield {"work": f"{new_tokens} new tokens", **filled(lengths, most), **times}
    yield ended(model, tokenizer, records, most, rounds, world.mesh)
    yield from fitted(world, tokenizer, records, rounds)


def groups(records: list[PreferenceRecord]) -> tuple[list[Any], list[str], list[str]]:
    """Every two of four responses to a prompt: a record's own ones and, for their lengths, those of its neighbour."""
    columns: list[tuple[Any, str, str]] = []
    for one, other in zip(records[::2], records[1::2], strict=False):
        texts = dict.fromkeys((one.chosen, one.rejected, other.chosen, other.rejected))
        columns += [(one.prompt, *pair) for pair in itertools.combinations(texts, 2)]
    prompts, first, second = (list(column) for column in zip(*columns, strict=True))
    return prompts, first, second


def shared(
    judge: GenerativeJudge, prompts: list[Any], first: list[str], second: list[str], rounds: int
) -> dict[str, Any]:
    """Comparisons in both orders, a row for each and in rows that several share, and which way the judge chooses."""
    calls, plain = [], generative.judge_trees
    counted = lambda *args, **options: calls.append(1) or plain(*args, **options)  # noqa: E731
    with mock.patch.object(generative, "judge_trees", counted):
        judge(prompts, first, second)
    times, found = alternated(apart_and_together(lambda: judge(prompts, first, second)[:2]), rounds)
    gap = float(np.abs(np.array(found["apart"]) - np.array(found["together"])).max())
    rows = {"comparisons": len(prompts), "chosen": bool(calls)}
    return {**rows, **times, "largest_difference_of_logits": gap}


def ended(
    model: Decoder, tokenizer: BPETokenizer, records: list[PreferenceRecord], most: int, rounds: int, mesh: Any
) -> dict[str, Any]:
    """A row for four responses to each prompt, all in one batch: decoded as a whole, and in a refilled loop."""
    answers = [len(tokenizer.encode(text)) + 1 for r in records for text in (r.chosen, r.rejected)]
    room, mean = rounded(max(answers)), sum(answers) / len(answers)
    stops = tuple(range(max(round(tokenizer.vocab_size / mean), 1)))  # random weights: all tokens are about as likely
    prompts = [record.prompt for record in records for _ in range(4)]
    sample = lambda: answered(model, tokenizer, prompts, most, room, mesh, stops, len(prompts))  # noqa: E731

    def whole() -> np.ndarray:
        with mock.patch.object(generating, "slots_of", lambda rows, *_: rows):
            return sample().response

    times, found = alternated({"whole": whole, "continuous": lambda: sample().response}, rounds)
    lengths, same = sample().mask.sum(1).tolist(), float(np.mean(found["whole"] == found["continuous"]))
    return {"work": "responses that end", **filled(lengths, room), "same_tokens": same, **times}


def fitted(world: World, tokenizer: BPETokenizer, records: list[PreferenceRecord], rounds: int) -> Iterator[Any]:
    """A row for each kind of model that is fitted to records: one pass over them, padded and packed."""
    prompts = [len(encode_prompt(tokenizer, record.prompt)) for record in records]
    answers = [len(tokenizer.encode(text)) + 1 for r in records for text in (r.chosen, r.rejected)]
    room = dict(max_prompt=rounded(max(prompts)), max_response=rounded(max(answers)))
    compared = max(2 * answer + prompt for answer, prompt in zip(answers[::2], prompts, strict=True)) + 64
    template, together = JudgeTemplate(), dict(max_length=rounded(compared))
    verdicts = verdict_ids(tokenizer, template)
    chosen = [SFTRecord(r.id, r.prompt, r.chosen) for r in records]
    kinds: dict[str, tuple[Any, list[Any], Callable[[Any], Any], Callable[[int], Objective]]] = {
        "sft": (world.decoder(0), chosen, lambda r: encode_sft(tokenizer, r, **room), sft_objective),
        "bradley_terry": (
            world.scalar_model(0),
            records,
            lambda r: encode_scalar_pair(tokenizer, r, **room),
            lambda packed: bradley_terry_objective(packed=packed),
        ),
        "generative": (
            world.decoder(0),
            records,
            lambda r: encode_generative_pair(tokenizer, template, r, **together),
            lambda packed: generative_objective(verdicts, packed=packed),
        ),
    }
    for name, (model, data, encode, objective) in kinds.items():
        encoded = [encode(record)[0] for record in data]
        batches = [stack_rows(encoded[i : i + BATCH]) for i in range(0, len(encoded) - BATCH + 1, BATCH)]
        lengths = np.array([np.concatenate([(r.segments > 0).sum(-1) for r in read_by(batch)]) for batch in batches])
        most = read_by(batches[0])[0].tokens.shape[-1]
        packed = rows_needed(lengths, most)
        ways = {"padded": objective(0), "packed": objective(packed)}
        steps = {way: passes(world, one, model, batches) for way, one in ways.items()}
        times, found = alternated(steps, rounds)
        gap = float(np.abs(found["padded"] - found["packed"]).max())
        yield {
            "work": f"fit {name}",
            **filled(lengths.reshape(-1).tolist(), most),
            "rows_of_a_batch": lengths.shape[1],
            "packed_rows": packed,
            **times,
            "largest_difference_of_losses": gap,
        }


def passes(world: World, objective: Objective, model: Any, batches: list[Any]) -> Callable[[], np.ndarray]:
    """Returns a function that fits a model to the batches once, from the start, and gives the losses."""
    optimizer = make_optimizer(**OPTIMIZER)
    step = make_train_step(objective, optimizer)
    placed = [put_batch(batch, world.mesh) for batch in batches]

    def once() -> np.ndarray:
        state, losses = create_state(jax.tree.map(jnp.copy, model), optimizer, world.mesh, LOGICAL_AXES), []
        for batch in placed:
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        return np.array(jax.device_get(losses))

    return once


def read_by(batch: Any) -> list[TokenRows]:
    """The rows of a batch that a model reads."""
    leaves = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, TokenRows))
    return [leaf for leaf in leaves if isinstance(leaf, TokenRows)]


def rounded(length: int) -> int:
    """The next power of two."""
    return 1 << (length - 1).bit_length()


def pairs_of(name: str, count: int) -> list[PreferenceRecord]:
    spec = SourceSpec("jsonl", path=f"$PRL_DATA_DIR/{name}.test.jsonl.gz", limit=count)
    return list(load_records(spec, "preference", data_dir=Path()))


def texts_of(record: PreferenceRecord) -> list[str]:
    return [*(turn.content for turn in record.prompt), record.chosen, record.rejected]


def answered(
    model: Decoder,
    tokenizer: BPETokenizer,
    prompts: Sequence[Any],
    most: int,
    room: int,
    mesh: Any,
    stops: tuple[int, ...] = (),
    batch_size: int = BATCH,
) -> Rollout:
    """Responses, which no token ends where `stops` is empty."""
    how = SamplingConfig(room, stops or (tokenizer.vocab_size + 1,), tokenizer.pad_id)
    options = dict(config=how, key=jax.random.key(0), max_prompt=most, batch_size=batch_size, mesh=mesh)
    return respond(model, tokenizer, prompts, **options)[1]


def filled(lengths: list[int], most: int) -> dict[str, Any]:
    """How long the rows are, and which share of padded ones is real."""
    share = round(sum(lengths) / (most * len(lengths)), 3)
    return {"rows": len(lengths), "configured": most, "median": statistics.median(lengths), "real_tokens": share}


@contextlib.contextmanager
def padded() -> Iterator[None]:
    """Every batch is as long as it may be."""
    with contextlib.ExitStack() as stack:
        for module in map(importlib.import_module, USERS):
            stack.enter_context(mock.patch.object(module, "static_length", lambda longest, most: most))
        yield


def both_ways(work: Callable[[], np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
    """The same work with batches as long as they may be, and as long as they need."""

    def whole() -> np.ndarray:
        with padded():
            return work()

    return {"padded": whole, "bucketed": work}


def apart_and_together(work: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """Judging with a row for each comparison in each order, and in rows that several share."""

    def way(limit: float) -> Any:
        with mock.patch.object(generative, "_SHARED", limit):
            return work()

    return {"apart": lambda: way(0.0), "together": lambda: way(2.0)}


def alternated(ways: dict[str, Callable[[], np.ndarray]], rounds: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Seconds of both ways and the ratio of each round, and what both have given; the first calls compile."""
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, work in ways.items():
            start = time.perf_counter()
            found[way] = work()
            if number:
                seconds[way].append(round(time.perf_counter() - start, 3))
    ratios = [round(one / other, 2) for one, other in zip(*seconds.values(), strict=True)]
    return {"seconds": seconds, "ratios": ratios, "median_ratio": statistics.median(ratios)}, found


if __name__ == "__main__":
    main()
