"""SPHINX with the 7B decoder: one 224-pixel view, four encoders."""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    return published.sphinx("sphinx_7b", device_rows=5)
