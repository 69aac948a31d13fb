"""Runs the command line and ends its own process at one moment: `killed_at.py MOMENT prl-arguments ...`.

MOMENT is the JSON of an `interrupted.Moment`. Signals come from outside at no better defined a place than these.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interrupted import STAGES, Moment

import prl_jax.commands.run
import prl_jax.runs.training
from prl_jax import cli
from prl_jax.runs.pieces import Pieces
from prl_jax.training.loop import run_loop

SLOWLY = 1.0  # seconds; JAX looks for the signal about once a second


def end(moment: Moment) -> None:
    """Sends the signal, at once or from another thread after a while."""

    def send() -> None:
        time.sleep(moment.delay)
        os.kill(os.getpid(), moment.signal)

    if moment.delay:
        threading.Thread(target=send, daemon=True).start()
    else:
        send()


def arm(moment: Moment) -> None:
    """Puts the moment into the program. Where a run is past it (a kill before came late), the next one is as good."""
    make_directory, sent = prl_jax.commands.run.make_directory, False

    def end_from(stage: str, n: int, place: str) -> None:
        nonlocal sent
        here, there = (STAGES.index(stage), n), (STAGES.index(moment.stage), moment.step)
        if not sent and ((here >= there and place == moment.place) or here[0] > there[0]):
            sent = True
            end(moment)

    def wait() -> None:
        """Steps and pieces are small, and several processes need time to agree on a signal."""
        if sent and moment.signal == signal.SIGTERM:
            time.sleep(SLOWLY)

    def make(path: Path) -> None:
        make_directory(path)
        if path.name in STAGES:
            end_from(path.name, 0, "start")

    def loop(name: str, *arguments: Any, **callbacks: Any) -> Any:
        def ending(place: str, position: int) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                if place == "step":
                    wait()
                out = callbacks[place](*given)
                end_from(name, given[position], place)
                return out

            return call

        # Where the number of the step is among the arguments.
        places = {place: ending(place, position) for place, position in (("step", 1), ("write", 0), ("save", 0))}
        return run_loop(name, *arguments, **{**callbacks, **places})

    make_piece = Pieces.__call__

    def piece(self: Pieces, *arguments: Any, **options: Any) -> Any:
        wait()
        value = make_piece(self, *arguments, **options)
        end_from(self._context.name, self._done, "piece")
        return value

    Pieces.__call__ = piece
    prl_jax.commands.run.make_directory = make
    prl_jax.runs.training.run_loop = loop


if __name__ == "__main__":
    if sys.argv[1] != "null":
        arm(Moment(**json.loads(sys.argv[1])))
    sys.exit(cli.main(sys.argv[2:]))
