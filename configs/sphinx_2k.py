"""SPHINX-2k: LLaMA2 13B, 672-pixel pictures as an overview and 3 × 3 crops."""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    return published.sphinx("sphinx_2k", device_rows=2)
