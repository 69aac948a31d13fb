"""The loop: what happens at which step, and what happens when training breaks."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.errors import Stopped, UserError
from prl_jax.processes import fetch
from prl_jax.training.loop import LoopConfig, due, run_loop


class Observed:
    """A number on a device, as far as the loop can tell: it says when somebody reads it."""

    def __init__(self, value: float, read):
        self.value, self.read = value, read

    def __array__(self, dtype=None, copy=None):
        self.read()
        return np.asarray(self.value, dtype)


class Outside:
    """Keeps what the loop does to the outside. The state is the sum of the steps done."""

    def __init__(self, metrics=lambda n: {"loss": 1.0 / n, "grad_norm": 1.0}, evaluates: bool = True):
        self.metrics, self.evaluates = metrics, evaluates
        self.stepped, self.shown, self.written, self.saved, self.timed = [], [], {}, {}, {}
        self.history: list[tuple[str, int]] = []  # everything, in the order in which it happens
        self.wait = lambda: None  # called where somebody waits for a step

    def run(self, first: int = 0, state: int = 0, stop=None, improved=None, **config: Any) -> int:
        def step(state, n):
            self.stepped.append(n)
            self.history.append(("step", n))
            metrics = self.metrics(n)
            first = next(iter(metrics))
            read = Observed(metrics.pop(first), lambda: (self.history.append(("read", n)), self.wait()))
            return state + n, {first: read, **{name: jnp.asarray(value) for name, value in metrics.items()}}

        def write(n, values):
            assert n not in self.written
            self.written[n] = dict(values)
            self.history.append(("write", n))

        def save(n, state):
            self.saved[n] = state
            self.history.append(("save", n))

        def evaluate(state, n):
            self.history.append(("evaluate", n))
            return {"win_rate": float(state)}

        return run_loop(
            "stage",
            state,
            first,
            LoopConfig(**config),
            step=step,
            on_step=lambda n, values: self.shown.append((n, values["loss"])),
            write=write,
            save=save,
            evaluate=evaluate if self.evaluates else None,
            improved=improved,
            timed=lambda n, seconds, own: self.timed.update({n: (seconds, own)}),
            stop=stop,
        )


def test_due_at_multiples_and_at_the_end():
    assert [n for n in range(1, 12) if due(n, 4, 11)] == [4, 8, 11]
    assert [n for n in range(1, 12) if due(n, 0, 11)] == [11]


def test_cadence_of_logs_checkpoints_and_evaluations():
    outside = Outside()
    assert outside.run(total=10, log_every=4, save_every=3, evaluate_every=5) == 55
    assert outside.stepped == list(range(1, 11))
    assert [n for n, _ in outside.shown] == list(range(1, 11)) and outside.shown[3][1] == 0.25
    assert sorted(outside.written) == [0, 4, 5, 8, 10]
    assert outside.saved == {3: 6, 6: 21, 9: 45, 10: 55}
    # Evaluations join the metrics of their step; before the first step they stand alone.
    assert outside.written[0] == {"win_rate": 0.0}
    assert outside.written[5] == {"loss": pytest.approx(0.2), "grad_norm": 1.0, "win_rate": 15.0}
    assert "win_rate" not in outside.written[4] and outside.written[10]["win_rate"] == 55.0


def test_a_state_whose_evaluation_is_an_improvement_is_saved():
    outside, seen = Outside(), {}

    def improved(n, values):
        seen[n] = values["win_rate"]
        return n == 4

    outside.run(total=7, save_every=3, evaluate_every=2, improved=improved)
    assert seen == {2: 3.0, 4: 10.0, 6: 21.0, 7: 28.0}  # not before the first step: there is no update to keep
    assert sorted(outside.saved) == [3, 4, 6, 7]


def test_metrics_are_read_once_the_next_step_is_under_way():
    outside = Outside()
    outside.run(total=4, log_every=1)
    assert outside.history == [
        ("step", 1), ("step", 2), ("read", 1), ("write", 1), ("step", 3), ("read", 2), ("write", 2),
        ("step", 4), ("read", 3), ("write", 3), ("read", 4), ("write", 4), ("save", 4),
    ]  # fmt: skip
    assert [n for n, _ in outside.shown] == [1, 2, 3, 4]


def test_a_state_that_is_evaluated_or_saved_is_known_to_be_good():
    outside = Outside()
    outside.run(total=5, log_every=1, save_every=2, evaluate_every=3)
    assert outside.history[2:] == [
        ("step", 1), ("step", 2), ("read", 1), ("write", 1), ("read", 2), ("write", 2), ("save", 2),
        ("step", 3), ("read", 3), ("evaluate", 3), ("write", 3),
        ("step", 4), ("read", 4), ("write", 4), ("save", 4),
        ("step", 5), ("read", 5), ("evaluate", 5), ("write", 5), ("save", 5),
    ]  # fmt: skip


def test_waiting_for_devices_is_no_work_of_the_process(monkeypatch):
    outside, get = Outside(), jax.device_get
    monkeypatch.setattr("jax.device_get", lambda tree: (time.sleep(0.05), get(tree))[1])

    def metrics(n):
        time.sleep(0.02)
        return {"loss": fetch(np.float32(n))}

    outside.metrics = metrics
    outside.run(total=2, log_every=1, save_every=1)
    # A step waits twice: in its middle, for what it goes on with, and at its end for its metrics.
    assert all(own >= 0.02 and seconds - own >= 0.1 for seconds, own in outside.timed.values())


def test_the_times_of_steps_in_a_row_add_up_to_what_passes(monkeypatch):
    now, outside = [0.0], Outside()

    def pass_time(seconds):
        now[0] += seconds

    outside.metrics = lambda n: (pass_time(3.0), {"loss": 1.0})[1]  # to hand the step over
    outside.wait = lambda: pass_time(5.0)  # what the devices still need when somebody asks
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    outside.run(total=4, log_every=1, save_every=3)
    # The first hands over two steps before anybody waits for it, the third none, and the fourth follows a save.
    assert outside.timed == {1: (11.0, 3.0), 2: (8.0, 3.0), 3: (5.0, 3.0), 4: (8.0, 3.0)}


def test_devices_that_wait_for_the_host_take_no_longer_than_it_does(monkeypatch):
    now, outside = [0.0], Outside()

    def metrics(n):
        now[0] += 3.0
        return {"loss": 1.0, "grad_norm": 1.0}  # the second one is an array that is there at once

    outside.metrics = metrics
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    outside.run(total=4, log_every=1, save_every=3)
    assert outside.timed == dict.fromkeys((1, 2, 3, 4), (3.0, 3.0))


def test_logged_steps_are_timed_alone():
    outside = Outside()
    outside.run(total=10, log_every=4, save_every=3, evaluate_every=5)
    assert list(outside.timed) == [4, 8, 10]
    assert all(0 < own < 60 and 0 < seconds < 60 for seconds, own in outside.timed.values())


def test_a_stop_saves_what_the_step_made_and_what_follows_is_as_if_it_never_was():
    asked, config = [], dict(total=7, log_every=2, save_every=3, evaluate_every=3)
    whole, outside = Outside(), Outside()
    final = whole.run(**config)
    with pytest.raises(Stopped, match="^stage is saved at step 4 of 7$"):
        outside.run(stop=lambda n: bool(asked.append(n)) or n == 4, **config)
    assert asked == outside.stepped == [1, 2, 3, 4] and outside.saved == {3: 6, 4: 10}
    assert outside.written == {n: values for n, values in whole.written.items() if n <= 4}
    assert outside.run(first=4, state=outside.saved[4], **config) == final
    assert outside.written == whole.written and outside.stepped == whole.stepped


def test_a_stop_at_the_last_step_ends_the_stage():
    outside = Outside()
    assert outside.run(total=3, stop=lambda n: n == 3) == 6 and outside.saved == {3: 6}


def test_a_step_where_training_broke_is_not_saved_for_a_stop():
    outside = Outside(lambda n: {"loss": float("nan") if n == 2 else 1.0})
    with pytest.raises(UserError, match="not finite at step 2"):
        outside.run(total=4, stop=lambda n: n == 2)
    assert outside.saved == {}


def test_zero_means_at_the_end_only_and_never_for_evaluations():
    outside = Outside()
    outside.run(total=3, log_every=0, save_every=0, evaluate_every=0)
    assert list(outside.written) == [3] and outside.saved == {3: 6}
    assert "win_rate" not in outside.written[3]
    silent = Outside(evaluates=False)
    silent.run(total=2, log_every=1, evaluate_every=1)
    assert list(silent.written) == [1, 2]


def test_resuming_goes_on_where_the_state_is():
    whole, rest = Outside(), Outside()
    final = whole.run(total=7, log_every=2, save_every=2, evaluate_every=3)
    assert rest.run(first=4, state=whole.saved[4], total=7, log_every=2, save_every=2, evaluate_every=3) == final
    assert rest.stepped == [5, 6, 7]
    assert rest.written == {n: values for n, values in whole.written.items() if n > 4}
    assert rest.saved == {n: state for n, state in whole.saved.items() if n > 4}
    done = Outside()
    assert done.run(first=7, state=final, total=7) == final and not done.stepped and not done.saved


@pytest.mark.parametrize("broken", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_run_stops_and_saves_nothing_more(broken, value):
    outside = Outside(lambda n: {"loss": 1.0, "grad_norm": 2.0, **({broken: value} if n == 5 else {})})
    with pytest.raises(UserError, match=rf"stage: {broken} not finite at step 5 .*{broken}={value}") as error:
        outside.run(total=10, log_every=1, save_every=1)
    assert "\n" not in str(error.value)
    assert list(outside.saved) == [1, 2, 3, 4] and list(outside.written) == [1, 2, 3, 4]
    assert outside.stepped[-1] == 5


@pytest.mark.parametrize("due_at", ["nothing", "save", "evaluate", "stop"])
@pytest.mark.parametrize("later", [0, 1])
def test_nothing_is_made_of_a_state_that_broke_or_of_one_that_came_of_it(due_at, later):
    outside = Outside(lambda n: {"loss": float("nan") if n == 4 else 1.0})
    every = 4 + later
    config = {"nothing": {}, "stop": {}, "save": dict(save_every=every), "evaluate": dict(evaluate_every=every)}[due_at]
    with pytest.raises(UserError, match="stage: loss not finite at step 4 "):
        outside.run(
            total=9, log_every=1, stop=lambda n: due_at == "stop" and n == every, improved=lambda *_: True, **config
        )
    assert outside.saved == {} and list(outside.written) == ([0] if due_at == "evaluate" else []) + [1, 2, 3]
    assert ("evaluate", every) not in outside.history
    # Noticed at once where something is due, else when the next step is under way.
    assert outside.stepped[-1] == (4 if due_at != "nothing" and not later else 5)


def test_a_step_that_broke_is_named_where_it_makes_the_next_one_fail():
    def metrics(n):
        if n == 3:
            raise UserError("the judge's rewards are not finite")
        return {"loss": float("nan") if n == broken else 1.0}

    broken, outside = 2, Outside(metrics)
    with pytest.raises(UserError, match="loss not finite at step 2 "):
        outside.run(total=4, log_every=1)
    # Where it did not break, what is known of it is kept, and the failure is told as it is.
    broken, outside = 0, Outside(metrics)
    with pytest.raises(UserError, match="^the judge's rewards are not finite$"):
        outside.run(total=4, log_every=1)
    assert list(outside.written) == [1, 2] and outside.saved == {}


def test_other_metrics_may_be_undefined():
    outside = Outside(lambda n: {"loss": 1.0, "explained_variance": float("nan")})
    outside.run(total=2, log_every=1)
    assert outside.written[2]["explained_variance"] != outside.written[2]["explained_variance"]


def test_a_metric_that_may_not_become_larger_ends_the_run():
    outside = Outside(lambda n: {"loss": 1.0, "skipped_updates": float(n // 2)})
    with pytest.raises(
        UserError, match="stage: skipped_updates=2 above 1 at step 4 .*the last good checkpoint is kept"
    ):
        outside.run(total=9, log_every=1, save_every=1, at_most={"skipped_updates": 1.0})
    assert list(outside.saved) == [1, 2, 3]
