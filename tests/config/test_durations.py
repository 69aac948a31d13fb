"""Durations as people say them."""

import pytest

from prl_jax.config.durations import to_steps
from prl_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("300 steps", 300), ("1 step", 1), ("0 steps", 0), (" 7  steps ", 7), ("2.5 steps", 3),
        ("2 epochs", 24), ("1 epoch", 12), ("0.5 epochs", 6), ("0.01 epochs", 1),
        ("80 examples", 10), ("1 example", 1), ("100 examples", 13),
        ("10%", 5), ("100 %", 50), ("0%", 0), ("0.1%", 1), ("25%", 13),
    ],
)  # fmt: skip
def test_every_unit_counts_steps(text, steps):
    assert to_steps(text, key="k", batch_size=8, examples=103, total=50) == steps


def test_an_epoch_is_the_whole_batches_of_the_data():
    assert to_steps("3 epochs", key="k", batch_size=10, examples=39) == 9
    assert to_steps("3 epochs", key="k", batch_size=10, examples=4) == 3


@pytest.mark.parametrize("text", ["", "10", "steps", "-1 steps", "ten steps", "10 hours", "1e3 steps", "10 steps 2"])
def test_what_is_no_duration_is_refused_by_key(text):
    with pytest.raises(UserError, match=r"sft.duration=.*expected a duration such as"):
        to_steps(text, key="sft.duration", batch_size=8, examples=100, total=50)


@pytest.mark.parametrize(
    ("text", "known"),
    [("10%", dict(batch_size=8, examples=9)), ("2 epochs", dict(total=9)), ("2 epochs", dict(batch_size=8)),
     ("9 examples", dict(total=9))],
)  # fmt: skip
def test_units_that_mean_nothing_here_are_refused(text, known):
    with pytest.raises(UserError, match=r"k='.*cannot be counted here; give steps"):
        to_steps(text, key="k", **known)
