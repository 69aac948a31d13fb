"""A judge that writes its verdict, trained as a policy on prompts that are comparisons."""

import numpy as np
import pytest
from running import prl

from prl_jax.data.jsonl import write_jsonl
from prl_jax.metrics import read_metrics

CONFIG = """
from prl_jax.stages import config as c

def get_config():
    source = lambda name: c.source(kind="jsonl", path=f"FOLDER/{name}.jsonl")
    prompts, few = source("comparisons"), dict(optimizer=c.optimizer(learning_rate=1e-2))
    stages = dict(
        sft=c.sft(data=source("guesses"), validation=source("guesses"), duration="40 steps", batch_size=32,
                  max_prompt=6, max_response=2, **few),
        verdicts=c.online("rloo", policy="sft", judge="graded", prompts=prompts, prompts_per_step=16, group_size=4,
                          duration="40 steps", regulariser=dict(kind="reward_kl", coefficient=0.0),
                          evaluation=dict(every="0 steps"), save_every="0 steps", log_every="1 steps", **few),
    )
    return c.build(
        stages, judges=dict(graded=c.judge("verifier", check="grade", even=1.5, answers=prompts)),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
    )
"""


@pytest.mark.slow
@pytest.mark.long
def test_rewards_of_verdicts_teach_a_judge_that_starts_at_chance(tmp_path):
    """Two verdicts, and prompts whose words say which of them is right; demonstrations that guess."""
    words = {"a b": "1", "b a": "2"}
    guesses = [{"prompt": prompt, "response": verdict} for prompt in words for verdict in "12"] * 8
    write_jsonl(tmp_path / "guesses.jsonl", guesses)
    asked = [{"prompt": prompt, "reference": verdict} for prompt, verdict in words.items()] * 8
    write_jsonl(tmp_path / "comparisons.jsonl", asked)
    (tmp_path / "verdicts.py").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    done = prl("run", "--config", tmp_path / "verdicts.py", "--workdir", tmp_path / "run", "--compilation_cache_dir=")
    assert done.code == 0, done.err
    accuracy = [row["reward"] for row in read_metrics(tmp_path / "run" / "verdicts" / "metrics.jsonl")]
    assert np.isclose(accuracy[0], 0.5, atol=0.2) and np.mean(accuracy[-5:]) > 0.95
