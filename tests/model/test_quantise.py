"""Decoders in few bits: how far the numbers move, what they weigh, and that what was trained on them is ordinary."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, born, tiny_config
from PIL import Image

import sphinx_jax
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, DecoderConfig, MoeConfig
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import blueprint, held_bytes
from sphinx_jax.model.layers import contract, flat, is_quantised
from sphinx_jax.model.quantise import MATRICES, quantise, whole
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.recipe import PLAYGROUND
from sphinx_jax.train.settings import TrainStage

CONFIG = tiny_config(decoder=DecoderConfig(dim=64, layers=3, heads=2, kv_heads=1, vocab_size=1280, hidden_dim=128))
MOE = tiny_config(decoder=DecoderConfig(dim=64, layers=2, heads=2, vocab_size=1280, hidden_dim=64, moe=MoeConfig(3, 2)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = load_tokenizer(PLAYGROUND / "tokenizer.model")
    return store.save(tmp_path_factory.mktemp("q") / "model", born(CONFIG), CONFIG, tokenizer, {"made_by": "test"})


def test_int8_rounds_to_the_nearest_step_of_each_output():
    leaves = born(MOE)
    for path in MATRICES:
        x = np.asarray(leaves[path])
        inputs = (1, 2) if path.endswith("/o") else (x.ndim - 2,) if "/ffn/" in path else (1,)
        step = np.abs(x).max(axis=inputs, keepdims=True) / 127.5  # 255 of them from the least to the greatest
        found = np.asarray(whole(quantise(path, leaves[path], "int8"), jnp.float32))
        assert (np.abs(found - x) <= 0.502 * step).all()
        assert len(np.unique(np.round(found / step, 3))) <= 256


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_products_are_the_same_however_a_matrix_is_kept(dtype):
    leaves, rng = born(CONFIG), np.random.default_rng(0)
    for path in MATRICES:
        few = jax.tree.map(lambda x: x[1], quantise(path, leaves[path], "int8"))
        dims = 2 if path.endswith("/o") else 1
        x = rng.normal(size=(5, *few.qvalue.shape[:dims]))
        x[0] *= 1000  # as of a few channels of LLaMA's
        x = jnp.asarray(x, dtype)
        expected = contract(x.astype(jnp.float32), matrix := whole(few, jnp.float32), dims)
        for kernel in (few, flat(few, dims, True), flat(matrix, dims, True), flat(matrix, dims, False)):
            found = contract(x, kernel, dims)
            assert found.dtype == dtype and found.shape == expected.shape
            error = np.abs(found.astype(jnp.float32) - expected).max() / np.abs(expected).max()
            assert error < (1e-6 if dtype == "float32" else 8e-3)


def test_nf4_takes_the_nearest_of_its_sixteen_numbers():
    # quantiles of a normal distribution, from the paper's table (Dettmers et al. 2023, appendix E)
    table = np.array(
        [
            -1,
            -0.6961928,
            -0.52507305,
            -0.39491749,
            -0.28444138,
            -0.18477343,
            -0.09105004,
            0,
            0.0795803,
            0.1609302,
            0.2461123,
            0.33791524,
            0.44070983,
            0.5626170,
            0.72295684,
            1,
        ]
    )
    path = "decoder/blocks/ffn/down"
    x = np.asarray(born(CONFIG)[path])  # (L, F, D), 64 inputs a group
    groups = x.reshape(3, 2, 64, 64)
    scale = np.abs(groups).max(axis=2, keepdims=True)
    nearest = np.abs(groups[..., None] / scale[..., None] - table).argmin(-1)
    found = whole(quantise(path, jnp.asarray(x), "nf4"), jnp.float32)
    np.testing.assert_allclose(found, (table[nearest] * scale).reshape(x.shape), atol=1e-3)


@pytest.mark.parametrize(("kind", "share", "moved"), [("int8", 0.30, 0.05), ("nf4", 0.20, 0.6)])
def test_a_model_in_few_bits_answers_nearly_as_the_whole(folder, kind, share, moved):
    exact, few = sphinx_jax.from_pretrained(folder), sphinx_jax.from_pretrained(folder, quantize=kind)
    bits = {jnp.dtype("uint4"): 4}

    def size(leaves):
        parts = [x for path in MATRICES for x in jax.tree.leaves(leaves[path])]
        return sum(x.size * bits.get(x.dtype, 8 * x.dtype.itemsize) / 8 for x in parts)

    assert size(few.leaves) < share * size(exact.leaves)
    both = jax.tree.leaves(few.leaves)  # embeddings, encoders and what else is whole
    assert held_bytes(CONFIG, quantize=kind) == sum(x.size * bits.get(x.dtype, 8 * x.dtype.itemsize) for x in both) / 8
    tokens = np.random.default_rng(0).integers(3, 1280, (1, 24)).astype(np.int32)
    a, b = exact.logits(tokens), few.logits(tokens)
    assert 0 < np.abs(a - b).mean() < moved * np.abs(a).mean()
    assert isinstance(few.generate(["A"], max_new_tokens=4)[0], str)


def test_what_trains_is_not_quantised():
    with pytest.raises(ConfigError, match="decoder/blocks/attention/q trains"):
        TrainStage(start="fresh", steps=1, text_batch=1, quantize="int8")
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        TrainStage(start="fresh", steps=1, text_batch=1, quantize="int4")


@pytest.fixture
def meta(tmp_path):
    random = np.random.default_rng(0)
    lines = []
    for i in range(8):
        Image.fromarray(random.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
        talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a small red thing"}]
        lines.append(json.dumps({"image": f"{i}.png", "conversations": talk}))
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    (tmp_path / "list.yaml").write_text(f"META:\n  - {{path: items.jsonl, root: {tmp_path}}}\n")
    return tmp_path / "list.yaml"


@pytest.mark.parametrize(
    "options",
    [pytest.param("", marks=pytest.mark.slow), ",lora=2", pytest.param(",lora=2,nf4", marks=pytest.mark.slow)],
)
def test_one_config_fine_tunes_a_converted_folder(folder, meta, tmp_path, options):
    from configs import finetune

    values = finetune.get_config(f"{folder}{options}").to_dict()
    values["data"]["meta"]["train"] = str(meta)
    values["model"]["dtype"] = "float32"
    values["stage"]["finetune"] |= {"batch": 4, "length": 96, "epochs": 4.0, "rate": 1e-2, "log_every": 4}
    run = runner.run(runner.parse(values), tmp_path / "w", quiet=True)
    history = [json.loads(line) for line in (tmp_path / "w/finetune/history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [4, 8]  # 4 epochs of 8 items, 4 a step
    assert history[-1]["loss"] < history[0]["loss"]
    before, after = born(CONFIG), store.restore(run.checkpoint("finetune"), run.mesh)
    moved = {p for p, x in before.items() if not np.array_equal(x, after[p])}
    assert not any(p.startswith("encoders/") for p in moved)
    if options:
        assert any("/lora/" in p for p in after) and not any(is_quantised(x) for x in after.values())
        expected = {p for p in MATRICES} if "nf4" in options else set()
        assert moved & set(MATRICES) == expected
        for path in expected:  # a base in few bits is written as training saw it
            np.testing.assert_array_equal(after[path], whole(quantise(path, before[path], "nf4"), jnp.float32))
    else:
        assert set(MATRICES) <= moved and after.keys() == blueprint(CONFIG).specs.keys()
    model = sphinx_jax.from_pretrained(tmp_path / "w")
    assert model.respond([["What is it?", None]], image=Image.open(meta.parent / "0.png"), max_new_tokens=4) is not None


def test_the_config_says_what_is_missing(tmp_path):
    from configs import finetune

    for what, says in (
        ("", "say what to fine-tune"),
        (str(tmp_path), "no model.json"),
        (f"{DATA},lora=2", "no checkpoint"),
    ):
        with pytest.raises(ConfigError, match=says):
            finetune.get_config(what)
