"""Durations as people say them: "300 steps", "2 epochs", "20000 examples", "10%"."""

from __future__ import annotations

import math
import re

from prl_jax.errors import UserError

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?|%)\s*")


def to_steps(text: str, *, key: str, batch_size: int = 0, examples: int = 0, total: int | None = None) -> int:
    """Steps of a duration, at least 1 unless it says 0.

    Args:
      text: the duration.
      key: the config key, for messages.
      batch_size: examples a step; needed for epochs and examples.
      examples: size of the data set; needed for epochs.
      total: steps of the stage; needed for percentages.

    Raises:
      UserError: the text is no duration, or its unit means nothing here.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f'{key}={text!r}: expected a duration such as "300 steps", "2 epochs", "20000 examples", "10%"')
    number, unit = float(match[1]), match[2].rstrip("s")
    if unit == "step":
        steps = number
    elif unit == "example" and batch_size:
        steps = number / batch_size
    elif unit == "epoch" and batch_size and examples:
        # An epoch is what the iterator gives: whole batches only.
        steps = number * max(examples // batch_size, 1)
    elif unit == "%" and total is not None:
        steps = number / 100 * total
    else:
        raise UserError(f"{key}={text!r}: {match[2]} cannot be counted here; give steps")
    return 0 if number == 0 else max(math.floor(steps + 0.5), 1)
