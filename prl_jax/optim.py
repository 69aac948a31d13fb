"""Optimizers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from prl_jax.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_schedule(peak: float, *, schedule: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant, or a linear or cosine way to a tenth of it at the last of the steps."""
    decay_steps = max(total_steps - warmup_steps - 1, 1)
    if schedule == "constant":
        after = optax.constant_schedule(peak)
    elif schedule == "linear":
        after = optax.linear_schedule(peak, 0.1 * peak, decay_steps)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=0.1)
    else:
        raise UserError(f"optimizer: schedule={schedule!r}, expected one of {SCHEDULES}")
    # The first update is not at rate 0: step 0 already counts as warm-up.
    warmup = lambda count: peak * (count + 1) / max(warmup_steps, 1)  # noqa: E731
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    *,
    learning_rate: float,
    total_steps: int,
    schedule: str = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW behind clipping by the norm of the whole gradient tree.

    Under jit the norm runs over the global, sharded tree. Weight decay leaves out norms, biases and embeddings. Moments
    are float32.
    """
    if learning_rate <= 0 or clip_norm <= 0 or total_steps < 1:
        raise UserError(
            f"optimizer: learning_rate={learning_rate}, clip_norm={clip_norm}, total_steps={total_steps} must be > 0"
        )
    if not 0 <= b1 < 1 or not 0 <= b2 < 1 or weight_decay < 0:
        raise UserError(f"optimizer: b1={b1}, b2={b2}, weight_decay={weight_decay}: expected 0 <= b < 1 and decay >= 0")
    rate = learning_rate_schedule(learning_rate, schedule=schedule, warmup_steps=warmup_steps, total_steps=total_steps)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decays, mu_dtype=jnp.float32),
    )


def _decays(params: Any) -> Any:
    """Matrices of the blocks decay; scales, biases, heads and embedding tables do not."""
    kept = ("scale", "bias", "embedding", "head", "scalar")

    def one(path, _):
        return not any(jax.tree_util.keystr((key,), simple=True) in kept for key in path)

    return jax.tree_util.tree_map_with_path(one, params)
