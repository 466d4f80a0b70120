"""`meta.json` and `config.json` of the published folders, there and back."""

import dataclasses
import json

import pytest

from sphinx_jax.checkpoint.foreign import accessory
from sphinx_jax.checkpoint.foreign.accessory_config import TYPES, from_params, to_params
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import FAMILY, ConfigError, DecoderConfig, ModelConfig, family

SIZES = {
    "13b": {"dim": 5120, "n_layers": 40, "n_heads": 40, "vocab_size": -1},
    "7b": {"dim": 4096, "n_layers": 32, "n_heads": 32},
    "tiny": {"dim": 2048, "n_layers": 22, "n_heads": 32, "n_kv_heads": 4, "vocab_size": 32000},
    "8x7b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "hidden_dim": 14336,
        "head_dim": 128,
        "moe": {"num_experts": 8, "num_experts_per_tok": 2},
    },
}


@pytest.mark.parametrize(
    ("kind", "sizes", "name"),
    [
        ("llama_ens", "13b", "sphinx"),
        ("llama_ens", "7b", "sphinx_7b"),
        ("llama_ens5", "13b", "sphinx_1k"),
        ("llama_ens10", "13b", "sphinx_2k"),
        ("llama_ens5p2", "13b", "sphinx_1k_pooled"),
        ("llama_ens_light", "tiny", "sphinx_tiny"),
        ("llama_ens5_light", "tiny", "sphinx_tiny_1k"),
        ("mixtral_sparse_ens", "8x7b", "sphinx_moe"),
        ("mixtral_sparse_ens5", "8x7b", "sphinx_moe_1k"),
    ],
)
def test_published_types_are_the_family(kind, sizes, name):
    expected = family(name)
    assert dataclasses.replace(from_params(kind, SIZES[sizes], 32000), name=name) == expected
    assert to_params(dataclasses.replace(expected, name=kind))[0] == kind
    assert "vision" not in to_params(expected)[1]


@pytest.mark.parametrize("name", sorted(FAMILY.keys() - {"sphinx_nano"}))
def test_what_a_model_is_written_as_means_that_model(name):
    kind, params = to_params(family(name))
    assert dataclasses.replace(from_params(kind, json.loads(json.dumps(params)), 0), name=name) == family(name)


def test_defaults_of_the_tuned_and_the_mixed_types():
    def decoder(kind, **params):
        return from_params(kind, SIZES["7b"] | params, 32000).decoder

    every = ("q", "k", "v", "o", "gate", "up", "down")
    assert decoder("llama_peft").bias == decoder("mixtral_peft").bias == every
    assert decoder("llama_peft", bias_tuning=False).bias == decoder("llama_ens_peft").bias == ()
    assert decoder("llama_ens_peft", bias_tuning=True).bias == ("q", "o", "gate", "up", "down")
    assert (decoder("llama_peft").lora_rank, decoder("llama_peft", lora_rank=-1).lora_rank) == (0, 0)
    assert decoder("llama_peft", lora_rank=8).lora_rank == 8
    assert decoder("llama", lora_rank=8, bias_tuning=True) == decoder("llama")
    assert [decoder(kind).moe.half_router for kind in ("mixtral", "mixtral_peft", "mixtral_sparse")] == [1, 1, 0]
    assert decoder("mixtral").rope_theta == 1e6
    assert decoder("mixtral_sparse", load_balancing_weight=0.3).moe.balance_weight == 0.3


def test_every_type_is_read_and_written_again():
    for kind in TYPES:
        sizes = SIZES["8x7b" if "mixtral" in kind else "tiny"]
        config = from_params(kind, sizes | {"lora_rank": 4, "bias_tuning": True}, 32000)
        assert from_params(*to_params(config), 0) == config


def test_a_width_given_as_such_is_written_as_the_formulas_sizes():
    for width in (5504, 11008, 14336, 4099):
        decoder = DecoderConfig(dim=4096, layers=2, heads=32, hidden_dim=width)
        kind, params = to_params(ModelConfig(name="mine", decoder=decoder))
        assert kind == "llama" and "hidden_dim" not in params
        assert from_params(kind, params, 0).decoder.ffn_dim == width


@pytest.mark.parametrize(
    "changes", [{"tied_embeddings": True}, {"rope_llama3": (8.0, 1.0, 4.0, 8192.0)}, {"head_width": 128}]
)
def test_a_model_that_no_type_means_is_refused_with_the_reason(changes):
    ((key, value),) = changes.items()
    decoder = dataclasses.replace(family("sphinx_tiny").decoder, **changes)
    with pytest.raises(ConfigError) as refused:
        to_params(ModelConfig(name="mine", decoder=decoder))
    assert str(refused.value) == (
        f"no published type can hold the model 'mine'; the nearest, llama, has no place for decoder.{key}={value!r}"
    )


def test_what_the_playgrounds_model_has_beyond_the_published_is_named():
    with pytest.raises(ConfigError, match="llama_ens5, has no place for decoder.tied_embeddings=True, views.image_si"):
        to_params(family("sphinx_nano"))


def test_a_model_near_no_type_is_refused():
    odd = DecoderConfig(dim=100, layers=1, heads=3, head_width=32)
    with pytest.raises(ConfigError, match="no published type can hold the model 'mine'$"):
        to_params(ModelConfig(name="mine", decoder=odd))


def test_what_early_folders_lack_is_an_argument(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"no meta.json says which model this is; give model="):
        accessory.read_config([tmp_path], 32000)
    with pytest.raises(BadCheckpoint, match=r"no config.json says the model's sizes"):
        accessory.read_config([tmp_path], 32000, model="llama_ens5")
    with pytest.raises(ConfigError, match="did you mean 'llama_ens5'"):
        accessory.read_config([tmp_path], 32000, model="lama_ens5")
    (tmp_path / "params.json").write_text(json.dumps(SIZES["13b"]))
    by_type = accessory.read_config([tmp_path], 32000, model="llama_ens5", config=tmp_path / "params.json")
    assert by_type == accessory.read_config([tmp_path], 32000, model="llama_ens5", config=SIZES["13b"])
    assert by_type == accessory.read_config([tmp_path], 32000, model="sphinx_1k")
    assert accessory.read_config([tmp_path], 9, model="llama", config=SIZES["13b"]).decoder.vocab_size == 9


def test_the_last_folder_that_has_a_file_counts(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, dim in zip(folders, (64, 128), strict=False):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"dim": dim, "n_layers": 2, "n_heads": 4}))
    (folders[0] / "meta.json").write_text('{"llama_type": "llama"}')
    assert accessory.read_config(folders, 100).decoder.dim == 128
    assert accessory.last_with(folders, "tokenizer.model", "meta.json") == folders[0]
    (folders[1] / "config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match="b/config.json is not a table of JSON"):
        accessory.read_config(folders, 100)


def test_quick_gelu_is_the_tables_or_the_arguments():
    def activation(quick_gelu=None, vision=None):
        params = SIZES["13b"] | ({"vision": {"clip": vision}} if vision else {})
        config = accessory.read_config([], 32000, model="llama_ens", config=params, quick_gelu=quick_gelu)
        assert from_params(*to_params(config), 0).clip == config.clip
        return config.clip.activation

    assert (activation(), activation(True), activation(False)) == ("gelu", "quick_gelu", "gelu")
    assert activation(vision={"quick_gelu": True}) == "quick_gelu"
    assert activation(False, {"quick_gelu": True}) == "gelu"


@pytest.mark.parametrize(
    ("kind", "params", "line"),
    [
        ("llama_ens", {"vision": {"clipp": {}}}, "did you mean 'clip'"),
        ("llama_ens", {"vision": {"clip": {"widht": 3}}}, "unknown key of vision.clip in config.json 'widht'"),
        ("llama_ens_light", {"vision": {"clip": {}}}, "llama_ens_light has no such encoder"),
    ],
)
def test_sizes_of_no_encoder_get_one_line(kind, params, line):
    with pytest.raises(ConfigError, match=line):
        from_params(kind, SIZES["7b"] | params, 32000)


def test_sizes_that_are_not_there_get_one_line():
    with pytest.raises(ConfigError, match="config.json has no n_layers, n_heads"):
        from_params("llama", {"dim": 64}, 32000)


LLAMA31 = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
}


def test_a_folder_of_metas_own_is_a_llama_of_its_params(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(LLAMA31))
    found = accessory.read_config([tmp_path], 9)
    assert (found.name, found.decoder.vocab_size, found.decoder.ffn_dim) == ("llama", 128256, 14336)
    assert found.decoder.rope_llama3 == (8.0, 1.0, 4.0, 8192.0) and found.decoder.max_positions == 131072
    assert accessory.read_config([tmp_path], 9, model="llama", config=LLAMA31) == found
    plain = LLAMA31 | {"use_scaled_rope": False}
    assert from_params("llama", plain, 9).decoder.rope_llama3 is None
    later = LLAMA31 | {"rope_scaling_factor": 32.0, "rope_high_freq_factor": 2.0}
    assert from_params("llama", later, 9).decoder.rope_llama3 == (32.0, 1.0, 2.0, 8192.0)
    (tmp_path / "meta.json").write_text('{"llama_type": "llama_peft"}')
    assert accessory.read_config([tmp_path], 9).name == "llama_peft"
    with pytest.raises(BadCheckpoint, match=r"no meta\.json says which model"):
        accessory.read_config([tmp_path / "a", tmp_path / "b"], 9)


@pytest.mark.parametrize(
    "params",
    [
        {"max_seq_len": 2048, "max_batch_size": 1, "norm_tuning": True, "rope_scaling": None, "head_dim": 128},
        {"qk_norm": False, "sliding_window": None, "vision_chunk_size": -1},
    ],
)
def test_keys_that_change_nothing_are_passed_over(params):
    assert from_params("llama", SIZES["7b"] | params, 32000) == from_params("llama", SIZES["7b"], 32000)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"qk_norm": True}, "qk_norm True of config.json or params.json is not supported"),
        ({"sliding_window": 4096}, "sliding_window 4096"),
        ({"rope_thetta": 1e6}, "'rope_thetta'; did you mean 'rope_theta'"),
        ({"quantization_args": {"scheme": "int4"}}, "unknown key of config.json or params.json 'quantization_args'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "is not a number above 0 that multiplies positions"),
        ({"moe": {"num_expert": 8}}, "key of moe in config.json 'num_expert'; did you mean 'num_experts'"),
    ],
)
def test_keys_that_change_the_numbers_are_refused_by_name(params, told):
    with pytest.raises(ConfigError) as caught:
        from_params("llama", SIZES["7b"] | params, 32000)
    assert told in str(caught.value) and "\n" not in str(caught.value)
