"""Mixes of checkpoints: what is written is what the formula says of what was read, whatever form the files have."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import DATA, born
from mix_cases import CONFIG, TEXT, TOOL, leaves_of, linear, run_tool
from orbax.checkpoint import PyTreeCheckpointer
from orbax.checkpoint import v1 as ocp

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import convert
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.checkpoint.stream import LeafInfo, Reader, Writer
from sphinx_jax.measure.peers import mix as mix_benchmark
from sphinx_jax.sharding import make_mesh
from sphinx_jax.weight_mix import settings as mix_settings
from sphinx_jax.weight_mix import sources as mix_sources
from sphinx_jax.weight_mix.interpolate import interpolate
from sphinx_jax.weight_mix.methods import METHODS
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.settings import Mix
from sphinx_jax.weight_mix.write import write as write_mix


def test_linear_is_the_weighted_sum_of_what_was_read(folders, tmp_path):
    run_tool("--sources", *folders, "--weights", 0.3, 0.5, 0.4, "--out", tmp_path / "out", "--quiet")
    trees = [leaves_of(folder) for folder in folders]
    for path, leaf in leaves_of(tmp_path / "out").items():
        wanted = sum(w * tree[path].astype(np.float64) for w, tree in zip((0.3, 0.5, 0.4), trees, strict=True))
        assert leaf.dtype == np.float32, "as the first source"
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-6, err_msg=path)
    assert store.read_config(tmp_path / "out") == CONFIG
    assert store.read_tokenizer(tmp_path / "out").vocab_size == 512


def test_the_file_and_the_traced_mix_agree(folders, tmp_path):
    write_mix(linear(folders[:2], (0.2, 0.8)), tmp_path / "out", quiet=True)
    trees = [leaves_of(folder) for folder in folders[:2]]
    traced = jax.jit(interpolate)(trees, np.array([0.2, 0.8], np.float32))
    for path, leaf in leaves_of(tmp_path / "out").items():
        np.testing.assert_allclose(leaf, traced[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_angles_are_measured_on_one_matrix_of_one_layer(folders, tmp_path):
    mix = Mix("slerp", tuple(map(str, folders[:2])), parameters={"t": 0.3})
    write_mix(mix, tmp_path / "out", quiet=True)
    a, b = (leaves_of(folder)["decoder/blocks/attention/q"].astype(np.float64) for folder in folders[:2])
    found = leaves_of(tmp_path / "out")["decoder/blocks/attention/q"]
    for layer in range(2):
        x, y = a[layer].ravel(), b[layer].ravel()
        angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        wanted = (np.sin(0.7 * angle) * x + np.sin(0.3 * angle) * y) / np.sin(angle)
        np.testing.assert_allclose(found[layer].ravel(), wanted, atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "model_stock"])
def test_a_mix_of_published_files_is_the_mix_of_their_conversions(tmp_path, method):
    """Row-wise methods mean output features, which lie along other axes in our leaves."""
    for seed in range(3):
        ours = store.save(tmp_path / f"ours{seed}", born(TEXT, seed), TEXT, None, {})
        convert.from_checkpoint(ours, tmp_path / f"pth{seed}", "accessory", quiet=True)
    own = {} if method == "model_stock" else {"weight": 0.5, "density": 0.6}
    parameters = {"filter_wise": True} if method == "model_stock" else {}
    results = []
    for form in ("ours", "pth"):
        base, *sources = (str(tmp_path / f"{form}{i}") for i in range(3))
        mix = Mix(method, tuple(sources), base, parameters, (own, own))
        results.append(leaves_of(write_mix(mix, tmp_path / f"mixed_{form}", quiet=True)))
    for path, leaf in results[0].items():
        np.testing.assert_allclose(leaf, results[1][path], atol=2e-6, err_msg=path)


def test_plain_orbax_in_gives_plain_orbax_out(tmp_path):
    trees = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        tree = {
            "params": {"dense": {"kernel": rng.normal(size=(5, 7)).astype(np.float32)}},
            "step": np.asarray(3, np.int32),
        }
        ocp.save_checkpointables(tmp_path / str(seed), {"state": tree})
        trees.append(tree)
    write_mix(linear([tmp_path / "0", tmp_path / "1"], (0.25, 0.75)), tmp_path / "out", quiet=True)
    found = ocp.load_checkpointables(tmp_path / "out")["state"]
    wanted = 0.25 * trees[0]["params"]["dense"]["kernel"] + 0.75 * trees[1]["params"]["dense"]["kernel"]
    np.testing.assert_allclose(found["params"]["dense"]["kernel"], wanted, rtol=1e-6)
    assert int(found["step"]) == 3, "whole numbers are taken from the first"


@pytest.mark.parametrize("method", ["linear", "slerp", "dare_ties", "nuslerp"])
def test_a_leaf_of_unknown_axes_is_mixed_in_parts_of_its_deeper_axes(method, tmp_path, monkeypatch):
    for seed in range(3):
        stack = np.random.default_rng(seed).normal(size=(3, 12, 5)).astype(np.float32)
        leaf = LeafInfo(stack.shape, stack.dtype, (1, 4, 5))
        writer = Writer(tmp_path / str(seed), {"stack": leaf})
        writer.write("stack", (), stack)
        writer.finish(None, None, {})
    sources = tuple(str(tmp_path / str(seed)) for seed in range(2))
    base = str(tmp_path / "2") if METHODS[method].base == "needed" else None
    own = ({"weight": 0.3, "density": 0.5}, {"weight": 0.7, "density": 0.5})
    own = tuple({k: v for k, v in one.items() if k in METHODS[method].per_source} for one in own)
    mix = Mix(method, sources, base, {"t": 0.3} if method == "slerp" else {}, own)
    whole = Reader(write_mix(mix, tmp_path / "whole", quiet=True)).read("stack")
    monkeypatch.setattr("sphinx_jax.weight_mix.mixer.BLOCK_BYTES", 100)
    monkeypatch.setattr("sphinx_jax.weight_mix.mixer.SLICE_BYTES", 40)
    mixer = Mixer(mix, tmp_path / "scratch")
    places = [place for place, _ in mixer.rows("stack", ())]
    assert places == [(i, slice(start, start + 4)) for i in range(3) for start in (0, 4, 8)]
    parts = Reader(write_mix(mix, tmp_path / "parts", quiet=True)).read("stack")
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize("sources", [2, 8])
def test_memory_stays_small_for_any_number_of_sources(sources, tmp_path):
    found = mix_benchmark.measure(tmp_path, TOOL, layers=2, sources=sources, rounds=1)
    assert found.peak_bytes < 600e6


def save_by_the_first_api(folder, tree):
    PyTreeCheckpointer().save(folder, tree)


def save_by_the_second_api(folder, tree):
    ocp.save_checkpointables(folder, {"state": tree})


@pytest.mark.parametrize("save", [save_by_the_first_api, save_by_the_second_api])
def test_lists_tuples_numbers_and_nothing_come_back_as_orbax_restores_them(tmp_path, save):
    def tree(seed):
        rng = np.random.default_rng(seed)

        def array(*shape):
            return rng.normal(size=shape).astype(np.float32)

        return {
            "layers": [array(3) for _ in range(12)],
            "nested": [array(2, 2), (array(4), {"deep": [array(2)]}), []],
            "pair": (None, array(5)),
            "dict": {"0": array(2), "1": jnp.asarray(array(3))},
            "empty": {},
            "nothing": None,
            "count": 7 + seed,
            "rate": 0.5 + seed,
            "step": np.asarray(3, np.int32),
        }

    for seed in range(2):
        save(tmp_path / str(seed), tree(seed))
    write_mix(linear([tmp_path / "0", tmp_path / "1"], (0.25, 0.75)), tmp_path / "out", quiet=True)
    entries = [
        list(json.loads(next((tmp_path / name).rglob("_METADATA")).read_text())["tree_metadata"])
        for name in ("0", "out")
    ]
    assert entries[0] == entries[1], "in this order too, which matters to earlier versions of Orbax (10 after 2)"
    found = ocp.load_checkpointables(tmp_path / "out")["state"]
    first = PyTreeCheckpointer().restore(next((tmp_path / "0").rglob("_METADATA")).parent)
    assert jax.tree.structure(found) == jax.tree.structure(first)
    assert jax.tree.map(type, found) == jax.tree.map(type, first)
    wanted = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, tree(0), tree(1)) | {"count": 7, "step": 3}
    for mixed, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mixed, expected, rtol=1e-6, atol=1e-7)


def test_what_a_list_loses_leaves_its_place(tmp_path):
    ocp.save_checkpointables(tmp_path / "full", {"state": {"a": [np.ones(2), np.ones(3), np.ones(4), "text"]}})
    ocp.save_checkpointables(tmp_path / "less", {"state": {"a": [np.ones(2), None, np.ones(4), "text"]}})
    mix = linear([tmp_path / "full", tmp_path / "less"], (0.25, 0.5), missing="skip")
    found = ocp.load_checkpointables(write_mix(mix, tmp_path / "out", quiet=True))["state"]["a"]
    assert [None if x is None else x.tolist() for x in found] == [[0.75] * 2, None, [0.75] * 4, None]


def test_chunks_across_layers_and_large_ones_are_laid_out_first(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("sphinx_jax.weight_mix.sources.PIECE_BYTES", 64)
    for method in ("linear", "slerp"):
        own = {"per_source": ({"weight": 1.0}, {"weight": -0.5})} if method == "linear" else {"parameters": {"t": 0.4}}
        mix = Mix(method, tuple(map(str, folders[:2])), **own)
        small = leaves_of(write_mix(mix, tmp_path / f"small_{method}", quiet=True))
        with monkeypatch.context() as whole:
            whole.setattr("sphinx_jax.weight_mix.sources.PIECE_BYTES", 2**24)
            large = leaves_of(write_mix(mix, tmp_path / f"large_{method}", quiet=True))
        for path in small:
            np.testing.assert_array_equal(small[path], large[path], err_msg=path)
    assert not list(tmp_path.glob("*.scratch*"))


@pytest.mark.parametrize("form", ["accessory", "hf"])
def test_other_forms_are_written_at_once(tmp_path, form):
    sources = [store.save(tmp_path / str(seed), born(TEXT, seed), TEXT, None, {}) for seed in range(2)]
    mix = linear(sources, (0.5, 0.5), dtype="bfloat16")
    write_mix(mix, tmp_path / "ours", quiet=True)
    write_mix(mix, tmp_path / "theirs", form=form, quiet=True)
    ours = leaves_of(tmp_path / "ours")
    back = mix_sources.open_source(tmp_path / "theirs")
    for path, info in back.leaves.items():
        assert info.dtype == ml_dtypes.bfloat16
        mixer = Mixer(linear([tmp_path / "theirs"], (1.0,)), tmp_path / "scratch")
        np.testing.assert_array_equal(mixer.whole(path), ours[path], err_msg=path)
    assert json.loads((tmp_path / "theirs" / "recipe.json").read_text())["method"] == "linear"


def test_a_recipe_makes_the_same_bits_again_and_refuses_other_sources(folders, tmp_path):
    arguments = ["--method", "dare_ties", "--base", folders[0], "--sources", folders[1], folders[2]]
    arguments += ["--weights", "0.6", "{attention: [0, 1], '*': 0.5}", "--set", "density=0.5", "--quiet"]
    run_tool(*arguments, "--out", tmp_path / "first")
    run_tool("--recipe", tmp_path / "first" / "recipe.json", "--out", tmp_path / "again", "--quiet")
    first, again = leaves_of(tmp_path / "first"), leaves_of(tmp_path / "again")
    for path in first:
        np.testing.assert_array_equal(first[path], again[path], err_msg=path)
    run_tool("--recipe", tmp_path / "first" / "recipe.json", "--out", tmp_path / "half", "--dtype", "bf16", "--quiet")
    for path, leaf in leaves_of(tmp_path / "half").items():
        np.testing.assert_array_equal(leaf, first[path].astype(ml_dtypes.bfloat16), err_msg=path)
    recipe = json.loads((tmp_path / "first" / "recipe.json").read_text())
    recipe["hashes"][str(folders[1])] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(recipe))
    done = run_tool("--recipe", tmp_path / "other.json", "--out", tmp_path / "third", "--quiet", expect=1)
    assert "has changed" in done.stderr and not (tmp_path / "third").exists()


def test_sources_may_be_named_from_where_one_stands(folders, tmp_path, monkeypatch):
    whole = leaves_of(write_mix(linear(folders[:2], (0.25, 0.75)), tmp_path / "whole", quiet=True))
    there = Path(folders[0]).parent
    monkeypatch.chdir(there)
    near = linear([Path(folders[0]).name, f"../{there.name}/{Path(folders[1]).name}"], (0.25, 0.75))
    out = write_mix(near, os.path.relpath(tmp_path / "near"), quiet=True)
    assert out == tmp_path / "near"
    found = leaves_of(out)
    assert found.keys() == whole.keys()
    for path, leaf in whole.items():
        np.testing.assert_array_equal(found[path], leaf)
    recipe = store.read_recipe(out)
    assert recipe["hashes"].keys() == set(near.sources)
    again = write_mix(near, tmp_path / "again", expected=recipe["hashes"], quiet=True)
    assert leaves_of(again).keys() == whole.keys()


def test_processes_share_the_leaves(folders, tmp_path):
    common = ["--sources", *folders[:2], "--weights", 0.5, 0.5, "--quiet", "--out"]
    run_tool(*common, tmp_path / "alone")
    running = [run_tool(*common, tmp_path / "shared", "--process", f"{i}/3", wait=False) for i in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    alone, shared = leaves_of(tmp_path / "alone"), leaves_of(tmp_path / "shared")
    for path in alone:
        np.testing.assert_array_equal(alone[path], shared[path], err_msg=path)


def test_a_killed_mix_leaves_nothing_that_looks_complete_and_goes_on(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        tree = {f"leaf{i}": rng.normal(size=(256, 1024)).astype(np.float32) for i in range(24)}
        ocp.save_checkpointables(tmp_path / name, {"state": tree})
    mix = linear([tmp_path / "a", tmp_path / "b"], (0.5, 0.5))
    code = (
        "import sys, time; from sphinx_jax.checkpoint import stream\n"
        "from sphinx_jax.weight_mix import settings, write\n"
        "real = stream.Writer.write\n"
        "stream.Writer.write = lambda *given: (time.sleep(0.1), real(*given), given[0].flush())\n"
        "mix = settings.from_json(__import__('json').loads(sys.argv[1]))\n"
        "write.write(mix, sys.argv[2], quiet=True)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(mix_settings.to_json(mix)), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(TOOL.parents[1])})
    begun, deadline = tmp_path / "out.unfinished", time.time() + 60
    while time.time() < deadline and len(list(begun.rglob("d/*"))) < 6:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists() and begun.exists()
    with pytest.raises(BadCheckpoint, match="unfinished"):
        mix_sources.open_source(begun)
    mixed = []
    real = Mixer.rows
    try:
        Mixer.rows = lambda self, path, index: (mixed.append(path), real(self, path, index))[1]
        write_mix(mix, tmp_path / "out", quiet=True)
    finally:
        Mixer.rows = real
    assert 0 < len(mixed) < 24, "what was done is not done again"
    a, b, out = (leaves_of(tmp_path / name) for name in ("a", "b", "out"))
    for path in out:
        np.testing.assert_allclose(out[path], (a[path] + b[path]) / 2, rtol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]


def test_bad_sources_are_named_and_nothing_is_left(folders, tmp_path):
    leaves = {path: np.array(leaf) for path, leaf in born(CONFIG, 5).items()}
    leaves["decoder/blocks/ffn/down"][1, 3, 4] = np.nan
    bad = store.save(tmp_path / "bad", leaves, CONFIG, None, {})
    lacking = {path: leaf for path, leaf in born(CONFIG, 5).items() if path != "decoder/norm/scale"}
    ocp.save_checkpointables(tmp_path / "lacking", {"state": store.unflatten(lacking)})
    counted = tmp_path / "counted"
    whole = born(CONFIG, 5) | {"decoder/norm/scale": np.ones(leaves["decoder/norm/scale"].shape, np.int32)}
    ocp.save_checkpointables(counted, {"state": store.unflatten(whole)})
    out = tmp_path / "out"
    for sources, said in (
        ([folders[0], bad], r"decoder/blocks/ffn/down of .*bad holds NaN or infinity"),
        ([folders[0], tmp_path / "lacking"], r"lacking has no leaf decoder/norm/scale"),
        ([folders[0], tmp_path / "nowhere"], r"nowhere does not exist"),
        ([folders[0], DATA / "llama_text" / "ckpt_mp2"], r"differs in shape|has no leaf"),
        ([folders[0], counted], r"decoder/norm/scale differs in kind: float32 in .*, int32 in .*counted"),
    ):
        with pytest.raises(BadCheckpoint, match=said):
            write_mix(linear(sources, (0.5, 0.5)), out, quiet=True)
        assert not out.exists() and not list(tmp_path.glob("out*"))
    with pytest.raises(BadCheckpoint, match="lies in a source"):
        write_mix(linear(folders[:2], (0.5, 0.5)), folders[0] / "out", quiet=True)


def test_missing_leaves_are_taken_or_skipped_when_asked(folders, tmp_path):
    lacking = {path: leaf for path, leaf in born(CONFIG, 5).items() if path != "decoder/norm/scale"}
    ocp.save_checkpointables(tmp_path / "lacking", {"state": store.unflatten(lacking)})
    sources = [tmp_path / "lacking", folders[0]]
    write_mix(linear(sources, (0.5, 0.5), missing="take"), tmp_path / "taken", quiet=True)
    np.testing.assert_array_equal(
        leaves_of(tmp_path / "taken")["decoder/norm/scale"], leaves_of(folders[0])["decoder/norm/scale"]
    )
    with pytest.raises(BadCheckpoint, match=r"lacks decoder/norm/scale \(1 leaves"):
        write_mix(linear(sources, (0.5, 0.5), missing="skip"), tmp_path / "skipped", quiet=True)
    assert not list(tmp_path.glob("skipped*")), "no model could load it"


@pytest.mark.parametrize("biased_first", [False, True])
@pytest.mark.parametrize("missing", ["take", "skip"])
def test_the_config_is_that_of_the_source_whose_leaves_the_mix_has(tmp_path, missing, biased_first):
    """Queries with and without bias: what is written can be restored, whichever source comes first."""
    biased = dataclasses.replace(TEXT, decoder=dataclasses.replace(TEXT.decoder, bias=("q", "k", "v")))
    order = [biased, TEXT] if biased_first else [TEXT, biased]
    sources = [store.save(tmp_path / str(i), born(c, i), c, None, {}) for i, c in enumerate(order)]
    out = write_mix(linear(sources, (0.5, 0.5), missing=missing), tmp_path / "out", quiet=True)
    wanted = biased if missing == "take" else TEXT
    assert store.read_config(out) == wanted
    assert store.restore(out, make_mesh(devices=jax.devices()[:1])).keys() == born(wanted, 0).keys()
