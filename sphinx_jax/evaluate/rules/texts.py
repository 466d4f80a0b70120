"""What of an answer is compared: cut at the stop mark, as each protocol does it."""

from __future__ import annotations

STOP = "###"


def official(text: str) -> str:
    """Up to the first stop mark, without outer blanks."""
    return text.partition(STOP)[0].strip()


def reference(text: str) -> str:
    """As the authors' evaluation has it: without blanks at the right where it was cut, untouched where not."""
    before, mark, _ = text.partition(STOP)
    return before.rstrip() if mark else text
