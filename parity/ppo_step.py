"""One real step of TRL's PPOTrainer, and what its local variables held.

`PPOTrainer.train` is one function: rollout, rewards, advantages, updates. It calls `accelerator.backward(loss)` once a
microbatch, and a wrapper around that call reads the trainer's own tensors by their names in TRL's source.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import tempfile
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from tiny import policy, scalar, to_jax, tokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

ROWS = 8

ROLLOUT = """
    advantages kl logprobs padding_mask padding_mask_p1 ref_logprobs responses returns rewards scores values
""".split()
UPDATE = """
    loss mb_advantage mb_logprobs mb_responses mb_return mb_values new_logprobs pg_loss ratio vf_loss vpred
""".split()


@dataclasses.dataclass(frozen=True)
class PPOStep:
    """What one step of TRL's PPOTrainer computed; arrays are JAX arrays under TRL's names.

    Attributes:
      args: the trainer's configuration.
      rollout: `ROLLOUT`, `[8, T]` or `[8]`; besides `mask` and `mask_p1` (negated padding masks), `raw_rewards` and
        `raw_advantages` before whitening, `raw_scores` before any penalty.
      updates: one a microbatch: `UPDATE`, `[b, T]`; besides `rows` (indices into the rollout), `hidden` `[b, T, D]` and
        `head` `[D, V]` (inputs of the output embedding; the bias is a last row of `head` and a column of ones), and
        gradients of the loss as `grad_new_logprobs`, `grad_vpred`, `grad_hidden`.
      logged: TRL's metrics.
    """

    args: PPOConfig
    rollout: SimpleNamespace
    updates: list[SimpleNamespace]
    logged: dict[str, float]


@functools.cache
def run(*, pad_is_eos: bool = False, dtype: torch.dtype = torch.float32, prompts: int = 2 * ROWS, **changes) -> PPOStep:
    """One step on 8 of the prompts: sampling, then two passes over the rollouts. `changes` are PPOConfig's."""
    np.random.seed(0)  # TRL shuffles rows with numpy's global generator
    gc.freeze()  # TRL collects garbage several times a step, which takes long over all that the imports left
    whiten, get_reward = ppo_trainer.masked_whiten, ppo_trainer.get_reward
    whitened, scored, rollouts, updates = [], [], [], []

    def recorded_whiten(values: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        whitened.append(values)
        return whiten(values, *args, **kwargs)

    def recorded_get_reward(*args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scored.append(get_reward(*args))
        return scored[-1]

    def recorded_backward(loss: torch.Tensor, **kwargs) -> None:
        names = inspect.currentframe().f_back.f_locals
        rollouts.append(_rollout(names, whitened, scored))
        updates.append(_update(names, trainer.policy_model, functools.partial(backward, loss, **kwargs)))

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(ppo_trainer, masked_whiten=recorded_whiten, get_reward=recorded_get_reward),
    ):
        trainer = _trainer(folder, pad_is_eos, dtype, prompts, changes)
        backward = trainer.accelerator.backward
        trainer.accelerator.backward = recorded_backward
        trainer.train()
    return PPOStep(trainer.args, rollouts[0], updates, trainer.state.log_history[-1])


def _trainer(folder: str, pad_is_eos: bool, dtype: torch.dtype, prompts: int, changes: dict) -> PPOTrainer:
    settings = dict(
        output_dir=folder,
        per_device_train_batch_size=ROWS,
        total_episodes=ROWS,
        num_ppo_epochs=2,
        response_length=8,
        stop_token="eos",
        temperature=0.7,
        missing_eos_penalty=1.0,
        kl_coef=0.3,
        gamma=0.97,
        lam=0.9,
        learning_rate=3e-3,
        seed=3,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
    )
    tokens = [[3 + (3 * row + place) % 20 for place in range(2 + row % 4)] for row in range(prompts)]
    return PPOTrainer(
        args=PPOConfig(**{**settings, **changes}),
        processing_class=tokenizer(pad_is_eos),
        model=policy(0, pad_is_eos).to(dtype),
        ref_model=policy(1, pad_is_eos).to(dtype),
        reward_model=scalar(2, pad_is_eos).to(dtype),
        value_model=scalar(3, pad_is_eos).to(dtype),
        train_dataset=Dataset.from_dict({"input_ids": tokens}),
    )


def _update(names: dict, model: torch.nn.Module, backward) -> SimpleNamespace:
    """Runs TRL's backward pass and keeps the tensors of the microbatch with their gradients."""
    hidden = names["output"].hidden_states[-1]
    followed = {"new_logprobs": names["new_logprobs"], "vpred": names["vpred"], "hidden": hidden}
    for tensor in followed.values():
        tensor.retain_grad()
    head = to_jax(torch.cat([model.lm_head.weight.T, model.lm_head.bias[None]]))
    backward()
    response = slice(names["context_length"] - 1, -1)
    ones = torch.ones_like(hidden[..., :1])
    return SimpleNamespace(
        **{name: to_jax(names[name]) for name in UPDATE},
        rows=names["micro_batch_inds"],
        hidden=to_jax(torch.cat([hidden, ones], dim=-1)[:, response]),
        head=head,
        grad_new_logprobs=to_jax(followed["new_logprobs"].grad),
        grad_vpred=to_jax(followed["vpred"].grad),
        grad_hidden=to_jax(hidden.grad[:, response]),
    )


def _rollout(names: dict, whitened: list[torch.Tensor], scored: list[tuple[torch.Tensor, ...]]) -> SimpleNamespace:
    arrays = {name: to_jax(names[name]) for name in ROLLOUT}
    return SimpleNamespace(
        **arrays,
        mask=~arrays["padding_mask"],
        mask_p1=~arrays["padding_mask_p1"],
        # Rewards are whitened before advantages, where they are at all; the reward model scores after the critic.
        raw_rewards=to_jax(whitened[0]) if len(whitened) > 1 else arrays["rewards"],
        raw_advantages=to_jax(whitened[-1]),
        raw_scores=to_jax(scored[-1][1]),
    )
