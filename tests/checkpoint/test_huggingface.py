"""Hugging Face folders in and out, against transformers and timm: recorded answers, and live ones where torch is."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import DATA, tiny_config
from huggingface_cases import DECODERS, ENCODERS, RECORDED, dinov2, make
from safetensors.numpy import load_file, save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from test_tokenizer import byte_level_json, llama_json

from sphinx_jax.checkpoint.foreign import huggingface
from sphinx_jax.checkpoint.foreign.foreign import Foreign, open_foreign
from sphinx_jax.checkpoint.foreign.huggingface_encoders import open_encoder, read_encoder_config
from sphinx_jax.checkpoint.foreign.huggingface_write import write
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConfigError, DecoderConfig, ModelConfig, MoeConfig, QFormerConfig, blip2_config
from sphinx_jax.data import playground
from sphinx_jax.data.conversation import SYSTEM, clean, render
from sphinx_jax.data.tokenizer import BadTokenizer, load_tokenizer
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import Blueprint, blueprint
from sphinx_jax.model.encoders import Blip2, Clip, ConvNext, DinoV2

RECORDS = DATA / "huggingface"
CLIP_MEAN, CLIP_STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MODULES = {
    "clip": lambda c, rngs: Clip(c.clip, rngs=rngs),
    "dinov2": lambda c, rngs: DinoV2(c.dinov2, rngs=rngs),
    "blip2": lambda c, rngs: Blip2(c.blip2, c.qformer, rngs=rngs),
    "convnext": lambda c, rngs: ConvNext(c.convnext, rngs=rngs),
}


def load(folder):
    found = open_foreign([folder])
    return found.config, dict(found.leaves()), found.tokenizer


def encoder_leaves(kind, folder, config):
    names, tensors = open_encoder(kind, folder, config)
    return dict(Foreign((), config, tuple(names), tensors, None).leaves())


def logits(config, leaves, tokens):
    return Sphinx(config, {path: jnp.asarray(leaf) for path, leaf in leaves.items()}, None).logits(tokens)


@functools.partial(jax.jit, static_argnames=("kind", "config"))
def features(kind, config, leaves, pixels):
    return Blueprint(lambda rngs: MODULES[kind](config, rngs)).bind(leaves)(pixels)


def answer(kind, folder, seen):
    """What our model says to the tokens or pixels that a case was given."""
    if kind not in ENCODERS:
        config, leaves, _ = load(folder)
        return logits(config, leaves, seen["tokens"])
    config = tiny_config(**read_encoder_config(kind, folder))
    leaves = encoder_leaves(kind, folder, config)
    pixels = seen["pixels"]
    if kind == "dinov2":  # ours takes pixels of CLIP's statistics
        pixels = (pixels * IMAGENET_STD + IMAGENET_MEAN - CLIP_MEAN) / CLIP_STD
    return features(kind, config, {path.split("/", 2)[2]: leaf for path, leaf in leaves.items()}, np.float32(pixels))


def reader(leaves):
    return lambda path, index: np.asarray(leaves[path])[index]


def rewrite(folder, to, **changes):
    """A copy of a recorded folder whose config has other values; None takes a key away."""
    shutil.copytree(folder, to)
    values = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return to


@pytest.mark.parametrize("kind", RECORDED)
def test_answers_are_those_recorded(kind):
    expected = np.load(RECORDS / kind / "expected.npz")
    np.testing.assert_allclose(answer(kind, RECORDS / kind, expected), expected["out"], atol=2e-5)


@pytest.mark.parametrize("case", [*DECODERS, *ENCODERS])
def test_answers_are_those_of_the_installed_transformers(case, tmp_path):
    pytest.importorskip("timm" if case == "convnext" else "transformers")
    expected = make(tmp_path / case, case)
    np.testing.assert_allclose(answer(case, tmp_path / case, expected), expected["out"], atol=2e-5)


def test_a_smaller_dinov2_has_a_plain_mlp(tmp_path):
    pytest.importorskip("transformers")
    expected = dinov2(tmp_path / "m", packed=False)
    np.testing.assert_allclose(answer("dinov2", tmp_path / "m", expected), expected["out"], atol=2e-5)


@pytest.mark.parametrize("case", DECODERS)
def test_transformers_answers_the_same_after_a_round_trip(case, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    expected = make(tmp_path / "theirs", case)
    config, leaves, _ = load(tmp_path / "theirs")
    folder = write(tmp_path / "ours", reader(leaves), config, shard_bytes=10_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded.values()), loaded
    with torch.no_grad():
        np.testing.assert_array_equal(model(torch.tensor(expected["tokens"])).logits.numpy(), expected["out"])


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_export_gives_back_the_very_tensors(case, tmp_path):
    config, leaves, _ = load(RECORDS / case)
    whole = write(tmp_path / "whole", reader(leaves), config)
    split = write(tmp_path / "split", reader(leaves), config, shard_bytes=20_000)
    index = json.loads((split / "model.safetensors.index.json").read_text())
    shards = {file: load_file(split / file) for file in set(index["weight_map"].values())}
    assert len(shards) > 2
    assert all((split / file).stat().st_size < 25_000 for file in shards)
    original = load_file(RECORDS / case / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in original.values())
    for found in (load_file(whole / "model.safetensors"), {k: shards[f][k] for k, f in index["weight_map"].items()}):
        assert found.keys() == original.keys()
        for key, array in original.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert huggingface.read_config(whole) == huggingface.read_config(split) == config


def test_a_config_of_transformers_4_says_the_same(tmp_path):
    rope = json.loads((RECORDS / "llama" / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    for key in ("rope_type", "type"):
        scaling = rope | {"rope_type": None, key: "llama3"}
        old = rewrite(RECORDS / "llama", tmp_path / key, rope_parameters=None, rope_theta=theta, rope_scaling=scaling)
        assert huggingface.read_config(old) == huggingface.read_config(RECORDS / "llama")


def test_a_silent_config_has_the_defaults_of_its_family(tmp_path):
    silent = {"rope_parameters": None, "attention_bias": None, "mlp_bias": None, "head_dim": None}
    llama = huggingface.read_config(rewrite(RECORDS / "llama", tmp_path / "llama", **silent)).decoder
    assert (llama.rope_theta, llama.bias, llama.head_dim, llama.rope_llama3) == (1e4, (), 8, None)
    mixtral = huggingface.read_config(rewrite(RECORDS / "mixtral", tmp_path / "mixtral", **silent)).decoder
    assert (mixtral.rope_theta, mixtral.moe.experts) == (1e6, 3)


def test_linear_scaling_divides_positions(tmp_path):
    table = {"rope_type": "linear", "factor": 4.0}
    folder = rewrite(RECORDS / "llama", tmp_path / "linear", rope_parameters=table)
    assert huggingface.read_config(folder).decoder.rope_scaling == 0.25


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM; supported are LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        ({"sliding_window": 4096}, "sliding_window 4096 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope of type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "has no 'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
    ],
)
def test_what_our_decoder_does_not_do_is_refused_by_name(changes, told, tmp_path):
    folder = rewrite(RECORDS / "llama", tmp_path / "other", **changes)
    with pytest.raises(BadCheckpoint) as caught:
        huggingface.read_config(folder)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def edited(folder, to, change):
    """A copy of a recorded folder with other tensors."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors")
    return to


def test_wrong_keys_are_listed(tmp_path):
    config = huggingface.read_config(RECORDS / "llama")

    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.extra.weight"] = np.zeros(2, np.float32)
        tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:60].copy()

    folder = edited(RECORDS / "llama", tmp_path / "wrong", change)
    with pytest.raises(BadCheckpoint) as caught:
        huggingface.checked_names(huggingface.open_folder(folder), config)
    assert str(caught.value).partition("the model; ")[2] == (
        "1 missing: model.norm.weight; 1 unexpected: model.layers.0.mlp.extra.weight; "
        "1 mis-shaped: lm_head.weight (60, 32) for (64, 32)"
    )


def test_an_output_in_the_files_counts_whatever_the_config_says(tmp_path):
    folder = rewrite(RECORDS / "mixtral", tmp_path / "tied", tie_word_embeddings=True)
    expected = np.load(RECORDS / "mixtral" / "expected.npz")
    np.testing.assert_allclose(answer("mixtral", folder, expected), expected["out"], atol=2e-5)


def test_half_precision_keeps_its_dtype(tmp_path):
    def change(tensors):
        tensors |= {key: array.astype(ml_dtypes.bfloat16) for key, array in tensors.items()}

    folder = edited(RECORDS / "llama", tmp_path / "half", change)
    _, leaves, _ = load(folder)
    norm = load_file(RECORDS / "llama" / "model.safetensors")["model.norm.weight"].astype(ml_dtypes.bfloat16)
    assert {leaf.dtype for leaf in leaves.values()} == {norm.dtype}
    np.testing.assert_array_equal(leaves["decoder/norm/scale"], norm)
    written = write(tmp_path / "again", reader(leaves), huggingface.read_config(folder), dtype="bfloat16")
    np.testing.assert_array_equal(load_file(written / "model.safetensors")["model.norm.weight"], norm)
    assert json.loads((written / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_file_is_read_by_byte_range(tmp_path):
    """A file of 8 GB, nearly all of it a hole: only what is asked for is read."""
    big, small = 8 * 2**30, np.arange(3, dtype=np.float32)
    table = {
        "big": {"dtype": "F32", "shape": [big // 4], "data_offsets": [0, big]},
        "small": {"dtype": "F32", "shape": [3], "data_offsets": [big, big + 12]},
    }
    header = json.dumps(table).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.seek(big, 1)
        stream.write(small.tobytes())
    tensors = huggingface.open_folder(tmp_path)
    assert tensors["big"].shape == (big // 4,)
    np.testing.assert_array_equal(tensors["small"].read(), small)


def test_damaged_files_are_named_in_one_line(tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(RECORDS / "llama", folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    eighth = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    damage = {
        "incomplete": (b"", b"version https://git-lfs.github.com/spec/v1\noid", content[:500], content[:-1]),
        "not a safetensors file": (content[:8] + b"[" + content[9:], (2).to_bytes(8, "little") + b"[]"),
        "stored as F8_E4M3": (len(eighth).to_bytes(8, "little") + eighth + b"0",),
    }
    for told, contents in damage.items():
        for bad in contents:
            file.write_bytes(bad)
            with pytest.raises(BadCheckpoint, match=told) as caught:
                load(folder)
            assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(BadCheckpoint, match="holds neither"):
        load(folder)


def test_a_lost_shard_is_named(tmp_path):
    config, leaves, _ = load(RECORDS / "llama")
    folder = write(tmp_path / "split", reader(leaves), config, shard_bytes=20_000)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(BadCheckpoint, match=f"lacks {lost.name}"):
        load(folder)


def tuned(**changes):
    """A decoder with low-rank additions, and random leaves."""
    decoder = DecoderConfig(dim=16, layers=2, heads=4, kv_heads=2, vocab_size=32, hidden_dim=24, lora_rank=2)
    config = ModelConfig(decoder=dataclasses.replace(decoder, **changes))
    rng, specs = np.random.default_rng(0), blueprint(config).specs
    return config, {path: rng.normal(scale=0.3, size=spec.shape).astype(np.float32) for path, spec in specs.items()}


def test_tuning_is_merged_into_the_export(tmp_path):
    """Low-rank additions everywhere and biases on some maps answer as they did."""
    config, leaves = tuned(bias=("q", "o", "down"))
    exported, merged, _ = load(write(tmp_path / "m", reader(leaves), config))
    assert (exported.decoder.lora_rank, exported.decoder.bias) == (0, ("q", "k", "v", "o", "gate", "up", "down"))
    tokens = np.random.default_rng(0).integers(0, 32, (2, 12))
    np.testing.assert_allclose(logits(exported, merged, tokens), logits(config, leaves, tokens), atol=1e-4)


def test_each_expert_takes_its_own_addition(tmp_path):
    config, leaves = tuned(moe=MoeConfig(3, 2))
    _, merged, _ = load(write(tmp_path / "m", reader(leaves), config))
    up, a, b = (leaves[f"decoder/blocks/ffn/{path}"] for path in ("up", "lora/up/a", "lora/up/b"))
    expected = up + np.einsum("ledr,lerf->ledf", a, b)
    np.testing.assert_allclose(merged["decoder/blocks/ffn/up"], expected, atol=1e-6)


def test_the_load_balance_weight_survives(tmp_path):
    config, leaves, _ = load(RECORDS / "mixtral")
    # transformers sums over a token's two choices
    assert config.decoder.moe.balance_weight == 2 * 0.001
    folder = write(tmp_path / "m", reader(leaves), config)
    assert json.loads((folder / "config.json").read_text())["router_aux_loss_coef"] == 0.001


def test_what_transformers_cannot_say_is_not_written(tmp_path):
    config, leaves, _ = load(RECORDS / "mixtral")

    def other(**changes):
        return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **changes))

    with pytest.raises(BadCheckpoint, match="has no biases, this decoder has some on q"):
        write(tmp_path / "m", reader(leaves), other(bias=("q",)))
    with pytest.raises(BadCheckpoint, match="linear and of type llama3"):
        write(tmp_path / "m", reader(leaves), other(rope_scaling=0.5, rope_llama3=(8.0, 1.0, 4.0, 16.0)))
    with pytest.raises(ConfigError, match="unknown dtype 'float23'; did you mean 'float32'"):
        write(tmp_path / "m", reader(leaves), config, dtype="float23")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing_and_a_folder_is_not_overwritten(tmp_path):
    config, leaves, _ = load(RECORDS / "llama")
    del leaves["decoder/norm/scale"]  # the last but one to be written
    with pytest.raises(KeyError):
        write(tmp_path / "m", reader(leaves), config)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m").mkdir()
    with pytest.raises(BadCheckpoint, match="m exists"):
        write(tmp_path / "m", reader(leaves), config)


def test_a_leaf_of_another_shape_is_not_written(tmp_path):
    config, leaves, _ = load(RECORDS / "llama")
    leaves["decoder/norm/scale"] = np.ones(31, np.float32)
    with pytest.raises(BadCheckpoint, match=r"decoder/norm/scale is \(31,\)"):
        write(tmp_path / "m", reader(leaves), config)


def test_a_tokenizer_goes_along_and_without_one_nothing_is_claimed(tmp_path):
    config, leaves, found = load(RECORDS / "llama")
    assert found is None
    bare = write(tmp_path / "bare", reader(leaves), config)
    assert json.loads((bare / "generation_config.json").read_text()) == {"bos_token_id": None, "eos_token_id": None}
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    config, leaves = widened(config, leaves, tokenizer.vocab_size)
    folder = write(tmp_path / "whole", reader(leaves), config, tokenizer)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    assert load(folder)[2].encode("a cat\n###") == tokenizer.encode("a cat\n###")


def widened(config, leaves, rows):
    """The model with a row of zeros for every further token."""
    more = {"decoder/embedding": ((0, rows - 64), (0, 0)), "decoder/output": ((0, 0), (0, rows - 64))}
    leaves = leaves | {path: np.pad(leaves[path], padding) for path, padding in more.items()}
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=rows)), leaves


def tokenizer_of(kind, folder):
    makers = {"llama": llama_json, "byte_level": byte_level_json}
    files = {"sentencepiece": DATA / "tokenizer.model", "playground": Path(playground.__file__).parent}
    return load_tokenizer(makers[kind](folder) if kind in makers else files[kind])


@pytest.mark.parametrize("kind", ["sentencepiece", "playground", "llama", "byte_level"])
def test_transformers_reads_tokenizer_and_conversation_as_we_do(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = tokenizer_of(kind, tmp_path / "files")
    config, leaves, _ = load(RECORDS / "llama")
    theirs = transformers.AutoTokenizer.from_pretrained(write(tmp_path / "m", reader(leaves), config, ours))
    for text in ("a cat\n### Human: café 你", " two  blanks ", " Human:", "\n\n### [0.12, 0.30]\tx", ""):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids)
    pytest.importorskip("jinja2")
    for system in (SYSTEM, 'Be brief\'s "best".'):
        messages = [{"role": "system", "content": system}] if system != SYSTEM else []
        messages += [{"role": "user", "content": " what is it? "}, {"role": "assistant", "content": "a cat"}]
        messages += [{"role": "user", "content": "\n### where?\n###"}]
        text, _ = render([("what is it?", "a cat"), (clean("\n### where?\n###"), None)], system)
        chat = theirs.apply_chat_template(messages, add_generation_prompt=True)
        assert chat["input_ids"] == ours.encode(text, bos=True)


def test_a_sentencepiece_model_of_another_form_is_refused(tmp_path):
    model = ModelProto.FromString((DATA / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = False
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    config, leaves, _ = load(RECORDS / "llama")
    with pytest.raises(BadTokenizer, match=r"tokenizer\.model is not of LLaMA's form"):
        write(tmp_path / "m", reader(leaves), config, load_tokenizer(tmp_path))
    assert not (tmp_path / "m").exists()


def test_a_new_sphinx_is_assembled_from_public_parts():
    parts = {}
    for kind in ENCODERS:
        parts |= read_encoder_config(kind, RECORDS / kind)
    config = tiny_config(decoder=huggingface.read_config(RECORDS / "llama").decoder, **parts)
    leaves = load(RECORDS / "llama")[1]
    for kind in ENCODERS:
        leaves |= encoder_leaves(kind, RECORDS / kind, config)
    born = {path for path in blueprint(config).specs if path.startswith("embedding_mix/")}
    assert leaves.keys() | born == blueprint(config).specs.keys() and not leaves.keys() & born


def test_views_of_another_size():
    fields = read_encoder_config("dinov2", RECORDS / "dinov2", view_size=32)
    assert (fields["dinov2"].grid, fields["dinov2"].position_grid) == (4, 2)
    for view, seen in ((32, 64), (128, 128)):  # brought to the size of its pre-training, or taken as it is
        fields = read_encoder_config("convnext", RECORDS / "convnext", view_size=view)
        assert (fields["convnext"].view_size, fields["convnext"].input_size) == (view, seen)
    for kind in ("clip", "blip2"):
        with pytest.raises(BadCheckpoint, match="positions of 16-pixel views alone, not of 32"):
            read_encoder_config(kind, RECORDS / kind, view_size=32)


def test_convnext_as_timm_writes_it(tmp_path):
    tensors = load_file(RECORDS / "convnext" / "open_clip_model.safetensors")
    trunk = {k.removeprefix("visual.trunk."): v for k, v in tensors.items() if k.startswith("visual.trunk.")}
    save_file(trunk | {"head.fc.weight": np.zeros((5, 16), np.float32)}, tmp_path / "model.safetensors")
    settings = json.loads((RECORDS / "convnext" / "open_clip_config.json").read_text())["preprocess_cfg"]
    settings |= {"input_size": [3, 64, 64], "num_classes": 5}

    def describe(**changes):
        values = {"architecture": "convnext_xxlarge", "pretrained_cfg": settings | changes}
        (tmp_path / "config.json").write_text(json.dumps(values))

    describe()
    assert read_encoder_config("convnext", tmp_path) == read_encoder_config("convnext", RECORDS / "convnext")
    expected = np.load(RECORDS / "convnext" / "expected.npz")
    np.testing.assert_allclose(answer("convnext", tmp_path, expected), expected["out"], atol=2e-5)
    describe(mean=[0.485, 0.456, 0.406])
    with pytest.raises(BadCheckpoint, match=r"mean \[0.485, 0.456, 0.406\] is not supported"):
        read_encoder_config("convnext", tmp_path)


def test_clip_out_of_the_whole_model(tmp_path):
    """As `CLIPModel`, and as transformers 4 wrote `CLIPVisionModel`: one level down, with a buffer."""

    def change(tensors):
        inner = {f"vision_model.{key}": tensors.pop(key) for key in list(tensors)}
        ids = {"vision_model.embeddings.position_ids": np.arange(5)[None]}
        tensors |= inner | ids | {"text_model.final_layer_norm.bias": np.zeros(3, np.float32)}

    folder = edited(RECORDS / "clip", tmp_path / "clip", change)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": values}))
    expected = np.load(RECORDS / "clip" / "expected.npz")
    np.testing.assert_allclose(answer("clip", folder, expected), expected["out"], atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("clip", {"model_type": "siglip"}, "model_type 'siglip' is not supported, only 'clip'"),
        ("clip", {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported"),
        ("clip", {"patch_size": None}, "has no 'patch_size'"),
        ("dinov2", {"model_type": "dinov2_with_registers"}, "model_type 'dinov2_with_registers'"),
        ("blip2", {"qformer_config": {"cross_attention_frequency": 1}}, "cross_attention_frequency 1"),
        ("blip2", {"vision_config": {"qkv_bias": False}}, "qkv_bias False"),
    ],
)
def test_encoders_of_another_form_are_refused_by_name(kind, changes, told, tmp_path):
    with pytest.raises(BadCheckpoint) as caught:
        read_encoder_config(kind, rewrite(RECORDS / kind, tmp_path / kind, **changes))
    assert told in str(caught.value)


def test_a_sparse_config_of_blip2_means_the_published_sizes(tmp_path):
    folder = rewrite(RECORDS / "blip2", tmp_path / "b", vision_config={}, qformer_config={}, num_query_tokens=None)
    assert read_encoder_config("blip2", folder) == {"blip2": blip2_config(), "qformer": QFormerConfig()}


def test_an_unknown_kind_of_encoder_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown kind of encoder 'dino'; did you mean 'dinov2'"):
        read_encoder_config("dino", RECORDS)
