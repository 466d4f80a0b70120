"""The published folders, there and back, against files that the reference itself wrote and split."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import DATA, read_published
from test_tokenizer_files import listed, ranks

from sphinx_jax.checkpoint.foreign import accessory, convert
from sphinx_jax.checkpoint.foreign.accessory_config import from_params
from sphinx_jax.checkpoint.foreign.accessory_write import write_folder
from sphinx_jax.checkpoint.foreign.foreign import open_foreign
from sphinx_jax.checkpoint.foreign.names import UNUSED, accessory_names
from sphinx_jax.checkpoint.foreign.pth import PthWriter, read_pth
from sphinx_jax.checkpoint.foreign.shards import cut
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConfigError, DecoderConfig, ModelConfig, MoeConfig, family
from sphinx_jax.data.tokenizer import BadTokenizer, load_tokenizer
from sphinx_jax.model.blueprint import blueprint

DIGESTS = json.loads((DATA / "published" / "shard_digests.json").read_text())
TEXT = DATA / "llama_text" / "ckpt_mp2"
MIXTRAL = ModelConfig(
    name="mixtral",
    decoder=DecoderConfig(
        dim=32,
        layers=2,
        heads=4,
        kv_heads=2,
        vocab_size=64,
        hidden_dim=48,
        rope_theta=1e6,
        moe=MoeConfig(4, 2, 0.1, half_router=True),
    ),
)
MIXTRAL_PEFT = dataclasses.replace(
    MIXTRAL,
    name="mixtral_peft",
    decoder=dataclasses.replace(MIXTRAL.decoder, bias=("q", "k", "v", "o", "gate", "up", "down"), lora_rank=4),
)


def digest(tensor: np.ndarray) -> str:
    content = f"{tensor.dtype}{tensor.shape}".encode() + np.ascontiguousarray(tensor).tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


def digests(file) -> dict[str, str]:
    return {key: digest(tensor.read()) for key, tensor in read_pth(file).items()}


def random_leaves(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {p: rng.normal(size=s.shape).astype(np.float32) for p, s in sorted(blueprint(config).specs.items())}


def rows_of(leaves):
    return lambda path, index: leaves[path][index]


def put(folder, tensors, name="consolidated.00-of-01.model.pth"):
    folder.mkdir(exist_ok=True)
    with PthWriter(folder / name) as file:
        for key, tensor in tensors.items():
            file.add(key, tensor)
    return folder


def loaded(tensors) -> dict[str, np.ndarray]:
    return {key: tensor.read() for key, tensor in tensors.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(found[key], expected[key])


# names


@pytest.mark.parametrize(
    ("listing", "name"),
    [("llama_ens_13b", "sphinx"), ("llama_ens_light", "sphinx_tiny"), ("mixtral_sparse_ens", "sphinx_moe")],
)
def test_every_key_of_the_full_size_files_has_its_leaf(listing, name):
    listed = json.loads((DATA / "published" / f"full_keys_{listing}.json").read_text())
    shapes = {key: tuple(shape) for key, shape in listed if key not in UNUSED}
    config = family(name)
    specs = blueprint(config).specs
    names = list(accessory_names(config))
    assert {n.foreign: n.blank(specs[n.leaves[0]].shape).shape for n in names} == shapes
    assert len(names) == len(shapes)
    assert {leaf for n in names for leaf in n.leaves} == specs.keys()
    assert {key for key, _ in listed} - shapes.keys() == {key for key in UNUSED if config.clip or "dino" in key}


@pytest.mark.parametrize("config", [MIXTRAL, MIXTRAL_PEFT], ids=lambda config: config.name)
def test_every_leaf_of_the_dense_mixture_has_its_keys(config):
    specs = blueprint(config).specs
    names = list(accessory_names(config, dense_experts=True))
    assert sum(n.blank(specs[n.leaves[0]].shape).size for n in names) == sum(spec.size for spec in specs.values())
    shapes = {n.foreign: n.blank(specs[n.leaves[0]].shape).shape for n in names}
    assert shapes["layers.1.feed_forward.experts.3.w2.weight"] == (32, 48)
    assert shapes["layers.1.feed_forward.gate.weight"] == (4, 32)
    tuned = {key for key in shapes if "lora" in key or key.endswith("bias")}
    # four attention matrices and three of each of four experts, in two layers: a bias, a and b for each
    assert len(tuned) == (2 * (4 + 3 * 4) * 3 if config.decoder.lora_rank else 0)


@pytest.mark.parametrize("name", ["llama_ens_peft", "mixtral_sparse"])
def test_logits_of_the_references_files_are_the_references(name):
    folder = DATA / name
    config = accessory.read_config([folder / "ckpt"], 512)
    config = ModelConfig(name=name, decoder=config.decoder)  # the decoder alone is in these files
    leaves = read_published(accessory.open_folders([folder / "ckpt"]), config)
    model = blueprint(config).bind({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    expected = np.load(folder / "expected.npz")
    logits = jax.jit(model.logits)(jnp.asarray(expected["examples"]))
    np.testing.assert_allclose(logits[:, ::16], expected["text_logits"], atol=1e-4)


# folders


def test_metas_layout_and_two_shards_are_the_one_file():
    whole = {key.removeprefix("llma."): value for key, value in DIGESTS["llama_text/ckpt"][0].items()}
    for folder in ("ckpt_mp2", "ckpt_meta_ori_2"):
        tensors = accessory.open_folders([DATA / "llama_text" / folder])
        assert {key: digest(tensor.read()) for key, tensor in tensors.items()} == whole


def test_a_difference_is_added():
    (file,) = (DATA / "llama_text" / "ckpt_diff").glob("*.model-diff.pth")
    difference = {key.removeprefix("llma."): tensor.read() for key, tensor in read_pth(file).items()}
    base = loaded(accessory.open_folders([TEXT]))
    assert all(np.abs(tensor).max() > 0 for tensor in difference.values())
    assert_equal(
        loaded(accessory.open_folders([TEXT, file.parent])), {key: base[key] + difference[key] for key in base}
    )
    with pytest.raises(BadCheckpoint, match="ckpt_diff has a difference for .*, which no folder before it has"):
        accessory.open_folders([file.parent])


def test_a_difference_keeps_the_bases_dtype(tmp_path):
    values = np.linspace(0, 1, 8).astype(ml_dtypes.bfloat16)
    put(tmp_path / "a", {"x": values})
    put(tmp_path / "b", {"x": np.full(8, 0.003, np.float32)}, "consolidated.00-of-01.model-diff.pth")
    tensor = accessory.open_folders([tmp_path / "a", tmp_path / "b"])["x"]
    expected = (values.astype(np.float32) + np.float32(0.003)).astype(ml_dtypes.bfloat16)
    assert tensor.dtype == tensor.read().dtype == expected.dtype
    np.testing.assert_array_equal(tensor.read(), expected)
    np.testing.assert_array_equal(tensor.read(2, 5), expected[2:5])


def test_later_folders_override_key_by_key(tmp_path):
    base = loaded(accessory.open_folders([TEXT]))
    trained = {"llma.norm.weight": np.zeros(64, np.float32), "llma.extra": np.ones(1, np.float32)}
    found = loaded(accessory.open_folders([TEXT, put(tmp_path / "tuned", trained)]))
    assert_equal(found, base | {key.removeprefix("llma."): tensor for key, tensor in trained.items()})


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("rows", [(0, 8), (3, 61), (0, 0), (500, None)])
def test_rows_of_joined_tensors_are_slices(tmp_path, shards, rows):
    config = accessory.read_config([DATA / "mixtral_sparse" / "ckpt"], 512)
    one = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, layers=1))
    leaves = random_leaves(one)
    tensors = accessory.open_folders([write_folder(tmp_path / "out", rows_of(leaves), one, shards=shards)])
    for key in ("layers.0.feed_forward.w2", "output.weight", "tok_embeddings.weight", "norm.weight"):
        np.testing.assert_array_equal(tensors[key].read(*rows), tensors[key].read()[slice(*rows)])


def test_folders_that_are_no_whole_checkpoint_get_one_line(tmp_path):
    with pytest.raises(BadCheckpoint, match="nowhere is no folder"):
        accessory.open_folders([tmp_path / "nowhere"])
    with pytest.raises(BadCheckpoint, match="holds no consolidated"):
        accessory.open_folders([tmp_path])
    shutil.copy(TEXT / "consolidated.01-of-02.model.pth", tmp_path)
    with pytest.raises(BadCheckpoint, match=r"lacks shards \[0\] of 2"):
        accessory.open_folders([tmp_path])
    put(tmp_path, {"x": np.zeros(1)})
    with pytest.raises(BadCheckpoint, match="more than one checkpoint"):
        accessory.open_folders([tmp_path])


@pytest.mark.parametrize(
    ("second", "line"),
    [({}, "is in 1 of 2 shards"), ({"norm.weight": np.zeros(3)}, "differs in shape or dtype")],
)
def test_shards_that_disagree_get_one_line(tmp_path, second, line):
    put(tmp_path, {"norm.weight": np.zeros(2)}, "consolidated.00.pth")
    put(tmp_path, second, "consolidated.01.pth")
    with pytest.raises(BadCheckpoint, match=f"norm.weight {line}"):
        accessory.open_folders([tmp_path])


# what does not fit


def text_model() -> tuple[ModelConfig, dict]:
    return accessory.read_config([TEXT], 512), accessory.open_folders([TEXT])


def test_keys_that_do_not_fit_are_listed_together():
    config, tensors = text_model()
    wide = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=600))
    tensors["strange"] = tensors.pop("norm.weight")
    with pytest.raises(BadCheckpoint) as error:
        read_published(tensors, wide)
    line = str(error.value)
    assert "1 missing: norm.weight; 1 unexpected: strange; 2 mis-shaped: " in line
    assert "tok_embeddings.weight (512, 64) for (600, 64)" in line and "output.weight" in line


def test_a_long_list_of_keys_is_cut():
    config, tensors = text_model()
    unexpected = {f"key{number:02d}": tensors["norm.weight"] for number in range(33)}
    with pytest.raises(BadCheckpoint, match=r"33 unexpected: key00, .*, key19 and 13 more$"):
        read_published(tensors | unexpected, config)


def test_missing_keys_may_be_allowed_by_whole_leaves():
    config, tensors = text_model()
    tuned = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora_rank=4, bias=("q", "o")))
    with pytest.raises(BadCheckpoint, match=r"48 missing: .*lora_a.weight"):
        read_published(tensors, tuned)
    found = read_published(tensors, tuned, allow_missing=["*.lora_?.weight", "*.bias"])
    assert_equal(found, read_published(tensors, config))
    del tensors["layers.1.ffn_norm.weight"]
    with pytest.raises(BadCheckpoint, match="1 missing: layers.1.ffn_norm.weight"):
        read_published(tensors, config, allow_missing=["*"])


# the way back


@pytest.mark.parametrize("name", ["llama_text", "llama_ens5", "mixtral_sparse"])
def test_written_shards_are_the_references_bit_by_bit(tmp_path, name):
    source = TEXT if name == "llama_text" else DATA / name / "ckpt"
    config, tensors = accessory.read_config([source], 512), accessory.open_folders([source])
    leaves = read_published(tensors, config)
    accessory.write_unused(tmp_path, accessory.unused(tensors))
    kept = accessory.read_unused(tmp_path)
    assert kept.keys() == (set(UNUSED) if name == "llama_ens5" else set())
    for shards in (1, 2, 8):
        out = write_folder(tmp_path / str(shards), rows_of(leaves), config, shards=shards, unused=kept)
        if shards == 2:
            found = [digests(file) for file in sorted(out.glob("consolidated.0?-of-02.model.pth"))]
            assert found == DIGESTS[f"{name}/ckpt_mp2"]
        assert_equal(loaded(accessory.open_folders([out])), loaded(tensors))
        assert accessory.read_config([out], 7) == config


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("config", [MIXTRAL, MIXTRAL_PEFT], ids=lambda config: config.name)
def test_the_dense_mixture_keeps_experts_whole(tmp_path, config, shards):
    leaves = random_leaves(config)
    out = write_folder(tmp_path / "out", rows_of(leaves), config, shards=shards)
    for rank in range(shards):
        part = read_pth(out / f"consolidated.{rank:02d}-of-{shards:02d}.model.pth")
        experts = {int(key.split("experts.")[1].split(".")[0]) for key in part if "experts" in key}
        assert experts == set(range(rank * 4 // shards, (rank + 1) * 4 // shards))
        assert part["llma.layers.0.attention.wq.weight"].shape == (32 // shards, 32)
        last = f"llma.layers.1.feed_forward.experts.{max(experts)}"
        np.testing.assert_array_equal(
            part[f"{last}.w2.weight"].read(), leaves["decoder/blocks/ffn/down"][1, max(experts)].T
        )
        if config.decoder.lora_rank:
            assert part["llma.layers.0.attention.wo.lora_a.weight"].shape == (4, 32 // shards)
            assert part["llma.layers.0.attention.wo.bias"].shape == (32,)
            assert part[f"{last}.w1.lora_b.weight"].shape == (48, 4)
    assert accessory.read_config([out], 7) == config
    assert_equal(read_published(accessory.open_folders([out]), config), leaves)


def test_written_in_another_dtype_with_a_tokenizer(tmp_path):
    config, tensors = text_model()
    leaves = read_published(tensors, config)
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    out = write_folder(tmp_path / "o", rows_of(leaves), config, dtype="bfloat16", tokenizer=tokenizer)
    assert_equal(
        loaded(accessory.open_folders([out])),
        {key: tensor.read().astype(ml_dtypes.bfloat16) for key, tensor in tensors.items()},
    )
    assert load_tokenizer(out).encode("a cat") == tokenizer.encode("a cat")
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        write_folder(tmp_path / "p", rows_of(leaves), config, dtype="bfloat61")


def test_nothing_half_written_is_left(tmp_path):
    config, _ = text_model()

    def breaks(path, index):
        if path == "decoder/norm/scale":
            raise OSError("disk on fire")
        return np.zeros(blueprint(config).specs[path].shape[len(index) :], np.float32)

    with pytest.raises(OSError, match="disk on fire"):
        write_folder(tmp_path / "out", breaks, config)
    with pytest.raises(BadCheckpoint, match=r"tok_embeddings.weight \(512, 64\) does not divide over 3 shards"):
        write_folder(tmp_path / "out", breaks, config, shards=3)
    with pytest.raises(BadCheckpoint, match="4 experts do not divide over 8 shards"):
        write_folder(tmp_path / "out", breaks, MIXTRAL, shards=8)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadCheckpoint, match="exists already"):
        write_folder(tmp_path, breaks, config)


def test_unused_tensors_survive_in_their_dtype(tmp_path):
    tensors = {
        "clip.logit_scale": np.array(4.6, ml_dtypes.bfloat16),
        "clip.visual.proj": np.arange(12.0, dtype=np.float32).reshape(3, 4),
    }
    kept = accessory.unused(accessory.open_folders([put(tmp_path / "a", tensors | {"norm.weight": np.ones(3)})]))
    # as torch stores a transposed view
    turned = dataclasses.replace(kept["clip.visual.proj"], shape=(4, 3), strides=(1, 4))
    accessory.write_unused(tmp_path, kept | {"clip.visual.proj": turned})
    assert_equal(accessory.read_unused(tmp_path), tensors | {"clip.visual.proj": tensors["clip.visual.proj"].T})


# Meta's own folders of LLaMA 3


def test_a_folder_of_metas_llama_3_is_read_as_it_lies(tmp_path):
    """No meta.json, an embedding cut over its rows, and a `tokenizer.model` of ranks."""
    table = ranks()
    rows = len(table) + 256 + len(table) % 2
    params = {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": rows,
        "multiple_of": 48,
        "ffn_dim_multiplier": 0.5,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    }
    config = from_params("llama", params, 0)
    rng, parts = np.random.default_rng(0), [{}, {}]
    whole = {
        n.foreign: rng.normal(size=n.blank(blueprint(config).specs[n.leaves[0]].shape).shape)
        for n in accessory_names(config)
    }
    whole = {key: tensor.astype(np.float32) for key, tensor in whole.items()}
    for key, tensor in whole.items():
        pieces = np.split(tensor, 2) if key == "tok_embeddings.weight" else cut(key, tensor, 2, 0)
        for part, piece in zip(parts, pieces, strict=True):
            part[key] = piece
    folder = tmp_path / "Meta-Llama-3.1-8B"
    for i, part in enumerate(parts):
        put(folder, part | {"rope.freqs": np.zeros(4, np.float32)}, f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(listed(table))
    found = open_foreign([folder])
    assert found.config == config and config.decoder.rope_llama3 == (8.0, 1.0, 4.0, 8192.0)
    np.testing.assert_array_equal(dict(found.leaves())["decoder/embedding"], whole["tok_embeddings.weight"])
    assert found.tokenizer.eos_id == len(table) + 1
    convert.write(found, tmp_path / "ours", "orbax", quiet=True)
    back = convert.from_checkpoint(tmp_path / "ours", tmp_path / "hf", "hf", quiet=True)
    again = open_foreign([back])
    assert dataclasses.replace(again.config.decoder, hidden_dim=None) == dataclasses.replace(
        config.decoder, multiple_of=256, ffn_multiplier=None
    )
    assert again.tokenizer.encode("the cat<|eot_id|>") == found.tokenizer.encode("the cat<|eot_id|>")
    assert again.tokenizer.eos_ids == found.tokenizer.eos_ids
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(back)
    assert theirs.encode("it's the cat<|eot_id|>") == found.tokenizer.encode("it's the cat<|eot_id|>", bos=True)


def test_a_published_folder_of_fewer_rows_than_tokens_is_refused_with_both_sizes(tmp_path):
    folder = put(tmp_path / "m", {"llma.tok_embeddings.weight": np.zeros((500, 32), np.float32)})
    (folder / "config.json").write_text('{"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": -1}')
    (folder / "meta.json").write_text('{"llama_type": "llama"}')
    with pytest.raises(BadTokenizer, match="512 tokens, the embedding 500 rows"):
        open_foreign([folder], tokenizer=DATA / "tokenizer.model")
