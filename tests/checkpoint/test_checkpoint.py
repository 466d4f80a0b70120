"""Checkpoints: complete or not there, on any mesh; the mix of weights."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import DATA, born, tiny_config

from sphinx_jax.checkpoint import store
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.weight_mix.interpolate import interpolate

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
CONFIG = tiny_config()


@pytest.fixture
def saved(tmp_path):
    leaves = born(CONFIG, seed=3)
    return store.save(tmp_path / "c", leaves, CONFIG, TOKENIZER, {"made_by": "test"}), leaves


def test_a_checkpoint_gives_back_what_went_in(saved, mesh):
    folder, leaves = saved
    assert store.read_config(folder) == CONFIG
    assert store.read_tokenizer(folder).encode("a cat") == TOKENIZER.encode("a cat")
    found = store.restore(folder, mesh)
    assert found.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(found[path], leaf)


def test_an_object_store_takes_checkpoints_too(tmp_path, mesh, monkeypatch):
    """Its paths are no `pathlib.Path`, their `stat` says less."""
    from sphinx_jax import paths
    from sphinx_jax.recipe.run import progress_of

    monkeypatch.setattr(paths, "in_store", lambda name: True)
    workdir = paths.as_path(tmp_path)
    assert not isinstance(workdir, Path)
    for step in (2, 10):
        store.save(workdir / "tune" / "checkpoints" / str(step), born(CONFIG), CONFIG, TOKENIZER, {"made_by": "test"})
    assert progress_of(workdir) == ("tune", 10)
    store.keep_newest(workdir / "tune" / "checkpoints", 1)
    left = store.newest(workdir / "tune" / "checkpoints")
    assert left.name == "10" and not (workdir / "tune" / "checkpoints" / "2").exists()
    assert store.read_tokenizer(left).encode("a cat") == TOKENIZER.encode("a cat")
    assert store.restore(left, mesh).keys() == born(CONFIG).keys()


def test_state_is_plain_orbax_under_clean_paths(saved):
    from orbax.checkpoint import v1 as ocp

    folder, leaves = saved
    tree = ocp.load_checkpointables(folder)["state"]
    np.testing.assert_array_equal(tree["decoder"]["blocks"]["attention"]["q"], leaves["decoder/blocks/attention/q"])


def test_a_checkpoint_without_its_last_file_does_not_count(saved, tmp_path, mesh):
    folder, _ = saved
    folder = folder.rename(tmp_path / "7")
    assert store.newest(tmp_path) == folder
    (folder / "recipe.json").unlink()
    assert store.newest(tmp_path) is None
    with pytest.raises(store.BadCheckpoint, match="not a complete checkpoint"):
        store.restore(folder, mesh)


def test_saving_over_a_complete_checkpoint_is_refused_over_debris_it_is_not(saved, mesh):
    folder, leaves = saved
    with pytest.raises(store.BadCheckpoint, match="already holds"):
        store.save(folder, leaves, CONFIG, TOKENIZER, {})
    (folder / "recipe.json").unlink()
    store.save(folder, leaves, CONFIG, TOKENIZER, {"again": True})
    assert store.read_recipe(folder) == {"again": True}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"clip": None}, "encoders/clip/"),
        ({"pool_crops": 1, "qformer": None, "blip2": None}, "embedding_mix/qformer_proj"),
    ],
)
def test_another_model_is_refused_by_leaf(saved, mesh, changes, named):
    folder, _ = saved
    with pytest.raises(store.BadCheckpoint, match="another model"):
        store.restore(folder, mesh, blueprint(tiny_config(**changes)))


def test_only_the_newest_are_kept(tmp_path, mesh):
    leaves = {"decoder/norm/scale": jnp.ones(4)}
    for step in (5, 10, 100):
        store.save(tmp_path / str(step), leaves, CONFIG, None, {})
    store.keep_newest(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "100"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interpolation_is_the_papers_formula(dtype):
    rng = np.random.default_rng(0)
    real, synthetic = (
        {"a": jnp.asarray(rng.normal(size=(3, 4)), dtype), "b": jnp.asarray(rng.normal(size=5), dtype)} for _ in "12"
    )
    for beta in (0.0, 0.3, 1.0):
        mixed = jax.jit(interpolate)([real, synthetic], jnp.array([beta, 1 - beta]))
        for name in real:
            exact = beta * np.float64(real[name]) + (1 - beta) * np.float64(synthetic[name])
            assert mixed[name].dtype == real[name].dtype
            np.testing.assert_allclose(
                np.float64(mixed[name]), exact, rtol=1e-6 if dtype == "float32" else 8e-3, atol=1e-6
            )


def test_model_json_is_readable_by_people(saved):
    folder, _ = saved
    assert json.loads((folder / "model.json").read_text())["decoder"]["dim"] == 32


def test_a_save_that_is_still_being_written_holds_what_was_there_when_it_began(tmp_path, mesh):
    leaves = born(CONFIG, seed=3)
    expected = {path: np.array(leaf) for path, leaf in leaves.items()}
    wait = store.save_async(tmp_path / "c", leaves, CONFIG, None, {}, optimizer=leaves["decoder/embedding"])
    # the next step takes the arrays over
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    jax.block_until_ready(spoil(leaves))
    wait()
    for path, leaf in store.restore(tmp_path / "c", mesh).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    optimizer = store.restore_training(tmp_path / "c", jnp.asarray(expected["decoder/embedding"]))
    np.testing.assert_array_equal(optimizer, expected["decoder/embedding"])


def test_a_save_that_fails_says_so_where_it_is_waited_for(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "write_beside", full)
    wait = store.save_async(tmp_path / "c", born(CONFIG, seed=3), CONFIG, None, {})
    with pytest.raises(OSError, match="no space left"):
        wait()
    assert not store.is_complete(tmp_path / "c")


def test_an_optimizer_without_slots_is_saved_and_comes_back(tmp_path):
    slots = optax.sgd(0.1).init({"x": jnp.zeros(3)})
    config = tiny_config()
    store.save(tmp_path / "1", {"x": jnp.ones(3)}, config, None, {}, optimizer=slots)
    assert store.is_complete(tmp_path / "1") and not (tmp_path / "1" / "optimizer").exists()
    assert store.restore_training(tmp_path / "1", slots) == slots
