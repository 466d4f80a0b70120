"""Answers in a file as they come: an evaluation that was killed asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.paths import write_whole


class Record:
    """Texts by key, each a line of a file, whose first line says what they are answers to.

    Each process of a run has a file of its own, and knows what all have written when it begins.  In an object store,
    whose files do not grow, nothing is kept.

    Args:
      about: what the answers depend on; those of anything else are thrown away.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], process: int = 0):
        header = json.dumps(about, sort_keys=True)
        self._folder, self.texts, self._file = folder, dict[str, str](), None
        if not isinstance(folder, Path):
            return
        folder.mkdir(parents=True, exist_ok=True)
        mine, own = folder / f"answers-{process}.jsonl", dict[str, str]()
        for file in self._files():
            lines = file.read_bytes().decode(errors="replace").split("\n")
            found = dict(_whole(lines[1:])) if lines[0] == header else {}
            self.texts |= found
            own = found if file == mine else own
        kept = [header, *(json.dumps(pair) for pair in own.items())]
        write_whole(mine, "".join(f"{line}\n" for line in kept).encode())
        self._file = mine.open("a")

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("answers*.jsonl"))

    def add(self, key: str, text: str) -> None:
        self.texts[key] = text
        if self._file is not None:
            self._file.write(json.dumps([key, text]) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """The answers of all processes have been written elsewhere."""
        self.close()
        if self._file is not None:
            for file in self._files():
                file.unlink()


def _whole(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Up to the first that is not whole: where the process was killed."""
    for line in lines:
        try:
            key, text = json.loads(line)
        except ValueError:
            return
        yield key, text
