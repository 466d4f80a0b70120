"""A benchmark's predictions in a file as they come: a run that was killed asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.paths import write_whole

FILE, ABOUT = "predictions.jsonl", "about.json"


class Said:
    """Predictions in memory.

    Attributes:
      texts: key -> prediction.
    """

    def __init__(self) -> None:
        self.texts: dict[int | str, str] = {}

    def add(self, key: int | str, text: str) -> None:
        self.texts[key] = text


class Answers(Said):
    """Lines of {"key", "prediction"}; beside them stands what they depend on.

    Args:
      about: what predictions depend on; those of anything else are thrown away.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, told = folder / FILE, folder / ABOUT
        known = json.dumps(about, sort_keys=True, indent=1).encode()
        same = told.exists() and told.read_bytes() == known
        lines = self.path.read_bytes().split(b"\n") if same and self.path.exists() else []
        super().__init__()
        self.texts |= _whole(lines)
        # first the predictions: what is said of none is thrown away
        write_whole(self.path, b"".join(_line(key, text) for key, text in self.texts.items()))
        write_whole(told, known)
        self._file = self.path.open("ab")

    def add(self, key: int | str, text: str) -> None:
        super().add(key, text)
        self._file.write(_line(key, text))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(key: int | str, text: str) -> bytes:
    return json.dumps({"key": key, "prediction": text}).encode() + b"\n"


def _whole(lines: Iterable[bytes]) -> Iterator[tuple[int | str, str]]:
    """Up to the first that is not whole: where the run was killed."""
    for line in lines:
        try:
            row = json.loads(line)
            yield row["key"], row["prediction"]
        except (ValueError, KeyError, TypeError):
            return
