"""Tiny models of transformers and timm with random weights, and what they answer: the oracle of test_huggingface.py.

`python tests/checkpoint/huggingface_cases.py` records the cases of `RECORDED` in `tests/fixtures/huggingface`; the
tests need neither torch nor timm.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

RECORDED = ("llama", "mixtral", "clip", "dinov2", "blip2", "convnext")
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24))

# 24 positions of waves that are short, so that each kind of rope tells
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
LLAMA = {
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "rope_parameters": LLAMA3},
    "tied": {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 4},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
}
DECODERS = (*LLAMA, "mixtral")


def randomise(model, seed: int = 0) -> None:
    """No weight is left where an error could hide: scales are not 1, biases not 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            values /= (weight[0].numel() if weight.ndim == 4 else weight.shape[-1]) ** 0.5
        else:
            values = 0.2 * values + (not name.endswith("bias"))
        weight.data.copy_(values)
    model.eval()


def decoder(folder: Path, case: str) -> dict[str, np.ndarray]:
    import torch
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    if case == "mixtral":
        config = transformers.MixtralConfig(**sizes, num_local_experts=3, num_experts_per_tok=2)
        model = transformers.MixtralForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | LLAMA[case]))
    randomise(model)
    model.save_pretrained(folder, max_shard_size="8KB" if case == "tied" else "1GB")
    with torch.no_grad():
        return {"tokens": TOKENS, "out": model(torch.tensor(TOKENS)).logits.numpy()}


def _pixels(size: int):
    import torch

    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(1))


def _seen(pixels, out) -> dict[str, np.ndarray]:
    return {"pixels": pixels.permute(0, 2, 3, 1).numpy(), "out": out.detach().numpy()}


def clip(folder: Path) -> dict[str, np.ndarray]:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8))
    randomise(model)
    model.save_pretrained(folder)
    pixels = _pixels(16)
    # the features are those of all tokens after the last norm, which transformers applies to the class token alone
    return _seen(pixels, model.post_layernorm(model(pixels).last_hidden_state))


def dinov2(folder: Path, packed: bool = True) -> dict[str, np.ndarray]:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 3}
    config = transformers.Dinov2Config(**sizes, image_size=16, patch_size=8, use_swiglu_ffn=packed)
    model = transformers.Dinov2Model(config)
    randomise(model)
    model.save_pretrained(folder)
    pixels = _pixels(16)
    return _seen(pixels, model(pixels).last_hidden_state)


def blip2(folder: Path) -> dict[str, np.ndarray]:
    import transformers

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    vision = sizes | {"hidden_size": 24, "image_size": 16, "patch_size": 8}
    qformer = sizes | {"hidden_size": 16, "encoder_hidden_size": 24, "vocab_size": 8, "max_position_embeddings": 8}
    text = {"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 8}
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=3
    )
    model = transformers.Blip2Model(config)
    randomise(model)
    model.save_pretrained(folder)
    pixels = _pixels(16)
    features = model.vision_model(pixels).last_hidden_state
    queries = model.query_tokens.expand(2, -1, -1)
    return _seen(pixels, model.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state)


def convnext(folder: Path) -> dict[str, np.ndarray]:
    """As an open_clip model lies on disk, with a tensor of its text side."""
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("convnext_xxlarge", depths=(1, 1, 2, 1), dims=(4, 8, 8, 16), num_classes=0)
    randomise(model)
    folder.mkdir()
    tensors = {f"visual.trunk.{key}": tensor for key, tensor in model.state_dict().items()}
    save_file(tensors | {"text.positional_embedding": torch.zeros(2, 2)}, folder / "open_clip_model.safetensors")
    statistics = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    vision = {"timm_model_name": "convnext_xxlarge", "image_size": 64}
    config = {"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": statistics}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    pixels = _pixels(64)
    return _seen(pixels, model.head.norm(model.forward_features(pixels)).permute(0, 2, 3, 1))


ENCODERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "clip": clip,
    "dinov2": dinov2,
    "blip2": blip2,
    "convnext": convnext,
}


def make(folder: Path, case: str) -> dict[str, np.ndarray]:
    """Saves a model in a new folder; returns what it was given (tokens or pixels) and its answer (out)."""
    return ENCODERS[case](folder) if case in ENCODERS else decoder(folder, case)


if __name__ == "__main__":
    for name in RECORDED:
        place = Path(__file__).parents[1] / "fixtures" / "huggingface" / name
        shutil.rmtree(place, ignore_errors=True)
        np.savez_compressed(place / "expected.npz", **make(place, name))
