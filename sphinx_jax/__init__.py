"""SPHINX in JAX: the multimodal LLM that jointly mixes model weights, tuning tasks and visual embeddings."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

# loaded on first use: importing the package stays as fast as importing Python
_PUBLIC = {
    "from_pretrained": "sphinx_jax.generate.load",
    "Sphinx": "sphinx_jax.generate.sphinx",
    "Engine": "sphinx_jax.generate.engine",
    "Request": "sphinx_jax.generate.request",
    "count_parameters": "sphinx_jax.model.blueprint",
}

__all__ = ["Engine", "Request", "Sphinx", "count_parameters", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sphinx_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
