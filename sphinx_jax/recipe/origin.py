"""The model that a config file is told to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sphinx_jax.checkpoint import store
from sphinx_jax.config import FAMILY, ConfigError, family, to_dict
from sphinx_jax.paths import located


def origin(given: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a folder names, and its model's config; of a name of the family the config alone.

    Raises ConfigError where it is neither.
    """
    start = store.chosen_in(located(given))
    if (start / "model.json").is_file():
        return start, json.loads((start / "model.json").read_text())
    if given in FAMILY:  # what it would take, before there are weights: tools/compile_ahead.py
        return start, to_dict(family(given))
    raise ConfigError(
        f"{given} is no checkpoint (it has no model.json): give what tools/convert_checkpoint.py wrote, or the "
        "folder of a training stage"
    )
