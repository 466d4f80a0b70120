"""What a check of a device says: rows of a table, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One thing that was measured; `numbers` has what `result` says in words."""

    what: str
    result: str
    ok: bool = True
    memory: float | None = None  # GiB in use at most, where the device says
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What checks are made of, given by the command."""

    records: str = ""  # folder of the reference's records, with the pictures in images/
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> plain data of a recipe, largest first
    scratch: str = "."  # folder on the disk that checkpoints are tried on


def size_text(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def reason(error: BaseException) -> str:
    """Why a check failed, in a line."""
    words = " ".join(str(error).split()) or "no message"
    if "RESOURCE_EXHAUSTED" in words or isinstance(error, MemoryError):
        return f"out of memory: {words[:160]}"
    return f"{type(error).__name__}: {words[:160]}"
