"""Mixes of checkpoints with LoRA: what the result computes is the method's mix of what the sources compute."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import convert
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import DecoderConfig, ModelConfig, MoeConfig
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.sharding import make_mesh
from sphinx_jax.weight_mix import settings as mix_settings
from sphinx_jax.weight_mix import sources as mix_sources
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.settings import Mix
from sphinx_jax.weight_mix.write import write as write_mix

DECODER = DecoderConfig(dim=16, layers=2, heads=2, kv_heads=1, vocab_size=32, hidden_dim=24)
MOE = dataclasses.replace(DECODER, moe=MoeConfig(2, 1))
WEIGHTS = [f"decoder/blocks/{n}" for n in ("attention/q", "attention/o", "ffn/up", "ffn/down")]
RANKS = (2, 0, 3)
TOOL = ROOT / "tools" / "mix_weights.py"


def model(rank: int, decoder: DecoderConfig = DECODER, **more) -> ModelConfig:
    return ModelConfig("llama", dataclasses.replace(decoder, lora_rank=rank, **more))


def random_leaves(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """No factor is zero, as it is when a model is born."""
    rng = np.random.default_rng(seed)
    specs = sorted(blueprint(config).specs.items())
    return {path: rng.normal(0, 0.1, spec.shape).astype(np.float32) for path, spec in specs}


def save(folder: Path, rank: int, seed: int, decoder: DecoderConfig = DECODER, **more) -> str:
    config = model(rank, decoder, **more)
    return str(store.save(folder / f"{seed}", random_leaves(config, seed), config, None, {}))


def leaves_of(folder) -> dict[str, np.ndarray]:
    reader = stream.Reader(folder)
    return {path: reader.read(path) for path in reader.leaves}


def effective(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All leaves in float64 with the low-rank additions in the weights, by matrices of each layer and expert."""
    dense = {path: leaf.astype(np.float64) for path, leaf in leaves.items() if "/lora/" not in path}
    for path in leaves:
        if not path.endswith("/a"):
            continue
        a, b = leaves[path].astype(np.float64), leaves[path[:-1] + "b"].astype(np.float64)
        weight = path.replace("lora/", "").removesuffix("/a")
        leading = 2 if b.ndim == 4 and "ffn" in path else 1
        for at in np.ndindex(a.shape[:leading]):
            product = a[at].reshape(-1, a.shape[-1]) @ b[at].reshape(a.shape[-1], -1)
            dense[weight][at] += product.reshape(dense[weight][at].shape)
    return dense


def assert_computes(out, wanted: dict[str, np.ndarray], rank: int) -> None:
    config = store.read_config(out)
    assert config.decoder.lora_rank == rank
    restored = store.restore(out, make_mesh(devices=jax.devices()[:1]))
    found = effective({path: np.asarray(leaf) for path, leaf in restored.items()})
    assert found.keys() == wanted.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three sources of ranks 2, 0, 3 and a base of rank 4."""
    root = tmp_path_factory.mktemp("lora")
    return [save(root, rank, seed) for seed, rank in enumerate((*RANKS, 4))]


@pytest.fixture(scope="module")
def computed(folders):
    return [effective(leaves_of(folder)) for folder in folders]


def weights_of(folders, weights, **more) -> dict:
    return {"sources": tuple(folders), "per_source": tuple({"weight": w} for w in weights)} | more


def summed(weights, trees) -> dict[str, np.ndarray]:
    return {path: sum(w * tree[path] for w, tree in zip(weights, trees, strict=True)) for path in trees[0]}


# method -> its parameters, and the coefficients of the sources and the base that its definition gives
FIXED = {
    "linear": ({}, (0.5, 0.3, -0.7), None, 0),
    "average": (None, (1 / 3, 1 / 3, 1 / 3), None, 0),
    "ema": ({"decay": 0.8}, (0.64, 0.16, 0.2), None, 0),
    "task_arithmetic": ({"lambda": 0.5}, (0.5, 0.3, -0.7), (0.25, 0.15, -0.35), 0.95),
    "delta_apply": ({}, (0.5, 0.3, -0.7), (0.5, 0.3, -0.7), 1),
}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_sums_keep_the_ranks_side_by_side(folders, computed, tmp_path, method, merge):
    parameters, given, based, of_base = FIXED[method]
    own = tuple({"weight": w} for w in given) if mix_settings.METHODS[method].per_source else ()
    base = folders[3] if based else None
    mix = Mix(method, tuple(folders[:3]), base, parameters or {}, own, merge_lora=merge)
    out = write_mix(mix, tmp_path / "out", quiet=True)
    wanted = summed((*(based or given), of_base), computed)
    assert_computes(out, wanted, 0 if merge else sum(RANKS) + 4 * bool(base))
    assert mix_settings.read_recipe(out / "recipe.json") == mix


@pytest.mark.parametrize(
    ("method", "parameters", "of_source"), [("wise_ft", {"alpha": 0.25}, (0.25, 0.75)), ("delta_extract", {}, (1, -1))]
)
def test_one_source_and_its_base(folders, computed, tmp_path, method, parameters, of_source):
    out = write_mix(Mix(method, (folders[0],), folders[3], parameters), tmp_path / "out", quiet=True)
    assert_computes(out, summed(of_source, [computed[0], computed[3]]), 2 + 4)


def test_a_plain_base_lacks_no_leaf(folders, computed, tmp_path):
    mix = Mix("task_arithmetic", **weights_of([folders[0], folders[2]], (0.6, 0.7), base=folders[1]))
    out = write_mix(mix, tmp_path / "out", quiet=True)
    assert_computes(out, summed((0.6, 0.7, -0.3), [computed[0], computed[2], computed[1]]), 2 + 3)


def test_factors_have_the_coefficients_of_their_weight(folders, computed, tmp_path):
    table = {"decoder/blocks/attention/q": [0.1, 0.9], "attention": 0.4, "decoder/blocks/ffn/*": [0.3, 0.6], "*": 1.0}
    mix = Mix("linear", **weights_of(folders[:3], (table, 0.5, 0.2)))
    out = write_mix(mix, tmp_path / "out", quiet=True)
    wanted = {}
    for path in computed[0]:
        first = [0.4, 0.4] if "/attention/" in path else [0.3, 0.6] if "/ffn/" in path else [1.0, 1.0]
        first = [0.1, 0.9] if path.endswith("attention/q") else first
        if "/blocks/" not in path:
            wanted[path] = summed((1, 0.5, 0.2), computed[:3])[path]
        else:
            layers = [summed((first[i], 0.5, 0.2), [{path: tree[path][i]} for tree in computed[:3]]) for i in (0, 1)]
            wanted[path] = np.stack([layer[path] for layer in layers])
    assert_computes(out, wanted, 5)


def trimmed(delta: np.ndarray, density: float) -> np.ndarray:
    flat = delta.ravel().copy()
    flat[np.argsort(-np.abs(flat), kind="stable")[max(1, int(density * flat.size)) :]] = 0
    return flat.reshape(delta.shape)


def ties(base, sources, weights, density):
    """TIES of one matrix, normalized."""
    deltas = [w * trimmed(x - base, density) for w, x in zip(weights, sources, strict=True)]
    elected = np.sign(sum(deltas))
    agreeing = [np.where(np.sign(d) == elected, d, 0) for d in deltas]
    share = sum(w * (a != 0) for w, a in zip(weights, agreeing, strict=True))
    return base + sum(agreeing) / np.where(share, share, 1)


@pytest.mark.parametrize("rows", [None, 3])
def test_methods_of_whole_matrices_see_the_weight_with_its_addition(folders, computed, tmp_path, monkeypatch, rows):
    if rows:  # slices of few rows, and all that can be laid out is
        monkeypatch.setattr("sphinx_jax.weight_mix.mixer.SLICE_BYTES", 4 * 32 * rows)
        monkeypatch.setattr("sphinx_jax.weight_mix.sources.PIECE_BYTES", 64)
    own = tuple({"weight": w, "density": 0.5} for w in (0.6, 0.7))
    mix = Mix("ties", (folders[0], folders[2]), folders[1], per_source=own)
    out = write_mix(mix, tmp_path / "out", quiet=True)
    assert store.read_config(out).decoder.lora_rank == 0
    found = leaves_of(out)
    assert found.keys() == computed[0].keys()
    for path in WEIGHTS:
        for layer in range(2):
            a, base, b = (tree[path][layer] for tree in computed[:3])
            np.testing.assert_allclose(found[path][layer], ties(base, (a, b), (0.6, 0.7), 0.5), atol=1e-6)


def test_experts_and_biases(tmp_path):
    folders = [save(tmp_path, rank, seed, MOE, bias=("q", "gate")) for seed, rank in enumerate((2, 3))]
    trees = [effective(leaves_of(folder)) for folder in folders]
    for merge in (False, True):
        mix = Mix("linear", **weights_of(folders, (0.3, 0.5), merge_lora=merge))
        out = write_mix(mix, tmp_path / f"out{merge}", quiet=True)
        assert_computes(out, summed((0.3, 0.5), trees), 0 if merge else 5)


def test_published_folders_take_part_and_come_out(folders, computed, tmp_path):
    for i in (0, 2):
        convert.from_checkpoint(folders[i], tmp_path / f"pth{i}", "accessory", quiet=True)
    mix = Mix("linear", **weights_of([tmp_path / "pth0", folders[1], tmp_path / "pth2"], (0.5, 0.3, -0.7)))
    mix = dataclasses.replace(mix, sources=tuple(map(str, mix.sources)))
    wanted = summed((0.5, 0.3, -0.7), computed[:3])
    assert_computes(write_mix(mix, tmp_path / "ours", quiet=True), wanted, 5)
    there = mix_sources.open_source(write_mix(mix, tmp_path / "theirs", form="accessory", quiet=True))
    assert there.config.decoder.lora_rank == 5
    again = Mix("linear", **weights_of([str(there.folder)], (1.0,)))
    assert_computes(write_mix(again, tmp_path / "back", quiet=True), wanted, 5)


def test_the_mix_of_low_rank_models_has_the_logits_of_the_dense_mix(folders, computed, tmp_path):
    mix = Mix("linear", **weights_of(folders[:3], (0.5, 0.3, 0.2)))
    low = leaves_of(write_mix(mix, tmp_path / "low", quiet=True))
    dense = {path: np.float32(leaf) for path, leaf in summed((0.5, 0.3, 0.2), computed[:3]).items()}
    tokens = np.arange(1, 9, dtype=np.int32)[None]

    def logits(rank, leaves):
        config = dataclasses.replace(model(rank), dtype="float32")
        return jax.jit(lambda leaves: blueprint(config).bind(leaves).logits(jax.numpy.asarray(tokens)))(leaves)

    wanted = logits(0, dense)
    assert np.std(wanted) > 0.01
    np.testing.assert_allclose(logits(5, low), wanted, atol=1e-5)


def test_damaged_factors_are_refused(folders, tmp_path):
    config = model(2)
    whole = random_leaves(config, 0)
    factor = "decoder/blocks/attention/lora/q/b"
    lacking = {path: leaf for path, leaf in whole.items() if path != factor}
    broken = whole | {factor: np.full_like(whole[factor], np.nan)}
    wide = whole | {factor: np.zeros((2, 3, 2, 8), np.float32)}
    for name, leaves, said in (
        ("lacking", lacking, f"{factor} of .*lacking is missing"),
        ("broken", broken, f"{factor} of .*broken holds NaN"),
        ("wide", wide, rf"{factor} of .*wide is \(2, 3, 2, 8\); with LoRA of rank 2 \(2, 2, 2, 8\) fits"),
    ):
        folder = store.save(tmp_path / name, leaves, config, None, {})
        for merge in (False, True):
            mix = Mix("linear", **weights_of([folders[1], str(folder)], (0.5, 0.5), merge_lora=merge))
            with pytest.raises(BadCheckpoint, match=said):
                write_mix(mix, tmp_path / "out", quiet=True)
            assert not list(tmp_path.glob("out*"))


def test_the_dry_run_says_which_way_a_pair_goes(folders):
    kept = list(Mixer(Mix("linear", **weights_of(folders[:3], (1, 2, 3))), Path()).describe())
    command = [sys.executable, TOOL, "--sources", *folders[:3], "--weights", *"123", "--dry-run", "--merge-lora"]
    merged = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    end = "float32 -> float32  2 x linear"
    assert f"decoder/blocks/attention/lora/q/a  (2, 16, 5)  {end}, LoRA of rank 2 + 0 + 3 side by side" in kept
    assert f"decoder/blocks/attention/lora/q/b  (2, 5, 2, 8)  {end}, LoRA of rank 2 + 0 + 3 side by side" in kept
    assert f"decoder/blocks/attention/q  (2, 16, 2, 8)  {end}" in kept
    assert f"decoder/blocks/attention/q  (2, 16, 2, 8)  {end}, LoRA merged into it first" in merged
    assert not any("/lora/" in line for line in merged)
