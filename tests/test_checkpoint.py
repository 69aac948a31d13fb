"""Checkpoints: what comes back, under which names, and what damage looks like."""

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, make_scalar_model, on_mesh, one_device

from prl_jax import checkpoint
from prl_jax.checkpoint import Checkpoints
from prl_jax.errors import UserError
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.training.state import create_state
from prl_jax.tree import flatten, unflatten

DATA = {"iterator": {"position": 7, "names": ["a", "b"]}}


@pytest.fixture(scope="module")
def state():
    """A critic with a used optimizer state: nested modules, tuples, counters."""
    mesh, optimizer = one_device(), make_optimizer(learning_rate=0.1, total_steps=3)
    state = create_state(on_mesh(make_scalar_model(layers=1), mesh), optimizer, mesh, LOGICAL_AXES)
    filled = jax.tree.map(lambda x: (x + np.pi).astype(x.dtype) if x.ndim else x + 2, state.opt_state)
    return state._replace(opt_state=filled, step=state.step + 5)


def rest(state) -> dict:
    return {"opt_state": state.opt_state, "step": state.step, "kl_coef": jnp.float32(0.1) * state.step}


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and a.sharding == b.sharding and bool((a == b).all()) for a, b in pairs
    )


@pytest.fixture
def saved(tmp_path, state):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(5, model=state.model, train=rest(state), data=DATA)
    return tmp_path / "checkpoints"


def zeros(tree):
    return jax.tree.map(lambda x: x * 0, tree)


def test_everything_comes_back_bitwise(saved, state):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 5
        model, train, data = checkpoints.restore(model=zeros(state.model), train=zeros(rest(state)))
    assert same(model, state.model) and same(train, rest(state)) and data == DATA
    assert type(model) is type(state.model) and model.config == state.model.config


def test_the_model_comes_back_alone_onto_abstract_arrays(saved, state):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.model)
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert same(checkpoints.restore_model(abstract), state.model)


def test_names_of_parameters_are_stable():
    """Files outlive the code that wrote them: these names are a format."""
    block = [f"blocks.attention.{name}.weight" for name in "kovq"] + ["blocks.attention_norm.scale"]
    block += [f"blocks.mlp.{name}.weight" for name in ("down", "gate", "up")] + ["blocks.mlp_norm.scale"]
    decoder = [*block, "embedding", "norm.scale"]
    assert sorted(flatten(make_decoder())) == sorted(decoder)
    assert sorted(flatten(make_decoder(tied_embeddings=False))) == sorted([*decoder, "head"])
    scalar = [f"decoder.{name}" for name in decoder] + ["scalar.weight"]
    assert sorted(flatten(make_scalar_model())) == sorted(scalar)


def test_flatten_and_unflatten_are_inverse(state):
    for tree in (state.model, rest(state), jnp.ones(2), {"a": (jnp.ones(1), [jnp.zeros(2)])}):
        flat = flatten(tree)
        assert len(flat) == len(jax.tree.leaves(tree))
        assert same(unflatten(zeros(tree), dict(reversed(flat.items()))), tree)


def test_only_the_newest_are_kept(tmp_path):
    for keep, expected in ((1, ["3"]), (2, ["2", "3"])):
        directory = tmp_path / str(keep)
        with Checkpoints(directory, keep=keep) as checkpoints:
            assert checkpoints.latest() is None
            for step in (1, 2, 3):
                checkpoints.save(step, model={"x": jnp.full(2, step)}, train={"y": jnp.ones(1)}, data={})
            assert checkpoints.latest() == 3
            assert checkpoints.restore_model({"x": jnp.zeros(2, int)})["x"].tolist() == [3, 3]
        assert sorted(path.name for path in directory.iterdir()) == expected


def test_a_step_is_saved_once(saved, state):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(5, model=zeros(state.model), train=rest(state), data=DATA)
        assert same(checkpoints.restore_model(zeros(state.model)), state.model)


def files(directory):
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_a_damaged_checkpoint_is_named(saved, state, damage):
    victims = [path for path in files(saved / "5" / "model")]
    assert victims
    for path in victims:
        path.write_bytes(path.read_bytes()[:3]) if damage == "cut" else path.unlink()
    with Checkpoints(saved, read_only=True) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore_model(zeros(state.model))
    message = str(error.value)
    assert message.startswith(f"{saved}/5: the checkpoint cannot be read") and "\n" not in message


def test_a_checkpoint_of_another_model_is_named(saved):
    other = on_mesh(make_scalar_model(layers=2), one_device())
    with Checkpoints(saved, read_only=True) as checkpoints, pytest.raises(UserError, match=f"{saved}/5"):
        checkpoints.restore_model(other)
    wrong = on_mesh(make_decoder(layers=1), one_device())
    with Checkpoints(saved, read_only=True) as checkpoints, pytest.raises(UserError, match=f"{saved}/5"):
        checkpoints.restore_model(wrong)


def test_an_empty_and_a_missing_directory_are_named(tmp_path, state):
    (tmp_path / "empty").mkdir()
    with Checkpoints(tmp_path / "empty", read_only=True) as checkpoints:
        for call in (
            lambda: checkpoints.restore_model(state.model),
            lambda: checkpoints.restore(model=state.model, train=rest(state)),
        ):
            with pytest.raises(UserError, match=f"{tmp_path / 'empty'}: holds no checkpoint; train the stage first"):
                call()
    with pytest.raises(UserError, match=f"{tmp_path / 'none'}: no such checkpoint directory"):
        Checkpoints(tmp_path / "none", read_only=True)


def test_an_unfinished_save_is_not_seen(saved, state):
    """What a killed process leaves is cleared away, and the checkpoint before it stays."""
    unfinished = saved / "6.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "half").write_text("x")
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 5
        assert same(checkpoints.restore_model(zeros(state.model)), state.model)
    assert not unfinished.exists()


def test_a_full_disk_is_named(saved, state, monkeypatch):
    with Checkpoints(saved) as checkpoints:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(UserError, match=f"{saved}: cannot save step 6 .*No space left.*free some disk space"):
            checkpoints.save(6, model=state.model, train=rest(state), data=DATA)


def test_what_orbax_leaves_behind_after_an_error_stays_off_the_terminal(caplog, monkeypatch):
    """Writes that were given up are collected late, and asyncio logs each: a traceback for a full disk."""
    asyncio_log = logging.getLogger("asyncio")
    monkeypatch.setattr(asyncio_log, "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(OSError), checkpoint._without_stragglers():
        raise OSError("disk full")
    asyncio_log.error("Task exception was never retrieved\nfuture: <Task ... at orbax/checkpoint/serialization.py:188>")
    asyncio_log.error("Task exception was never retrieved\nfuture: <Task ... at somewhere/else.py:1>")
    assert [record.getMessage().split("at ")[-1] for record in caplog.records] == ["somewhere/else.py:1>"]


def test_asyncio_speaks_as_ever_after_a_read_or_save_that_went_well(monkeypatch):
    asyncio_log = logging.getLogger("asyncio")
    monkeypatch.setattr(asyncio_log, "filters", [])
    with checkpoint._without_stragglers():
        assert len(asyncio_log.filters) == 1
    assert asyncio_log.filters == []
