"""Keys of a Hugging Face `config.json`: used, refused by name, or known to change nothing."""

import json

import numpy as np
import pytest
from conftest import DATA
from safetensors.numpy import load_file, save_file
from test_huggingface import RECORDS, edited, load, logits, rewrite
from test_tokenizer import llama_json

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import convert, huggingface
from sphinx_jax.checkpoint.foreign.foreign import open_foreign
from sphinx_jax.checkpoint.foreign.huggingface_write import write
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.data.conversation_form import as_trained, is_of_our_form
from sphinx_jax.data.tokenizer import BadTokenizer, load_tokenizer
from sphinx_jax.generate.load import from_pretrained
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.run import Run

# keys of published configs, less those that every one has
PUBLISHED = {
    "LLaMA 1": {"max_sequence_length": 2048, "pad_token_id": -1, "torch_dtype": "float16", "transformers_version": "4"},
    "Llama 2": {"_name_or_path": "meta-llama/Llama-2-7b-hf", "pretraining_tp": 1, "use_cache": True, "pad_token_id": 0},
    "Llama 3.2": {
        "head_dim": 8,
        "eos_token_id": [3, 4],
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_theta": 5e5,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Mistral as LLaMA": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
    "SmolLM2": {
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_scaling": None,
        "max_window_layers": 28,
        "transformers.js_config": {"dtype": "q4"},
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    "Vicuna": {"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "tie_word_embeddings": False},
    "Unsloth": {"unsloth_fixed": True, "unsloth_version": "2025.1", "_flash_attn_2_enabled": True, "_commit_hash": "a"},
    "transformers 5": {"dtype": "bfloat16", "layer_types": ["full_attention"] * 2, "id2label": {"0": "LABEL_0"}},
    "a tokenizer of its own": {"auto_map": {"AutoTokenizer": ["tokenization.Tok", None]}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name, tmp_path):
    plain = {"rope_parameters": None}
    config = huggingface.read_config(rewrite(RECORDS / "llama", tmp_path / "m", **plain | PUBLISHED[name]))
    assert config.decoder.layers == 2


def test_mixtral_of_the_first_days_is_read(tmp_path):
    changes = {"router_jitter_noise": 0.1, "output_router_logits": False, "sliding_window": None, "head_dim": None}
    assert huggingface.read_config(rewrite(RECORDS / "mixtral", tmp_path / "m", **changes)).decoder.moe.experts == 3


@pytest.mark.parametrize("base", ["PretrainedConfig", "LlamaConfig", "MixtralConfig"])
def test_every_key_of_the_installed_transformers_is_known(base, tmp_path):
    transformers = pytest.importorskip("transformers")
    values = getattr(transformers, base)().to_dict()
    recorded = "mixtral" if base == "MixtralConfig" else "llama"
    kept = json.loads((RECORDS / recorded / "config.json").read_text())
    huggingface.read_config(rewrite(RECORDS / recorded, tmp_path / "m", **values | kept))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_activation": "gelu"}, "the key 'hidden_activation' is not known"),
        ({"norm_before": False}, "the key 'norm_before' is not known"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ({"logit_scale": 0.0625}, "logit_scale 0.0625 is not supported, only 1"),
        ({"logits_scaling": 8.0}, "logits_scaling 8.0"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier 12.0"),
        ({"residual_multiplier": 0.22}, "residual_multiplier 0.22"),
        ({"attention_multiplier": 0.0078}, "attention_multiplier 0.0078"),
        ({"num_local_experts": 8}, "num_local_experts 8"),
        ({"use_qk_norm": True}, "use_qk_norm True"),
        ({"rope_interleaved": True}, "rope_interleaved True"),
        ({"model_type": "gemma"}, "model_type 'gemma' is not supported"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types ['sliding_attention']"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map asks for code of its own (AutoModelFor"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding_window 4096"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "x": "y" * 500}}, "quantization_config {"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 0.7}}, "type 'linear' with mscale 0.7"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, "type 'default' with factor 2.0"),
        ({"rope_scaling": 2.0}, "the rope scaling 2.0 is not a table"),
        ({"eos_token_id": [2, 64]}, "eos_token_id 64 is outside the embedding of 64 rows"),
        ({"bos_token_id": 99}, "bos_token_id 99 is outside"),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(changes, told, tmp_path):
    with pytest.raises(BadCheckpoint) as caught:
        huggingface.read_config(rewrite(RECORDS / "llama", tmp_path / "m", **changes))
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


def test_a_silent_config_means_transformers_defaults(tmp_path):
    sizes = ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "rope_parameters")
    silent = dict.fromkeys((*sizes, "num_local_experts", "num_experts_per_tok", "router_aux_loss_coef"))
    llama = huggingface.read_config(rewrite(RECORDS / "llama", tmp_path / "llama", **silent)).decoder
    assert (llama.norm_eps, llama.max_positions, llama.num_kv_heads, llama.moe) == (1e-6, 2048, 4, None)
    silent["num_attention_heads"] = 8
    mixtral = huggingface.read_config(rewrite(RECORDS / "mixtral", tmp_path / "mixtral", **silent)).decoder
    assert (mixtral.norm_eps, mixtral.max_positions, mixtral.num_kv_heads) == (1e-5, 131072, 8)
    assert (mixtral.moe.experts, mixtral.moe.per_token, mixtral.moe.balance_weight) == (8, 2, 0.002)
    older = rewrite(RECORDS / "llama", tmp_path / "older", max_position_embeddings=None, max_sequence_length=1024)
    assert huggingface.read_config(older).decoder.max_positions == 1024


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_either_name_of_a_shared_matrix_loads(kept, tmp_path):
    matrix = load_file(RECORDS / "mixtral" / "model.safetensors")["lm_head.weight"]

    def change(tensors):
        del tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
        tensors[kept] = matrix

    folder = edited(rewrite(RECORDS / "mixtral", tmp_path / "m", tie_word_embeddings=True), tmp_path / kept, change)
    config, leaves, _ = load(folder)
    assert config.decoder.tied_embeddings
    np.testing.assert_array_equal(leaves["decoder/embedding"], matrix)
    untied = rewrite(folder, tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(BadCheckpoint, match="1 missing"):
        load(untied)


@pytest.mark.parametrize("same", [True, False])
def test_of_two_matrices_each_counts_whatever_the_config_says(same, tmp_path):
    def change(tensors):
        if same:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    folder = edited(RECORDS / "mixtral", tmp_path / "m", change)
    tied = rewrite(folder, tmp_path / "tied", tie_word_embeddings=True)
    tokens = np.arange(12)[None]
    answers = [logits(*load(each)[:2], tokens) for each in (folder, tied)]
    np.testing.assert_array_equal(*answers)


def test_a_tokenizer_larger_than_the_embedding_is_refused_at_the_door(tmp_path):
    folder = rewrite(RECORDS / "llama", tmp_path / "m")
    (folder / "tokenizer.model").write_bytes((DATA / "tokenizer.model").read_bytes())
    with pytest.raises(BadTokenizer, match="the tokenizer has 512 tokens, the embedding 64 rows; give"):
        open_foreign([folder])
    with pytest.raises(BadTokenizer, match="512 tokens, the embedding 64 rows"):
        open_foreign([RECORDS / "llama"], tokenizer=DATA / "tokenizer.model")


def test_our_checkpoints_and_recipes_refuse_it_too(tmp_path):
    config = huggingface.read_config(RECORDS / "llama")
    store.write_beside(tmp_path, config, load_tokenizer(DATA / "tokenizer.model"), {})
    with pytest.raises(BadTokenizer, match="512 tokens, the embedding 64 rows"):
        from_pretrained(tmp_path)
    recipe = Recipe(model=config, stages=(), settings={}, tokenizer=str(DATA / "tokenizer.model"))
    with pytest.raises(BadTokenizer, match="512 tokens, the embedding 64 rows"):
        _ = Run(recipe, tmp_path).tokenizer


def test_a_recipe_takes_from_a_folder_no_other_form_of_conversation(tmp_path):
    folder = with_tokenizer(tmp_path / "m", {"eos_token": "</s>", "chat_template": "{{ messages }}"})
    recipe = Recipe(model=huggingface.read_config(folder), stages=(), settings={}, tokenizer=str(folder))
    assert is_of_our_form(Run(recipe, tmp_path).tokenizer.files)


def with_tokenizer(folder, tokenizer_config, rows=512, base="llama", **config):
    """The recorded model with `rows` in its embedding and a tokenizer of 512, without a generation config."""
    rewrite(RECORDS / base, folder, vocab_size=rows, **config)
    (folder / "generation_config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return llama_json(folder, **{"bos_token": "<s>"} | tokenizer_config)


@pytest.mark.parametrize(
    ("named", "tokenizer_config", "ends"),
    [([7, 9], {"eos_token": "</s>"}, (2, 7, 9)), (7, {"eos_token": "</s>"}, (2,)), (7, {}, (7,))],
)
def test_ends_that_only_the_models_config_names(named, tokenizer_config, ends, tmp_path):
    """Several count beside the tokenizer's own, a single one, perhaps a default, where the tokenizer names none."""
    folder = with_tokenizer(tmp_path / "m", tokenizer_config, eos_token_id=named)
    assert open_foreign([folder]).tokenizer.eos_ids == ends


def to_ours_and_back(folder, out):
    convert.write(open_foreign([folder]), out / "ours", "orbax", quiet=True)
    return convert.from_checkpoint(out / "ours", out / "hf", "hf", quiet=True)


def test_what_a_folder_says_of_conversations_comes_back_byte_for_byte(tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    folder = with_tokenizer(tmp_path / "m", {"eos_token": "</s>", "chat_template": template, "model_max_length": 77})
    generation = '{"eos_token_id": [2, 9],\n "temperature": 0.6}'
    files = {"generation_config.json": generation, "special_tokens_map.json": '{"pad_token": "<unk>"}'}
    files |= {"chat_template.jinja": template, "added_tokens.json": '{ "</s>": 2}'}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "tokenizer.model").write_bytes((DATA / "tokenizer.model").read_bytes())
    back = to_ours_and_back(folder, tmp_path)
    for name in (*files, "tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (back / name).read_bytes() == (folder / name).read_bytes(), name
    values = json.loads((back / "config.json").read_text())
    assert (values["eos_token_id"], values["bos_token_id"], values["torch_dtype"]) == ([2, 9], 1, "float32")
    assert open_foreign([back]).tokenizer.eos_ids == (2, 9)


def test_a_folder_silent_of_conversations_gets_the_end_of_ours(tmp_path):
    back = to_ours_and_back(with_tokenizer(tmp_path / "m", {"eos_token": "</s>"}, eos_token_id=[2, 9]), tmp_path)
    generation = json.loads((back / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 9], "stop_strings": ["\n###"]}
    assert "Human" in json.loads((back / "tokenizer_config.json").read_text())["chat_template"]


def test_a_trained_model_ends_as_it_was_taught_whatever_its_tokenizer_came_with(tmp_path):
    folder = with_tokenizer(tmp_path / "m", {"eos_token": "</s>", "chat_template": "{{ messages }}"})
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6}')
    config, leaves, tokenizer = load(folder)
    back = write(tmp_path / "hf", lambda path, index: leaves[path][index], config, as_trained(tokenizer))
    assert json.loads((back / "generation_config.json").read_text())["stop_strings"] == ["\n###"]
    assert "Human" in json.loads((back / "tokenizer_config.json").read_text())["chat_template"]
    again = write(tmp_path / "again", lambda path, index: leaves[path][index], config, load(back)[2])
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (back / name).read_bytes(), name


def test_transformers_stops_where_the_export_says(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    back = to_ours_and_back(with_tokenizer(tmp_path / "m", {"eos_token": "</s>"}), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    model = transformers.AutoModelForCausalLM.from_pretrained(back)
    said = tokenizer.encode("it is a cat\n### Human: more", add_special_tokens=False)

    class Scripted(transformers.LogitsProcessor):
        def __call__(self, ids, scores):
            scores = torch.full_like(scores, -1e9)
            scores[:, said[ids.shape[1] - 1]] = 0
            return scores

    out = model.generate(
        torch.tensor([[1]]),
        tokenizer=tokenizer,
        logits_processor=[Scripted()],
        max_new_tokens=len(said),
        do_sample=False,
    )
    assert tokenizer.decode(out[0][1:]) == "it is a cat\n###"


def test_added_tokens_beside_a_tokenizer_model_go_to_both_forms(tmp_path):
    folder = with_tokenizer(tmp_path / "m", {"eos_token": "<|im_end|>"}, rows=520, base="mixtral")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes((DATA / "tokenizer.model").read_bytes())
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 512, "<|im_start|>": 513}')
    back = to_ours_and_back(folder, tmp_path)
    published = convert.from_checkpoint(tmp_path / "ours", tmp_path / "accessory", "accessory", quiet=True)
    ids = load(folder)[2].encode("<|im_start|> a cat")
    for each in (folder, tmp_path / "ours", back, published):
        found = load_tokenizer(each)
        assert (found.encode("<|im_start|> a cat"), found.eos_ids) == (
            load(folder)[2].encode("<|im_start|> a cat"),
            (512,),
        )
        assert found.encode("<|im_start|>") == [513]
    assert not (published / "tokenizer.model").exists()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(back)
    assert theirs.encode("<|im_start|> a cat", add_special_tokens=False) == ids
    assert theirs.eos_token_id == 512
