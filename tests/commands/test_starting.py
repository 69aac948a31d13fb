"""A stage that continues needs no more memory than one that starts: its first state is gone before it reads another."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from fakes import make_decoder, make_scalar_model, on_mesh, one_device

from prl_jax.checkpoint import Restored
from prl_jax.methods import METHODS
from prl_jax.models import LOGICAL_AXES, LoraConfig, split, with_adapters
from prl_jax.optim import make_optimizer
from prl_jax.runs import training
from prl_jax.stages import online
from prl_jax.training.state import TrainState, create_state, initial_state, released

OPTIMIZER = make_optimizer(learning_rate=0.01, total_steps=3)


class Silent:
    """The position of data, and the best step, of which nobody asks anything."""

    def set_state(self, state) -> None: ...
    def restore(self, saved, checkpoints) -> None: ...


class Checkpoints:
    """Has one checkpoint, or none; remembers whether what it was read onto was freed."""

    def __init__(self, step: int | None):
        self.latest = lambda: step
        self.freed = None

    def restore(self, *, model, train) -> Restored:
        leaves = jax.tree.leaves((split(model)[0], train))
        self.freed = all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (model, train))
        return Restored(2, *zeros, {"iterator": {}, "best": None, "truncated": 5})


def decoder(lora: LoraConfig | None):
    mesh = one_device()
    plain = on_mesh(make_decoder(layers=1), mesh)
    return plain if lora is None else with_adapters(plain, lora, mesh, key=jax.random.key(0))


def trained(tree) -> list[jax.Array]:
    return jax.tree.leaves(split(tree)[0])


def frozen(tree) -> list[jax.Array]:
    return jax.tree.leaves(split(tree)[1])


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "adapters"])
def test_a_released_state_has_its_shapes_and_what_is_frozen(lora):
    state = create_state(decoder(lora), OPTIMIZER, one_device(), LOGICAL_AXES)
    before = [(x.shape, x.dtype, x.sharding) for x in trained(state)]
    free = released(state)
    assert [(x.shape, x.dtype, x.sharding) for x in trained(free)] == before
    assert all(x.is_deleted() for x in trained(state)) and not any(x.is_deleted() for x in frozen(state))
    assert all(one is other for one, other in zip(frozen(free), frozen(state), strict=True))
    assert bool(frozen(state)) == (lora is not None)


def starting(state, parts, whole, positions):
    """A training that starts at a state, as far as `start` looks at it."""
    return SimpleNamespace(state=state, parts=parts, whole=whole, positions=positions, best=Silent())


@pytest.mark.parametrize("step", [None, 2])
@pytest.mark.usefixtures("unchecked")  # of fakes
def test_supervised_training(step):
    model, checkpoints, truncated = decoder(None), Checkpoints(step), training.Count()
    before = create_state(model, OPTIMIZER, one_device(), LOGICAL_AXES)
    parts = lambda state: (state.model, (state.opt_state, state.step))  # noqa: E731
    whole = lambda state, model, train: TrainState(model, *train)  # noqa: E731
    positions = {"iterator": Silent(), "truncated": truncated}
    state, first = training.start(starting(before, parts, whole, positions), checkpoints)
    assert (first, truncated.value, checkpoints.freed) == ((2, 5, True) if step else (0, 0, None))
    assert all(x.is_deleted() == bool(step) for x in trained(model))
    assert not any(x.is_deleted() for x in trained(state))


@pytest.mark.parametrize("step", [None, 2])
@pytest.mark.usefixtures("unchecked")  # of fakes
def test_a_policy_that_learns(step):
    mesh, checkpoints = one_device(), Checkpoints(step)
    critic = on_mesh(make_scalar_model(1), mesh)
    models = [create_state(model, OPTIMIZER, mesh, LOGICAL_AXES) for model in (decoder(None), critic)]
    before = initial_state(*models, METHODS["ppo"].method)
    state, first = training.start(starting(before, online.parts, online.whole, {"iterator": Silent()}), checkpoints)
    assert (first, checkpoints.freed) == ((2, True) if step else (0, None))
    assert all(x.is_deleted() == bool(step) for x in trained(before))
    assert not any(x.is_deleted() for x in trained(state))
