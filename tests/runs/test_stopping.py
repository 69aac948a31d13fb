"""SIGTERM: at once, or after the step."""

import os
import signal
import threading

import pytest

from prl_jax.errors import Stopped
from prl_jax.runs import stopping as module
from prl_jax.runs.stopping import StopSignal


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_stay():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_it_ends_the_run_at_once_where_there_is_nothing_to_save():
    stop = StopSignal()
    with pytest.raises(Stopped, match="what was saved before is kept"), stop.caught():
        assert not stop()
        terminate()
        raise AssertionError("went on")
    assert stop()


def test_it_waits_for_the_end_of_a_step():
    stop = StopSignal()
    with stop.caught():
        with stop.after_steps():
            stop.done()
            terminate()
            assert stop()
        assert stop()


def test_no_handler_of_errors_takes_it_for_one():
    stop = StopSignal()
    with pytest.raises(Stopped), stop.caught():
        try:
            terminate()
        except Exception:
            raise AssertionError from None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_one_is_not_caught(second):
    stop = StopSignal()
    with stop.caught(), stop.after_steps():
        stop.done()
        terminate()
        assert signal.getsignal(second) is signal.SIG_DFL


def test_outside_of_the_main_thread_nothing_is_caught():
    """Python has handlers there alone; a notebook may run commands in another thread."""
    seen = []

    def run() -> None:
        with StopSignal().caught():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


class Service:
    """JAX's: which question is the one at which all processes stop."""

    def __init__(self, at: int):
        self.at, self.asked = at, []

    def __call__(self, number: int) -> bool:
        self.asked.append(number)
        return number == self.at


def test_several_processes_ask_the_service_with_numbers_that_grow(monkeypatch):
    service = Service(at=3)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", service)
    stop = StopSignal()
    with stop.caught():
        assert [stop() for _ in range(5)] == [False, False, True, True, True]
    assert service.asked == [1, 2, 3]


def test_where_nothing_is_lost_the_process_is_left_at_once():
    left = []
    stop = StopSignal(left.append)
    with stop.caught(), stop.after_steps():
        terminate()
        assert [str(stopped) for stopped in left] == ["what was saved before is kept"]
        stop.done()
    assert len(left) == 1


def test_another_thread_hears_what_the_main_one_does_not(monkeypatch):
    """A library that is at work keeps Python's handlers from running."""
    left, stop = threading.Event(), None
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    stop = StopSignal(lambda stopped: left.set())
    monkeypatch.setattr(stop, "_handle", lambda *_: None)  # as if it had not run yet
    with stop.caught(), stop.after_steps():
        terminate()
        assert left.wait(10)
        left.clear()
        stop.done()
        terminate()
        assert not left.wait(0.2)
