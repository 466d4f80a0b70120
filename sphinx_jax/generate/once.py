"""What is made when it is first asked for, by one of the threads that ask."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


class made_once(functools.cached_property[Made]):  # noqa: N801 (named as what it decorates with)
    """A cached property that no two threads make, as they may from Python 3.12 on."""

    def __init__(self, make: Callable[[Any], Made]):
        super().__init__(make)
        self._making = threading.RLock()

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        with self._making:
            return super().__get__(instance, owner)
