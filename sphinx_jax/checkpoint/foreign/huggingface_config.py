"""The keys of a Hugging Face `config.json`: used by our decoder, refused by name, or known to change nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from sphinx_jax.checkpoint.store import BadCheckpoint

# what a silent config means: the defaults of transformers' LlamaConfig and MixtralConfig
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "positions": 2048},
    "mixtral": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "positions": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
}
USED = {
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "max_sequence_length",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
}
OF_ITS_OWN = {
    "llama": {"attention_bias", "mlp_bias"},
    "mixtral": {"num_local_experts", "num_experts_per_tok", "router_aux_loss_coef"},
}
# keys that change what is computed -> the values with which they do not; a value of None never does
OFF: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "quantization_config": (),
    "compression_config": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "num_local_experts": (0, 1),
    "num_experts_per_tok": (),
    "router_aux_loss_coef": (0,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "use_bidirectional_attention": (False,),
}
# of training, of generation (which generation_config.json rules), of transformers' doings, or descriptions
HARMLESS = {
    "attention_dropout",
    "hidden_dropout",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "classifier_dropout",
    "router_jitter_noise",
    "output_router_logits",
    "initializer_range",
    "gradient_checkpointing",
    "neftune_noise_alpha",
    "pretraining_tp",  # the same sums in slices
    "use_sliding_window",
    "max_window_layers",  # of sliding_window, which is looked at
    "is_llama_config",
    "use_cache",
    "use_flash_attention",
    "attn_implementation",
    "tensor_parallel_size",
    "model_max_length",
    "max_seq_len",
    "multiple_of",  # the widths are given as such
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "unk_token_id",
    "tokenizer_class",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "prefix",
    "name_or_path",
    "torch_dtype",
    "dtype",
    "use_bfloat16",
    "torchscript",
    "tf_legacy_loss",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "output_scores",
    "return_dict_in_generate",
    "cross_attention_hidden_size",
    "chunk_size_feed_forward",
    "is_decoder",
    "tie_encoder_decoder",
    "max_length",
    "min_length",
    "max_new_tokens",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "license",
    "description",
    "author",
    "language",
    "datasets",
    "tags",
}
HARMLESS_STARTS = ("_", "transformers", "unsloth")  # private ones, the version and the JavaScript of transformers
MODEL_TYPES = {"llama": ("llama", "mistral"), "mixtral": ("mixtral",)}
# type of rope -> the keys of its table, beside those that any may have; other types are refused as such
ROPE: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
ANY_ROPE = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor", "finetuned"}


def check_config(file: Path, values: Mapping[str, Any], name: str) -> None:
    """Refuses, by name, what a `config.json` asks for and our decoder does not do, and any key that is not known.

    Args:
      file: for messages.
      name: of our model, `llama` or `mixtral`.

    Raises:
      BadCheckpoint: one line with the first such key.
    """
    require(file, values, model_type=MODEL_TYPES[name])
    own = OF_ITS_OWN[name] | ({"sliding_window"} if values.get("use_sliding_window") is False else set())
    require(file, values, **{key: options for key, options in OFF.items() if key not in own})
    code = {key for key in values.get("auto_map") or () if key != "AutoTokenizer"}
    if code:
        raise BadCheckpoint(f"{file}: auto_map asks for code of its own ({', '.join(sorted(code))}), which is not run")
    if other := set(values.get("layer_types") or ()) - {"full_attention"}:
        raise BadCheckpoint(f"{file}: layer_types {sorted(other)} are not supported, only 'full_attention'")
    known = USED | OF_ITS_OWN[name] | OFF.keys() | HARMLESS | {"model_type", "auto_map", "layer_types"}
    for key, value in values.items():
        if value is not None and key not in known and not key.startswith(HARMLESS_STARTS):
            raise BadCheckpoint(
                f"{file}: the key {key!r} is not known and may change what the model computes; if it does not, take it "
                "out of the file"
            )
    _check_rope(file, values.get("rope_scaling") or values.get("rope_parameters") or {})
    _check_ids(file, values)


def _check_rope(file: Path, rope: Any) -> None:
    if not isinstance(rope, dict):
        raise BadCheckpoint(f"{file}: the rope scaling {short(rope)} is not a table with a type and a factor")
    require(file, rope, partial_rotary_factor=(1,))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE:
        raise BadCheckpoint(f"{file} asks for rope of type {kind!r}; supported are {', '.join(ROPE)}")
    for key, value in rope.items():
        if value is not None and key not in ANY_ROPE | ROPE[kind] and (key, value) != ("factor", 1):
            raise BadCheckpoint(f"{file} has a rope of type {kind!r} with {key} {short(value)}, which is not supported")


def _check_ids(file: Path, values: Mapping[str, Any]) -> None:
    rows = values.get("vocab_size")
    for key in ("bos_token_id", "eos_token_id"):
        named = values.get(key)
        for i in named if isinstance(named, list) else [named]:
            if isinstance(rows, int) and isinstance(i, int) and i >= rows:
                raise BadCheckpoint(f"{file}: {key} {i} is outside the embedding of {rows} rows; correct it")


def require(file: Path, values: Mapping[str, Any], **supported: Sequence[Any]) -> None:
    """Refuses, by name, a value that is there and not among the supported ones."""
    for key, options in supported.items():
        found = values.get(key)
        if found is not None and found not in options:
            only = f", only {' and '.join(map(repr, options))}" if options else ""
            raise BadCheckpoint(f"{file}: {key} {short(found)} is not supported{only}")


def read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise BadCheckpoint(f"{file} does not exist") from None
    except ValueError as error:
        raise BadCheckpoint(f"{file} is not JSON ({error})") from None


@contextlib.contextmanager
def complete(file: Path) -> Iterator[None]:
    """Turns a KeyError into a BadCheckpoint that names the file."""
    try:
        yield
    except KeyError as error:
        raise BadCheckpoint(f"{file} has no {error}") from None
