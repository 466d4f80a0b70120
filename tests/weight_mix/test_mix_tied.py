"""Tied with untied models: the output of a tied one is its embedding, in every kind of mix."""

import dataclasses
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import born
from mix_cases import TEXT, leaves_of, linear
from orbax.checkpoint import v1 as ocp

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import convert
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.sharding import make_mesh
from sphinx_jax.weight_mix import interference
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.settings import Mix
from sphinx_jax.weight_mix.sources import EMBEDDING, OUTPUT
from sphinx_jax.weight_mix.write import write as write_mix


def with_decoder(**fields):
    return dataclasses.replace(TEXT, decoder=dataclasses.replace(TEXT.decoder, **fields))


TIED = with_decoder(tied_embeddings=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tied, untied, tied."""
    root = tmp_path_factory.mktemp("tied")
    return [store.save(root / str(i), born(c, i), c, None, {}) for i, c in enumerate((TIED, TEXT, TIED))]


def outputs(folders):
    """What each computes its logits with, (D, V)."""
    found = map(leaves_of, folders)
    return [leaves.get(OUTPUT, leaves[EMBEDDING].T) for leaves in found]


@pytest.mark.parametrize("missing", ["take", "skip"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 2)])
def test_the_embedding_of_the_tied_goes_into_the_output(models, tmp_path, order, missing):
    sources = [models[i] for i in order]
    weights = (0.3, 0.5, 0.2)[: len(order)]
    out = write_mix(linear(sources, weights, missing=missing), tmp_path / "out", quiet=True)
    found = leaves_of(out)
    np.testing.assert_allclose(
        found[OUTPUT], sum(w * x for w, x in zip(weights, outputs(sources), strict=True)), atol=1e-6
    )
    embeddings = [leaves_of(folder)[EMBEDDING] for folder in sources]
    np.testing.assert_allclose(
        found[EMBEDDING], sum(w * x for w, x in zip(weights, embeddings, strict=True)), atol=1e-6
    )
    assert store.read_config(out) == TEXT
    store.restore(out, make_mesh(devices=jax.devices()[:1]))


def test_an_untied_model_is_not_made_unasked(models, tmp_path):
    with pytest.raises(BadCheckpoint, match="embedding, other sources have an output of their own; --missing take"):
        write_mix(linear(models[:2], (0.5, 0.5)), tmp_path / "out", quiet=True)
    assert not list(tmp_path.iterdir())


def test_what_is_tied_in_all_stays_tied(models, tmp_path):
    out = write_mix(linear([models[0], models[2]], (0.5, 0.5)), tmp_path / "out", quiet=True)
    assert OUTPUT not in leaves_of(out) and store.read_config(out) == TIED


@pytest.mark.parametrize(
    ("method", "base", "own", "parameters"),
    [
        ("task_arithmetic", 0, {"weight": 0.5}, {}),
        ("ties", 1, {"weight": 0.5, "density": 0.6}, {}),
        ("della", 0, {"weight": 0.5, "density": 0.6, "epsilon": 0.1}, {}),  # looks at rows
        ("slerp", None, {}, {"t": 0.4}),
    ],
)
def test_any_method_mixes_as_if_all_were_untied(models, tmp_path, method, base, own, parameters):
    untied = []
    for i, folder in enumerate(models):
        leaves = leaves_of(folder)
        leaves = {OUTPUT: leaves[EMBEDDING].T.copy()} | leaves
        untied.append(store.save(tmp_path / str(i), leaves, TEXT, None, {}))
    results = []
    for folders in (models, untied):
        sources = [str(f) for i, f in enumerate(folders) if i != base][:2]
        per_source = (own,) * 2 if own else ()
        mix = Mix(
            method, tuple(sources), None if base is None else str(folders[base]), parameters, per_source, missing="take"
        )
        results.append(leaves_of(write_mix(mix, tmp_path / f"mix{len(results)}", quiet=True)))
    assert results[0].keys() == results[1].keys()
    for path, leaf in results[0].items():
        np.testing.assert_array_equal(leaf, results[1][path], err_msg=path)


@pytest.mark.parametrize("form", ["ours", "hf", "orbax"])
def test_other_forms_and_small_pieces(models, tmp_path, form, monkeypatch):
    """Of Orbax's own checkpoints nothing but the leaves says that they are tied."""
    folders = models[:2]
    if form == "hf":
        folders = [convert.from_checkpoint(f, tmp_path / f.name, "hf", quiet=True) for f in folders]
    if form == "orbax":
        ocp.save_checkpointables(tmp_path / "plain", {"state": store.unflatten(born(TIED, 0))})
        folders = [tmp_path / "plain", models[1]]
    monkeypatch.setattr("sphinx_jax.weight_mix.sources.PIECE_BYTES", 1000)
    monkeypatch.setattr("sphinx_jax.weight_mix.mixer.BLOCK_BYTES", 1000)
    out = write_mix(linear(folders, (0.5, 0.5), dtype="bf16", missing="take"), tmp_path / "out", quiet=True)
    wanted = sum(outputs(models[:2])) / 2
    np.testing.assert_array_equal(leaves_of(out)[OUTPUT], wanted.astype(ml_dtypes.bfloat16))
    assert not list(tmp_path.glob("*.scratch*"))


@pytest.mark.parametrize("merge", [False, True])
def test_low_rank_additions_come_along(models, tmp_path, merge):
    config = with_decoder(tied_embeddings=True, lora_rank=2)
    tuned = store.save(tmp_path / "tuned", born(config, 5), config, None, {})
    mix = linear([tuned, models[1]], (0.5, 0.5), merge_lora=merge, missing="take")
    out = write_mix(mix, tmp_path / "out", quiet=True)
    np.testing.assert_allclose(leaves_of(out)[OUTPUT], sum(outputs([tuned, models[1]])) / 2, atol=1e-6)
    assert store.read_config(out) == with_decoder(lora_rank=0 if merge else 2)


def test_the_dry_run_and_the_interference_know_it(models, tmp_path):
    lines = list(Mixer(linear(models[:2], (0.5, 0.5), missing="take"), Path()).describe())
    (line,) = [line for line in lines if line.startswith(OUTPUT)]
    assert line.endswith(f"1 x linear, with the embedding of what is tied: {models[0]}")
    assert not any("tied" in line for line in Mixer(linear(models[1:2], (1,)), Path()).describe())
    found = interference.measure([str(models[1])] * 2, str(models[0]), tmp_path / "scratch", quiet=True)
    assert OUTPUT in {cell.module for cell in found.cells}
