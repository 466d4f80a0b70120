"""SPHINX as a model of lmms-eval, which finds `manifest` by the entry point of its group `lmms_eval.models`.

Nothing of ours imports this. lmms-eval does, whichever model it runs: what takes time to import waits for its turn.
"""

from __future__ import annotations

import functools
from typing import Any


def manifest() -> Any:
    """What lmms-eval wants to know of a model before it is loaded: a `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("sphinx_jax", chat_class_path=f"{__name__}.SphinxJax")


@functools.cache
def _model() -> type:
    from lmms_eval.api.model import lmms

    from sphinx_jax.evaluate.hosted import Hosted

    return type("SphinxJax", (Hosted, lmms), {"__doc__": Hosted.__doc__, "__module__": __name__})


# lmms-eval is an extra, and this module can be imported without it
def __getattr__(name: str) -> Any:
    if name != "SphinxJax":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model()
