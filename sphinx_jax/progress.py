"""Progress bars: live on a terminal, a rare line where output goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(over: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """A tqdm bar that disappears when it is full; in a log it prints every half minute at most."""
    terminal = sys.stderr.isatty()
    return tqdm(over, leave=False, mininterval=0.2 if terminal else 30, delay=0 if terminal else 30, **settings)
