"""Run by multiprocess/test_run.py in two processes: a function, or an endpoint, is asked by the first one, and both
have its answer."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from endpoints import likes_long, served
from fakes import user
from jax.experimental import multihost_utils

from prl_jax.errors import UserError
from prl_jax.judges import PythonJudge, RemoteJudge, ScoredPythonJudge
from prl_jax.judges.answers import Answers
from prl_jax.judges.endpoint import Endpoint
from prl_jax.processes import joined
from prl_jax.text.judging import JudgeTemplate


def main() -> None:
    asked, prompts = [], [user("a")] * 3

    def drawn(prompts, responses):
        """Another answer at each call and in each process."""
        asked.append(len(responses))
        return np.random.default_rng().normal(size=len(responses))

    def broken(prompts, first, second):
        asked.append(len(first))
        return [0.5, float(len(asked)), 1.0 + 1e-15 * jax.process_index()]

    judge = ScoredPythonJudge(drawn, "drawn")
    for count in (3, 1):
        scores = judge.scores(prompts[:count], ["x"] * count)
        both = multihost_utils.process_allgather(scores)
        np.testing.assert_array_equal(both[0], both[1])
        assert len(set(scores.tolist())) == count
    with pytest.raises(UserError, match=r"broken: row 2 of 3 is 3, expected a probability"):
        PythonJudge(broken, "broken")(prompts, ["x"] * 3, ["y"] * 3)
    assert asked == ([3, 1, 3] if jax.process_index() == 0 else [])
    near = PythonJudge(lambda *_: [1e-11, 0.5, 1 - 1e-11], "near")(prompts, ["x"] * 3, ["y"] * 3)
    np.testing.assert_allclose(near.z_12, [-25.328, 0, 25.328], atol=1e-3)  # sent as float64

    os.environ["no_proxy"] = "*"
    with served(likes_long) as server:
        answers, template = Answers(Path(sys.argv[1])), JudgeTemplate("question-v1")
        remote = RemoteJudge(Endpoint(server.url), {"model": "m"}, template, answers)(prompts, ["x"] * 3, ["yy"] * 3)
        multihost_utils.sync_global_devices("asked")
    assert len(server.asked) == (2 if jax.process_index() == 0 else 0)
    np.testing.assert_allclose([remote.p_12, remote.p_21], [[0] * 3, [1] * 3], atol=1e-6)


if __name__ == "__main__":
    coordinator, number, index = sys.argv[sys.argv.index("--join") + 1 :]

    def tell(error: BaseException) -> int:
        raise error

    with joined(coordinator, int(number), int(index), heartbeat_timeout=30, tell=tell):
        assert jax.process_count() == 2
        main()
