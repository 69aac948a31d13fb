"""How fast is a pretrained model here beside transformers: answers to real prompts, and steps of SFT?

    prl models get smollm2 --out models
    PRL_DATA_DIR=... .venv/bin/python benchmarks/real_model.py --model models/SmolLM2-135M-Instruct-Q4_1.gguf \\
        --peer_python peers/bin/python --out benchmarks/results/real_model.json

The other interpreter has torch, transformers and gguf. Both load the same file in float32 and take turns, in rounds; a
ratio is transformers' seconds to these, above 1 is faster. Both answer the same 24 prompts greedily, with 96 tokens
each that nothing ends, as `prl generate` and `model.generate` do it; and both do steps of AdamW, of all parameters, on
the same rows of tokens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS, NEW_TOKENS, ROWS, LENGTH = 24, 96, 4, 256
SETS = ("ukp_convarg1", "hh_harmless_base")
WORK = ("generate", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--peer_python", help="the interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=2, metavar=("WHO", "WORK"), help="takes part as one contender")
    args = parser.parse_args()
    if args.serve:
        who, work = args.serve
        return serve({"prl_jax": ours, "transformers": theirs}[who](args.model, work))
    from common import write_result

    rows = [compared(args, work) for work in WORK]
    if args.out:
        write_result(args.out, rows, model=args.model.name)


def compared(args: argparse.Namespace, work: str) -> dict[str, Any]:
    """Seconds of both, in turns, and the ratio of each round."""
    commands = {"transformers": args.peer_python, "prl_jax": sys.executable}
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    processes = {
        who: subprocess.Popen([python, __file__, "--model", str(args.model), "--serve", who, work], **options)
        for who, python in commands.items()
    }
    seconds: dict[str, list[float]] = {who: [] for who in processes}
    found: dict[str, Any] = {who: json.loads(process.stdout.readline()) for who, process in processes.items()}
    for _ in range(args.rounds):
        for who, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds[who].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate("end\n")
    ratios = [round(one / other, 2) for one, other in zip(*seconds.values(), strict=True)]
    tokens = PROMPTS * NEW_TOKENS if work == "generate" else ROWS * LENGTH
    row = {
        "work": work,
        "tokens": tokens,
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }
    if work == "generate":
        row["same_texts"] = sum(a == b for a, b in zip(*found.values(), strict=True))
    else:
        row["first_losses"] = found
    print(json.dumps(row), flush=True)
    return row


def serve(step: Callable[[], Any]) -> None:
    """Answers with what the first step gave, then with the seconds of each step that is asked for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    first = step()
    step()
    answers.write(json.dumps(first) + "\n")
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start = time.perf_counter()
        step()
        answers.write(f"{time.perf_counter() - start}\n")


def prompts() -> list[str]:
    """Real prompts, some of each set."""
    found: list[str] = []
    for name in SETS:
        path = Path(os.environ["PRL_DATA_DIR"]) / f"{name}.test.jsonl.gz"
        with gzip.open(path, "rt") as file:
            rows = [json.loads(next(file)) for _ in range(PROMPTS // len(SETS))]
        found += [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in rows]
    return found


def token_rows(vocabulary: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(10, vocabulary, (ROWS, LENGTH)).astype(np.int32)


def ours(path: Path, work: str) -> Callable[[], Any]:
    """The model of the file in prl_jax."""
    from prl_jax import process_setup

    process_setup.in_huge_pages()
    process_setup.quiet()
    process_setup.keep_heap()
    import jax
    import jax.numpy as jnp

    from prl_jax.artifacts.models import model_tokenizer
    from prl_jax.models.gguf import from_gguf
    from prl_jax.sampling import SamplingConfig, respond
    from prl_jax.sharding import make_mesh
    from prl_jax.text.chat import Turn

    mesh = make_mesh()
    jax.set_mesh(mesh)
    model = from_gguf(path, mesh=mesh)
    if work == "generate":
        tokenizer = model_tokenizer(path)
        how = SamplingConfig(NEW_TOKENS, (model.config.vocab_size + 1,), tokenizer.pad_id, temperature=0.0)
        options = dict(config=how, key=jax.random.key(0), max_prompt=1024, batch_size=PROMPTS, mesh=mesh)
        asked = [(Turn("user", text),) for text in prompts()]
        return lambda: respond(model, tokenizer, asked, **options)[0]
    from workload_shapes import OPTIMIZER

    from prl_jax.models import LOGICAL_AXES
    from prl_jax.optim import make_optimizer
    from prl_jax.training.sft import sft_objective
    from prl_jax.training.state import create_state
    from prl_jax.training.step import make_train_step
    from prl_jax.types import SFTBatch, TokenRows

    optimizer = make_optimizer(**OPTIMIZER)
    state, tokens = create_state(model, optimizer, mesh, LOGICAL_AXES), jnp.asarray(token_rows(model.config.vocab_size))
    places = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), tokens.shape)
    batch = SFTBatch(TokenRows(tokens, places, jnp.ones_like(tokens)), jnp.roll(tokens, -1, 1), places < LENGTH - 1)
    train = make_train_step(sft_objective(), optimizer)

    def step() -> float:
        nonlocal state
        state, metrics = train(state, batch)
        return float(metrics["loss"])

    return step


def theirs(path: Path, work: str) -> Callable[[], Any]:
    """The model of the file in transformers."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    load = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**load, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32)
    if work == "generate":
        chats = [[{"role": "user", "content": text}] for text in prompts()]
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        rows = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        model.eval()

        @torch.no_grad()
        def answer() -> list[str]:
            how = dict(do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
            out = model.generate(**rows, **how, eos_token_id=None, pad_token_id=tokenizer.pad_token_id)
            return tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)

        return answer
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    tokens = torch.tensor(token_rows(model.config.vocab_size)).long()

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
