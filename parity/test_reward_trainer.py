"""TRL's RewardTrainer beside `bt_loss`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reward_step import run
from tiny import assert_close, assert_differs

from prl_jax.losses import bt_loss
from prl_jax.models.heads import last_index


def loss_and_gradients(batch, **kwargs):
    """Value of `bt_loss` on TRL's scores, and its gradients."""
    return jax.value_and_grad(lambda w, lo: bt_loss(w, lo, **kwargs).value, argnums=(0, 1))(
        batch.chosen, batch.rejected
    )


def scores_at(step, index):
    """Scores of the chosen and the rejected rows, read at one position a row."""
    (batch,) = step.microbatches
    return jnp.split(batch.hidden[jnp.arange(len(index)), index] @ step.head, 2)


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("center", [0.0, 0.3])
def test_loss_and_gradients(margins, center):
    step = run(margins=margins, center_rewards_coefficient=center or None)
    (batch,) = step.microbatches
    margin = batch.margin if margins else 0.0
    loss, (grad_chosen, grad_rejected) = loss_and_gradients(batch, margin=margin, center=center)
    assert_close(loss, batch.loss)
    assert_close(grad_chosen, batch.grad_chosen)
    assert_close(grad_rejected, batch.grad_rejected)
    assert_close(loss, step.logged["loss"])


def test_accuracy_and_margin():
    step = run()
    (batch,) = step.microbatches
    aux = {name: total / count for name, (total, count) in bt_loss(batch.chosen, batch.rejected).aux.items()}
    assert 0.0 < step.logged["accuracy"] < 1.0
    assert_close(aux["accuracy"], step.logged["accuracy"])
    assert_close(aux["margin"], step.logged["margin"])


def test_score_is_read_at_the_last_token():
    step = run()
    (batch,) = step.microbatches
    chosen, rejected = scores_at(step, last_index(batch.attention_mask.astype(jnp.int32)))
    assert len(set(np.sum(batch.attention_mask, axis=1).tolist())) > 1
    assert_close(chosen, batch.chosen)
    assert_close(rejected, batch.rejected)


def test_pad_equal_to_eos_hides_the_last_token():
    step = run(pad_is_eos=True)
    (batch,) = step.microbatches
    last = last_index(batch.attention_mask.astype(jnp.int32))
    for theirs, one_earlier, ours in zip(
        (batch.chosen, batch.rejected), scores_at(step, last - 1), scores_at(step, last), strict=True
    ):
        assert_close(one_earlier, theirs)
        assert_differs(ours, theirs)


def test_accuracy_of_equal_scores():
    step = run(zero_head=True)
    (batch,) = step.microbatches
    correct, decided = bt_loss(batch.chosen, batch.rejected).aux["accuracy"]
    assert np.all(batch.chosen == batch.rejected)
    assert step.logged["accuracy"] == 0.0 == jnp.mean(batch.chosen > batch.rejected)
    assert correct / decided == 0.5


def test_unequal_microbatches():
    step = run(pairs=3, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    losses = [bt_loss(batch.chosen, batch.rejected) for batch in step.microbatches]
    pairs = [loss.denominator for loss in losses]
    assert pairs == [2, 1]
    ours = []
    for batch, count in zip(step.microbatches, pairs, strict=True):
        grad = jax.grad(lambda chosen, rejected=batch.rejected: bt_loss(chosen, rejected).sum)(batch.chosen)
        assert_close(grad / count / len(pairs), batch.grad_chosen)  # TRL: a mean of means
        ours.append(grad / sum(pairs))  # one division, by the pairs of all microbatches
        assert_differs(ours[-1], batch.grad_chosen)
    # The division by all pairs is what TRL computes itself where the batch is not cut.
    (whole,) = run(pairs=3).microbatches
    assert_close(jnp.sort(jnp.concatenate(ours)), jnp.sort(whole.grad_chosen))
