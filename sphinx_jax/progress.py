"""Progress bars: live on a terminal, a rare line where output goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class _Log:
    """A log has lines, where a terminal is written over."""

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(over: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """A tqdm bar that disappears when it is full; in a log it prints every half minute at most."""
    terminal = sys.stderr.isatty()
    if terminal:
        return tqdm(over, leave=False, mininterval=0.2, **settings)
    return tqdm(over, leave=False, mininterval=30, delay=30, file=_Log(), **settings)
