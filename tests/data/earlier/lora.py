"""LoRA beside a frozen decoder in 8 bits, on what the first stage of ``recipe.py`` left; run from this folder."""

from earlier import recipe
from ml_collections import ConfigDict

# the encoders and the decoder's matrices; written out, because a recipe of its time keeps its own
FROZEN = (
    "encoders/*", "decoder/embedding", "decoder/output", "decoder/blocks/attention/q", "decoder/blocks/attention/k",
    "decoder/blocks/attention/v", "decoder/blocks/attention/o", "decoder/blocks/ffn/gate", "decoder/blocks/ffn/up",
    "decoder/blocks/ffn/down",
)  # fmt: skip


def get_config() -> ConfigDict:
    c = recipe.get_config()
    c.model.decoder.lora_rank = 2
    c.stages = ("tune",)
    c.stage = {
        "tune": recipe.TRAIN | {
            "start": "full/first/checkpoints/2", "steps": 4, "rate": 1e-2, "optimizer": "adamw", "frozen": FROZEN,
            "quantize": "int8",
        },
    }  # fmt: skip
    return c
