"""One real step of TRL's RewardTrainer, and the scores, gradients and metrics in it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from types import SimpleNamespace

import torch
from datasets import Dataset
from jaxtyping import Array
from tiny import EOS, scalar, to_jax, tokenizer
from trl import RewardConfig, RewardTrainer

PAIRS = 4
MARGINS = (0.5, 0.0, 1.0, 0.25)


@dataclasses.dataclass(frozen=True)
class RewardStep:
    """What one step of TRL's RewardTrainer computed.

    Attributes:
      microbatches: one a forward pass: `chosen`, `rejected` `[b]` (scores) with `grad_chosen`, `grad_rejected` (of the
        loss that the trainer differentiates), `loss`, `attention_mask` `[2b, T]`, `hidden` `[2b, T, D]` (chosen rows,
        then rejected ones).
      head: `[D]` weights of the scalar head before the step.
      logged: TRL's metrics.
    """

    microbatches: list[SimpleNamespace]
    head: Array
    logged: dict[str, float]


@functools.cache
def run(
    *, pairs: int = PAIRS, margins: bool = False, pad_is_eos: bool = False, zero_head: bool = False, **changes
) -> RewardStep:
    """One optimizer step on pairs of token sequences of several lengths. `changes` are RewardConfig's."""
    model = scalar(0, pad_is_eos)
    if zero_head:
        torch.nn.init.zeros_(model.score.weight)
    head = to_jax(model.score.weight[0])
    losses, hidden, outputs, inputs = [], [], [], []

    def keep_outputs(module: torch.nn.Module, args: tuple, kwargs: dict, output) -> None:
        output.logits.retain_grad()
        inputs.append(kwargs)
        outputs.append(output.logits)

    model.register_forward_hook(keep_outputs, with_kwargs=True)
    model.model.register_forward_hook(lambda module, args, output: hidden.append(output.last_hidden_state))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(folder, model, pairs, margins, pad_is_eos, changes)
        compute_loss = trainer.compute_loss

        def recorded_loss(*args, **kwargs) -> torch.Tensor:
            losses.append(compute_loss(*args, **kwargs))
            return losses[-1]

        trainer.compute_loss = recorded_loss
        trainer.train()
    microbatches = [_microbatch(*step) for step in zip(outputs, losses, inputs, hidden, strict=True)]
    return RewardStep(microbatches, head, trainer.state.log_history[0])


def _trainer(
    folder: str, model: torch.nn.Module, pairs: int, margins: bool, pad_is_eos: bool, changes: dict
) -> RewardTrainer:
    settings = dict(
        output_dir=folder,
        per_device_train_batch_size=pairs,
        max_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
    )
    rows = {
        "chosen_ids": [[*range(3, 6 + 2 * pair), EOS] for pair in range(pairs)],
        "rejected_ids": [[*range(20, 12 + 2 * pair, -1), EOS] for pair in range(pairs)],
    }
    if margins:
        rows["margin"] = list(MARGINS[:pairs])
    return RewardTrainer(
        model=model,
        args=RewardConfig(**{**settings, **changes}),
        processing_class=tokenizer(pad_is_eos),
        train_dataset=Dataset.from_dict(rows),
    )


def _microbatch(logits: torch.Tensor, loss: torch.Tensor, inputs: dict, hidden: torch.Tensor) -> SimpleNamespace:
    chosen, rejected = logits[:, 0].chunk(2)
    grad_chosen, grad_rejected = logits.grad[:, 0].chunk(2)
    margin = {"margin": to_jax(inputs["margin"])} if "margin" in inputs else {}
    return SimpleNamespace(
        chosen=to_jax(chosen),
        rejected=to_jax(rejected),
        grad_chosen=to_jax(grad_chosen),
        grad_rejected=to_jax(grad_rejected),
        loss=to_jax(loss),
        attention_mask=to_jax(inputs["attention_mask"]).astype(bool),
        hidden=to_jax(hidden),
        **margin,
    )
