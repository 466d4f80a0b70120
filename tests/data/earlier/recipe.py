"""Two stages over four encoders and a decoder that are as small as they get; run from this folder."""

from ml_collections import ConfigDict

VIT = {"width": 8, "layers": 1, "heads": 2, "patch": 8, "view_size": 16}
MODEL = {
    "name": "earlier",
    "decoder": {"dim": 8, "layers": 2, "heads": 2, "kv_heads": 1, "vocab_size": 512, "multiple_of": 16},
    "views": {"image_size": 32, "crops": 2},
    "clip": VIT | {"mlp_width": 16, "patch_bias": False, "norm_before": True, "norm_eps": 1e-5},
    "convnext": {"depths": (1, 1), "dims": (8, 8), "view_size": 16, "input_size": 16},
    "dinov2": VIT | {
        "mlp_width": 16, "activation": "swiglu", "layer_scale": True, "position_grid": 2, "imagenet_normalised": True,
    },
    "blip2": VIT | {"mlp_width": 16},
    "qformer": {"width": 8, "layers": 2, "heads": 2, "mlp_width": 16, "queries": 2},
    "dtype": "float32",
}  # fmt: skip
TRAIN = {
    "kind": "train", "batch": 2, "domains": {"*": 1.0}, "length": 160, "text_batch": 2, "text_length": 160,
    "warmup": 1, "clip": 1.0, "log_every": 1, "save_every": 2,
}  # fmt: skip


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.model = MODEL
    c.tokenizer = "tokenizer.model"
    c.data = {"playground": None, "meta": {"train": "list.yaml"}}
    c.stages = ("first", "second")
    c.stage = {
        "first": TRAIN
        | {"start": "fresh", "steps": 2, "rate": 1e-2, "optimizer": "sgd", "optimizer_settings": {"momentum": 0.9}},
        "second": TRAIN | {"start": "first", "steps": 4, "rate": 1e-2, "optimizer": "muon"},
        "chat": {"kind": "chat"},
    }
    return c
