"""Predictions in files as they come: a run that was killed asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from sphinx_jax.config import ConfigError
from sphinx_jax.distributed import barrier
from sphinx_jax.paths import write_whole

FILE, ABOUT = "predictions.jsonl", "about.json"
OTHERS = "predictions-*.jsonl"  # of processes but the first, until they are put together


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

    Each process of a run has a file of its own, in a folder that all of them see, so that nothing is sent from one to
    another; it knows what all had written when it begins, however many they were.  In an object store, whose files do
    not grow, a process writes its file when it is closed: what was said before is lost with a process that is killed.

    Args:
      about: what predictions depend on; those of anything else are thrown away.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], process: int = 0):
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._about = folder, about
        # the first process has its file under the name by which all have their answers in the end
        self._head = _one_line(about) if process else b""
        self.path = _file_of(folder, process)
        found = self._whole_files()
        for texts in found.values():
            self.texts |= texts
        self._own = dict(found.get(self.path, {}))
        # first the predictions: what is said of none is thrown away
        self._write(self._own)
        if not process:
            write_whole(folder / ABOUT, _beside(about))
        self._file = self.path.open("ab") if isinstance(self.path, Path) else None

    def _whole_files(self) -> dict[Path, dict[int | str, str]]:
        """What each file has that depends on the same, the first process's before the others'."""
        found, told = {}, self._folder / ABOUT
        first = _file_of(self._folder, 0)
        if told.exists() and told.read_bytes() == _beside(self._about) and first.exists():
            found[first] = dict(_whole(first.read_bytes().split(b"\n")))
        for file in sorted(self._folder.glob(OTHERS)):
            lines = file.read_bytes().split(b"\n")
            if lines[0] + b"\n" == _one_line(self._about):
                found[file] = dict(_whole(lines[1:]))
        return found

    def _write(self, texts: Mapping[int | str, str]) -> None:
        write_whole(self.path, self._head + b"".join(_line(key, text) for key, text in texts.items()))

    def add(self, key: int | str, text: str) -> None:
        super().add(key, text)
        if self._file is None:
            self._own[key] = text
            return
        self._file.write(_line(key, text))
        self._file.flush()

    def close(self) -> None:
        if self._file is None:
            self._write(self._own)
        else:
            self._file.close()

    def gather(self, count: int) -> None:
        """The first process, once all of so many have closed: puts what they wrote into its own file, in place of
        theirs.

        Raises ConfigError where one of them wrote into another folder, or was asked something else.
        """
        found = self._whole_files()
        for process in range(1, count):
            if _file_of(self._folder, process) not in found:
                raise ConfigError(
                    f"{self._folder} has no answers of process {process} to these questions: all processes need the "
                    "same workdir, which they share, the same data and the same checkpoint"
                )
        for texts in found.values():
            self.texts |= texts
        self._write(self.texts)
        for file in self._folder.glob(OTHERS):
            file.unlink()


def put_together(what: str, *kept: Answers) -> None:
    """Every process of a run is here once it has asked; the first then knows what all said, each kind in one file.

    Raises ConfigError as `Answers.gather` does.
    """
    for answers in kept:
        answers.close()
    barrier(what)
    if jax.process_index() == 0:
        for answers in kept:
            answers.gather(jax.process_count())


def _file_of(folder: Path, process: int) -> Path:
    return folder / (OTHERS.replace("*", str(process)) if process else FILE)


def _beside(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True, indent=1).encode()


def _one_line(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True).encode() + b"\n"


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
