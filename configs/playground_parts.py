"""What SPHINX starts from, at nano size: four encoders and a language model, each trained on its own.

The result is shipped with the package; run this to make it again.
"""

from ml_collections import ConfigDict

from sphinx_jax.config import family, to_dict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "Parts of the playground"
    c.about = (
        "Pre-trains the four nano encoders on pictures and captions of the training split and the nano decoder on",
        "text, and writes both as one checkpoint into the package. About an hour on two cores.",
    )
    c.seed = 0
    c.model = to_dict(family("sphinx_nano"))
    c.data = {"playground": "full", "told": 2.0}
    c.stages = ("encoders", "decoder", "parts")
    c.stage = {
        "encoders": {"kind": "encoders", "steps": 9000},
        "decoder": {
            "kind": "train",
            "start": "fresh",
            "steps": 2000,
            "text_batch": 24,
            "text_length": 224,
            "frozen": ("encoders/*", "embedding_mix/*"),
            "optimizer": "muon",
            "optimizer_settings": {"adam_learning_rate": 0.3},
            "rate": 8e-3,
            "warmup": 50,
            "clip": 1.0,
            "log_every": 50,
            "save_every": 1000,
        },
        "parts": {
            "kind": "assemble",
            "encoders": "encoders",
            "decoder": "decoder",
            "out": "sphinx_jax/data/playground/parts",
        },
    }
    return c
