"""Answers in a file as they come: an evaluation that was killed asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.paths import write_whole


class Record:
    """Texts by key, each a line of a file, whose first line says what they are answers to.

    In an object store, whose files do not grow, nothing is kept.

    Args:
      about: what the answers depend on; those of anything else are thrown away.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]):
        header = json.dumps(about, sort_keys=True)
        self.texts: dict[str, str] = {}
        lines = file.read_bytes().decode(errors="replace").split("\n") if file.exists() else []
        if lines and lines[0] == header:
            self.texts = dict(_whole(lines[1:]))
        self._file = None
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = [header, *(json.dumps(pair) for pair in self.texts.items())]
            write_whole(file, "".join(f"{line}\n" for line in kept).encode())
            self._file = file.open("a")

    def add(self, key: str, text: str) -> None:
        self.texts[key] = text
        if self._file is not None:
            self._file.write(json.dumps([key, text]) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """The answers have been written elsewhere."""
        self.close()
        if self._file is not None:
            Path(self._file.name).unlink()


def _whole(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Up to the first that is not whole: where the process was killed."""
    for line in lines:
        try:
            key, text = json.loads(line)
        except ValueError:
            return
        yield key, text
