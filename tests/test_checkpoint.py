"""Checkpoints: what comes back, under which names, and what damage looks like."""

import contextlib
import logging
import os
import resource
import shutil
import sys
import threading
from fnmatch import fnmatch
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, make_scalar_model, on_mesh, one_device
from running import in_processes, on_virtual_devices

from prl_jax.checkpoint import Checkpoints
from prl_jax.errors import Stopped, UserError
from prl_jax.integrity import checksums
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
        step, model, train, data = checkpoints.restore(model=zeros(state.model), train=zeros(rest(state)))
    assert step == 5 and same(model, state.model) and same(train, rest(state)) and data == DATA
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
            checkpoints.wait()
            assert checkpoints.latest() == 3
            assert checkpoints.restore_model({"x": jnp.zeros(2, int)})["x"].tolist() == [3, 3]
        assert steps(directory) == expected


def steps(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def save_all(directory, values) -> None:
    with Checkpoints(directory) as checkpoints:
        for step in values:
            train = {"m": weights(-step), "step": jnp.int32(step)}
            checkpoints.save(step, model=weights(step), train=train, data={"n": step})


def weights(seed: int) -> dict:
    key = jax.random.key(abs(seed))
    return {"w": jax.random.normal(key, (300, 40)) * seed, "b": jnp.full(7, seed, jnp.bfloat16)}


def test_a_finished_stage_keeps_its_result_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, model=weights(step), train={"step": jnp.int32(step)}, data={})
        checkpoints.finish()
        assert steps(tmp_path) == ["2"]


def test_the_best_step_is_kept_beside_the_newest_and_can_be_the_result(tmp_path):
    best = {1: None, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 7: 5, 8: 5}
    kept = {4: ["2", "3", "4"], 5: ["4", "5"], 8: ["5", "7", "8"]}
    with Checkpoints(tmp_path) as checkpoints:
        for step, best_step in best.items():
            train = {"step": jnp.int32(step)}
            checkpoints.save(step, model=weights(step), train=train, data={"n": step}, best=best_step)
            checkpoints.wait()
            assert steps(tmp_path) == kept.get(step, steps(tmp_path))
        assert checkpoints.holds(5) and not checkpoints.holds(2)
    with Checkpoints(tmp_path) as checkpoints:  # a run that goes on knows it from what the newest says
        checkpoints.save(9, model=weights(9), train=train, data={"n": 9}, best=5)
        checkpoints.finish(5)
        assert steps(tmp_path) == ["5"]
        assert same(checkpoints.restore_model(weights(0)), weights(5))


def test_a_step_is_saved_once(saved, state):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(5, model=zeros(state.model), train=rest(state), data=DATA)
        assert same(checkpoints.restore_model(zeros(state.model)), state.model)


def files(directory):
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def restored(directory) -> int:
    """What a run would continue from, after which step 6 can be saved again."""
    with Checkpoints(directory) as checkpoints:
        like = {"m": weights(0), "step": jnp.int32(0)}
        step, model, train, data = checkpoints.restore(model=weights(0), train=like)
        assert same(model, weights(step)) and same(train["m"], weights(-step)) and train["step"] == step
        assert data == {"n": step} and checkpoints.latest() == step
    save_all(directory, [6])
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert same(checkpoints.restore_model(weights(0)), weights(6))
    return step


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pristine") / "checkpoints"
    save_all(directory, [4, 6])
    return directory


# What holds values; the rest of the files says things that reading does without, or that the files here say again.
VALUES = ("data/metadata", "model/d/*", "train/d/*", "model/manifest.ocdbt", "train/manifest.ocdbt")


@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink])
def test_whatever_is_damaged_nothing_wrong_is_read(pristine, tmp_path, damage, capfd):
    """Every file of the newest checkpoint in turn: it is still read bit by bit, or the one before it is, and told."""
    fallen_back = []
    for number, victim in enumerate(files(pristine / "6")):
        directory, name = tmp_path / str(number), victim.relative_to(pristine / "6")
        shutil.copytree(pristine, directory)
        damage(directory / "6" / name)
        step = restored(directory)
        line = capfd.readouterr().err
        if step == 4:
            fallen_back.append(name)
            assert line.startswith(f"prl: {directory}/6: the checkpoint is damaged (") and line.count("\n") == 1, line
            assert line.endswith("; step 4 is used instead\n")
        else:
            assert (step, line) == (6, ""), name
    for pattern in VALUES:
        assert any(fnmatch(str(name), pattern) for name in fallen_back), pattern


@pytest.mark.parametrize("part", ["", "data", "model", "train"])
def test_a_folder_that_is_missing_or_empty_is_damage(pristine, tmp_path, part, capfd):
    for number, make in enumerate((lambda path: None, Path.mkdir)):
        directory = tmp_path / str(number)
        shutil.copytree(pristine, directory)
        shutil.rmtree(directory / "6" / part)
        make(directory / "6" / part)
        assert restored(directory) == 4
        assert ("step 4 is used instead" in capfd.readouterr().err) == (part != "" or make is Path.mkdir)


def test_values_that_changed_on_disk_are_named(tmp_path, monkeypatch, capfd):
    """Damage that every reader takes for good: two words of one array have changed places."""
    directory = tmp_path / "checkpoints"
    save_all(directory, [4])
    swapped = weights(6)
    with Checkpoints(directory) as checkpoints:
        monkeypatch.setattr("prl_jax.checkpoint.checksums", checksums_of_six)
        swapped["w"] = swapped["w"].at[jnp.array([3, 5]), 7].set(swapped["w"][jnp.array([5, 3]), 7])
        checkpoints.save(6, model=swapped, train={"m": weights(-6), "step": jnp.int32(6)}, data={"n": 6})
    monkeypatch.undo()
    assert restored(directory) == 4
    assert "(model/w differs from its checksum)" in capfd.readouterr().err


def checksums_of_six(arrays):
    return checksums({**arrays, "model/w": weights(6)["w"]})


def test_where_every_checkpoint_is_damaged_all_are_named(pristine, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    for step in ("4", "6"):
        flip(directory / step / "data" / "metadata")
    with Checkpoints(directory) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(model=weights(0), train={"m": weights(0), "step": jnp.int32(0)})
    message = str(error.value)
    assert message.startswith(f"{directory}/6: the checkpoint cannot be read") and "nor can 4" in message
    assert f"delete {tmp_path} to train this stage anew" in message and "\n" not in message
    assert steps(directory) == ["4", "6"]


def test_older_parameters_never_stand_in_for_a_result(pristine, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    for path in (directory / "6" / "model").rglob("d/*"):
        flip(path)
    with (
        Checkpoints(directory, read_only=True) as checkpoints,
        pytest.raises(UserError, match="/6: the checkpoint can"),
    ):
        checkpoints.restore_model(weights(0))
    assert steps(directory) == ["4", "6"]


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


@contextlib.contextmanager
def full_disk(size: int = 3000):
    """Files of this process end there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_and_fail(checkpoints) -> None:
    """Starts a save that fails in the background."""
    with full_disk():
        large = {"w": jax.random.normal(jax.random.key(0), (200, 200))}
        checkpoints.save(6, model=large, train={"m": weights(-6), "step": jnp.int32(6)}, data={"n": 6})
        # Until it has, without asking for its error.
        threading.Thread.join(checkpoints._manager._finalize_thread.get_not_none())


FAILED = "cannot save step 6 .*File too large.*; the checkpoint before it is kept; free some disk space"


@pytest.mark.parametrize("notice", ["wait", "finish", "save", "leave", "stop"])
def test_a_write_that_fails_in_the_background_is_told_and_costs_nothing(pristine, tmp_path, notice, caplog):
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    shutil.rmtree(directory / "6")
    save_all(directory, [5])
    with pytest.raises(UserError, match=FAILED) as error, Checkpoints(directory) as checkpoints:
        save_and_fail(checkpoints)
        if notice == "save":
            checkpoints.save(7, model=weights(7), train={"m": weights(-7), "step": jnp.int32(7)}, data={})
        elif notice == "stop":
            raise Stopped("saved, as the caller thinks")
        elif notice != "leave":
            getattr(checkpoints, notice)()
    assert "\n" not in str(error.value)
    assert {"4", "5"} <= set(steps(directory)) and not {"6", "7"} & set(steps(directory))
    assert restored_step(directory) == 5


def restored_step(directory) -> int:
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(model=weights(0), train={"m": weights(0), "step": jnp.int32(0)}).step


def test_an_error_under_way_is_not_hidden_by_that_of_a_write(tmp_path):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as checkpoints:
        save_and_fail(checkpoints)
        raise ZeroDivisionError


def test_what_is_saved_may_be_donated_at_once(tmp_path):
    """Steps go on in the same buffers while the file is written."""
    step = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
    state = {"w": jnp.zeros((1000, 1000)), "b": jnp.zeros(3)}
    with Checkpoints(tmp_path) as checkpoints:
        for n in (1, 2, 3):
            checkpoints.save(n, model=state, train={"twice": state["b"] * 2}, data={})
            for _ in range(10):
                before, state = state, step(state)
            assert before["w"].is_deleted()
            checkpoints.wait()
            saved = checkpoints.restore_model(state)
            assert all((leaf == 10 * (n - 1)).all() for leaf in saved.values())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    written, go = threading.Event(), threading.Event()
    with Checkpoints(tmp_path) as checkpoints:
        finalize = checkpoints._manager._finalize_checkpoint

        def slowly(step):
            assert go.wait(30)
            finalize(step)
            written.set()

        monkeypatch.setattr(checkpoints._manager, "_finalize_checkpoint", slowly)
        checkpoints.save(1, model=weights(1), train={"step": jnp.int32(1)}, data={})
        assert not written.is_set()
        go.set()
        checkpoints.wait()
        assert written.is_set() and steps(tmp_path) == ["1"]


@pytest.mark.slow
def test_a_checkpoint_continues_on_other_devices(tmp_path):
    script = Path(__file__).with_name("restored_elsewhere.py")
    assert on_virtual_devices(script, tmp_path / "checkpoints").splitlines()[-1] == "equal"


@pytest.mark.slow
def test_damage_that_one_process_meets_is_agreed_on_by_all(tmp_path):
    in_processes(Path(__file__).with_name("damaged_for_one.py"), tmp_path, number=2, devices=1)


@pytest.fixture
def asyncio_log(monkeypatch):
    log = logging.getLogger("asyncio")
    monkeypatch.setattr(log, "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    return log


def test_what_orbax_leaves_behind_after_an_error_stays_off_the_terminal(tmp_path, caplog, asyncio_log):
    """Writes that were given up are collected late, and asyncio logs each: a traceback for a full disk."""
    with pytest.raises(UserError), Checkpoints(tmp_path):
        raise UserError("disk full")
    asyncio_log.error("Task exception was never retrieved\nfuture: <Task ... at orbax/checkpoint/serialization.py:188>")
    asyncio_log.error("Task exception was never retrieved\nfuture: <Task ... at somewhere/else.py:1>")
    assert [record.getMessage().split("at ")[-1] for record in caplog.records] == ["somewhere/else.py:1>"]


def test_asyncio_speaks_as_ever_where_all_went_well(tmp_path, asyncio_log):
    with Checkpoints(tmp_path):
        assert len(asyncio_log.filters) == 1
    assert asyncio_log.filters == []
