"""SPHINX-MoE-1k: Mixtral 8x7B, 1024-pixel pictures as an overview and 2 × 2 crops."""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    return published.sphinx_x(
        "sphinx_moe_1k", 1, ("encoders/*", "decoder/*", "embedding_mix/qformer_proj/*"), rate=5e-6
    )
