"""What do batches that are as long as they need save on real texts, against rows padded to the configured maximum?

    PRL_DATA_DIR=... .venv/bin/python benchmarks/real_lengths.py --out benchmarks/results/real_lengths.json

A generative judge (size S of `workload_shapes.py`, random weights) reads pairs of each data set in both orders, and a
policy answers their prompts. A BPE tokenizer of the data gives the lengths; the configured maximum is what the longest
record takes, rounded up to a power of two, as a careful user would set it. Both ways take turns, in rounds; a ratio is
the padded way's seconds to the other's, so that above 1 is faster. Judgements of both ways are compared too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from common import write_result
from workload_shapes import SIZES
from workload_steps import World

from prl_jax.data.records import PreferenceRecord
from prl_jax.data.sources import SourceSpec, load_records
from prl_jax.judges import GenerativeJudge
from prl_jax.models import Decoder
from prl_jax.sampling import SamplingConfig, respond
from prl_jax.text.chat import encode_prompt
from prl_jax.text.judging import JudgeTemplate, encode_judge_row
from prl_jax.text.tokenizer import BPETokenizer

SETS = ("ukp_convarg1", "hh_harmless_base", "oasst_en100_ranked", "fg_qa_feedback")
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
    most = 1 << (max(lengths) - 1).bit_length()
    judge = GenerativeJudge(model, tokenizer, template, max_length=most, batch_size=16, mesh=world.mesh)
    times, found = alternated(lambda: judge(prompts, first, second).z_12, rounds)
    gap = float(np.abs(found["padded"] - found["bucketed"]).max())
    yield {"work": "judge", **filled(lengths, most), **times, "largest_difference_of_logits": gap}
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    most = 1 << (max(lengths) - 1).bit_length()
    times, _ = alternated(lambda: answered(model, tokenizer, prompts, most, new_tokens, world.mesh), rounds)
    yield {"work": f"{new_tokens} new tokens", **filled(lengths, most), **times}


def pairs_of(name: str, count: int) -> list[PreferenceRecord]:
    spec = SourceSpec("jsonl", path=f"$PRL_DATA_DIR/{name}.test.jsonl.gz", limit=count)
    return list(load_records(spec, "preference", data_dir=Path()))


def texts_of(record: PreferenceRecord) -> list[str]:
    return [*(turn.content for turn in record.prompt), record.chosen, record.rejected]


def answered(model: Decoder, tokenizer: BPETokenizer, prompts: Any, most: int, room: int, mesh: Any) -> np.ndarray:
    how = SamplingConfig(room, (tokenizer.vocab_size + 1,), tokenizer.pad_id)  # no token ends a response
    options = dict(config=how, key=jax.random.key(0), max_prompt=most, batch_size=16, mesh=mesh)
    return respond(model, tokenizer, prompts, **options)[1].response


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


def alternated(work: Callable[[], np.ndarray], rounds: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Seconds of both ways and the ratio of each round, and what both have given; the first calls compile."""
    ways = {"padded": padded, "bucketed": contextlib.nullcontext}
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, context in ways.items():
            with context():
                start = time.perf_counter()
                found[way] = work()
                if number:
                    seconds[way].append(round(time.perf_counter() - start, 3))
    ratios = [round(one / other, 2) for one, other in zip(*seconds.values(), strict=True)]
    return {"seconds": seconds, "ratios": ratios, "median_ratio": statistics.median(ratios)}, found


if __name__ == "__main__":
    main()
