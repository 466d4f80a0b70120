"""Files to batches: items of conversations, their pictures, tasks and domains as one stream of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx_jax.data.formats.prepared import open_prepared

__all__ = ["open_prepared"]


def __getattr__(name: str) -> Any:
    if name == "open_prepared":  # on demand: whoever wants one part of this package does not load the others
        from sphinx_jax.data.formats.prepared import open_prepared

        return open_prepared
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
