"""SPHINX-1k: LLaMA2 13B, 448-pixel pictures as an overview and 2 × 2 crops."""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    return published.sphinx("sphinx_1k", device_rows=5)
