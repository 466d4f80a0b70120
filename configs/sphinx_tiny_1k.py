"""SPHINX-Tiny-1k: TinyLlama 1.1B, two encoders, 1024-pixel pictures as an overview and 2 × 2 crops."""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    return published.sphinx_x("sphinx_tiny_1k", 4, ("encoders/*", "decoder/*", "embedding_mix/tags/*"), rate=2e-5)
