"""TRL's DPOTrainer beside direct losses, and the losses of its ORPO, CPO and BCO trainers."""

import functools
import math
import tempfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import EOS, assert_close, assert_differs, policy, to_jax, tokenizer
from trl import DPOConfig, DPOTrainer
from trl.experimental.bco import BCOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from prl_jax.losses import DirectTerms
from prl_jax.methods.direct import APO, BCO, EXO, IPO, NCA, ORPO, SPPO, DirectLoss, Hinge, Robust, Sigmoid

BETA = 0.3
# Prompts, better and worse responses: token ids of several lengths, one better response as long as its rival.
ROWS = [
    dict(prompt_ids=[3, 4, 5], chosen_ids=[6, 7, 8, EOS], rejected_ids=[9, EOS]),
    dict(prompt_ids=[10, 11], chosen_ids=[12, EOS], rejected_ids=[13, 14, 15, 16, EOS]),
    dict(prompt_ids=[17, 3, 9, 4], chosen_ids=[18, 19, EOS], rejected_ids=[20, 21, EOS]),
]
# What TRL calls each loss, its other arguments, whether it divides log-ratios by lengths, the piece, and how many of
# ours its loss is.
LOSSES = {
    "sigmoid": ({}, False, Sigmoid(beta=BETA), 1.0),
    "sigmoid_norm": ({}, True, Sigmoid(beta=BETA), 1.0),
    "hinge": ({}, False, Hinge(beta=BETA), 1.0),
    "ipo": ({}, True, IPO(tau=BETA), 1.0),
    "robust": ({"label_smoothing": 0.2}, False, Robust(beta=BETA, flip_rate=0.2), 1.0),
    "exo_pair": ({"label_smoothing": 0.05}, False, EXO(beta=BETA, label_smoothing=0.05), 1.0),
    "nca_pair": ({}, False, NCA(beta=BETA), 1.0),
    "bco_pair": ({}, False, BCO(beta=BETA), 1.0),
    "apo_zero": ({}, False, APO(beta=BETA), 1.0),
    "apo_down": ({}, False, APO(beta=BETA, form="down"), 1.0),
    # TRL adds both responses, where the paper has their mean; and it does not multiply by beta^2.
    "sppo_hard": ({}, False, SPPO(beta=BETA), 2.0 / BETA**2),
}


def terms(ratio_1, ratio_2, **given) -> DirectTerms:
    """Response 1 is the better one; as win rates, 1 and 0."""
    zeros, ones = jnp.zeros_like(ratio_1), jnp.ones_like(ratio_1)
    fields = dict(logp_1=ratio_1, logp_2=ratio_2, label=ones, target_1=ones, target_2=zeros, scale=ones, weight=ones)
    return DirectTerms(ratio_1, ratio_2, **{**fields, "statistic": jnp.float32(0.0), **given})


@functools.cache
def trainer() -> DPOTrainer:
    """A trainer of the real thing; its loss is asked for batches of token ids, so that its texts mean nothing."""
    settings = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(ROWS),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        disable_dropout=True,
        beta=BETA,
    )
    texts = Dataset.from_list([{"prompt": "w3", "chosen": "w4", "rejected": "w5"}] * len(ROWS))
    options = dict(args=DPOConfig(**settings), processing_class=tokenizer(), train_dataset=texts)
    return DPOTrainer(model=policy(0), ref_model=policy(1), **options)


@functools.cache
def step(loss_type: str) -> SimpleNamespace:
    """TRL's loss of one batch, its gradient to the logits, and what it was computed from."""
    theirs, logits, outputs = trainer(), [], []
    theirs.loss_types, theirs.loss_weights = [loss_type], [1.0]
    theirs.label_smoothing = LOSSES[loss_type][0].get("label_smoothing", 0.0)

    def keep(module: torch.nn.Module, args: tuple, output) -> None:
        if output.logits.requires_grad:
            output.logits.retain_grad()
        outputs.append(output.logits)
        logits.append(to_jax(output.logits))

    hooks = [model.register_forward_hook(keep) for model in (theirs.model, theirs.ref_model)]
    batch = theirs.data_collator(ROWS)
    theirs.model.train()
    loss = theirs.compute_loss(theirs.model, dict(batch))
    loss.backward()
    for hook in hooks:
        hook.remove()
    logged = {name: values[-1] for name, values in theirs._metrics["train"].items()}
    data = {name: jnp.asarray(batch[name].numpy()) for name in ("input_ids", "completion_mask")}
    return SimpleNamespace(
        loss=to_jax(loss), grad=to_jax(outputs[0].grad), logits=logits[0], logits_ref=logits[1], logged=logged, **data
    )


def log_probs(logits, batch):
    """`[2, B]` sums over the response, its end included, and `[2, B]` numbers of tokens."""
    mask = batch.completion_mask[:, 1:] > 0
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), batch.input_ids[:, 1:, None], -1)[..., 0]
    return jnp.where(mask, logp, 0.0).sum(-1).reshape(2, -1), mask.sum(-1).reshape(2, -1)


def ours(piece: DirectLoss, logits, batch, mean: bool):
    logp, tokens = log_probs(logits, batch)
    ratio = logp - log_probs(batch.logits_ref, batch)[0]
    return piece(terms(*(ratio / tokens if mean else ratio)))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_direct_losses_and_gradients_to_the_logits(loss_type):
    batch, (_, mean, piece, factor) = step(loss_type), LOSSES[loss_type]
    loss, grad = jax.value_and_grad(lambda logits: factor * ours(piece, logits, batch, mean).value)(batch.logits)
    assert_close(loss, batch.loss)
    assert_close(grad, batch.grad, rtol=1e-4)


def test_direct_accuracy_and_margin():
    batch = step("sigmoid")
    aux = {
        name: total / count for name, (total, count) in ours(Sigmoid(beta=BETA), batch.logits, batch, False).aux.items()
    }
    assert_close(aux["accuracy"], batch.logged["rewards/accuracies"])
    assert_close(aux["margin"], batch.logged["rewards/margins"])
    assert_close(BETA * aux["chosen_ratio"], batch.logged["rewards/chosen"])
    assert_close(BETA * aux["rejected_ratio"], batch.logged["rewards/rejected"])


def test_direct_lengths_are_not_a_detail():
    """Means over tokens are another loss than sums."""
    batch = step("ipo")
    assert_differs(ours(IPO(tau=BETA), batch.logits, batch, False).value, batch.loss)


# Losses of TRL's other trainers, on log-probs


LOGP, REFERENCE = (-np.random.default_rng(0).exponential(size=(2, 5)).astype(np.float32) for _ in range(2))


def compare(function, piece: DirectLoss, pairs) -> None:
    """Mean loss of `function(logp_1, logp_2)`, and its gradient, beside the piece on `pairs(logp_1, logp_2)`."""
    logp = torch.tensor(LOGP, requires_grad=True)
    loss = function(*logp)
    loss.backward()
    value, grad = jax.value_and_grad(lambda logp: piece(pairs(*logp)).value)(jnp.asarray(LOGP))
    assert_close(value, to_jax(loss))
    assert_close(grad, to_jax(logp.grad))


def test_direct_odds_of_orpo():
    theirs = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    compare(lambda one, two: -ORPOTrainer.odds_ratio_loss(theirs, one, two)[0].mean(), ORPO(coefficient=0.2), terms)


@pytest.mark.parametrize(("loss_type", "margin", "smoothing"), [("sigmoid", 0.0, 0.1), ("simpo", 0.4, 0.0)])
def test_direct_losses_without_a_reference(loss_type, margin, smoothing):
    """With a margin and smoothing at once TRL keeps the margin to one side, where a flipped label turns ours around."""
    theirs = SimpleNamespace(
        loss_type=loss_type,
        alpha=0.0,
        beta=2.0,
        simpo_gamma=margin,
        label_smoothing=smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )
    loss = lambda one, two: CPOTrainer.cpo_loss(theirs, one, two)[0].mean()  # noqa: E731
    compare(loss, Sigmoid(beta=2.0, margin=margin, label_smoothing=smoothing), terms)


def test_direct_classifier_around_its_mean():
    rewards = BETA * (LOGP - REFERENCE)
    running = SimpleNamespace(update=lambda x: None, mean=float(rewards.mean()))
    theirs = SimpleNamespace(beta=BETA, running=running, match_underlying_distribution=False)
    refs = torch.tensor(REFERENCE)

    def loss(one, two):
        return (
            2.0 * BCOTrainer.bco_loss(theirs, one, two, *refs, None, None)[0].mean()
        )  # of responses; ours is of pairs

    pairs = lambda one, two: terms(one - REFERENCE[0], two - REFERENCE[1], statistic=jnp.float32(running.mean))  # noqa: E731
    assert math.isclose(running.mean, float(np.mean(np.stack(BCO(beta=BETA).scaled(pairs(*LOGP))))), rel_tol=1e-5)
    compare(loss, BCO(beta=BETA), pairs)
