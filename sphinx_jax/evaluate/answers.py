"""Predictions in files as they come: a run that was killed asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sphinx_jax.config import ConfigError
from sphinx_jax.distributed import barrier
from sphinx_jax.paths import write_whole

_log = logging.getLogger(__name__)

FILE, ABOUT = "predictions.jsonl", "about.json"
OLD = "predictions.old.jsonl"  # answers that no longer hold
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


class _Held(NamedTuple):
    """What a file has: answers that still hold, lines of others, and what has changed since these."""

    texts: dict[int | str, str]
    others: list[bytes]
    why: str


class Answers(Said):
    """Lines of {"key", "prediction"}; beside them stands what they depend on.

    Each process of a run has a file of its own, in a folder that all of them see, so that nothing is sent from one to
    another; it knows what all had written when it begins, however many they were.  In an object store, whose files do
    not grow, a process writes its file when it is closed: what was said before is lost with a process that is killed.

    Args:
      about: what all predictions depend on; those of anything else are put aside, into a file of their own.
      asked: what each question is besides, by key, where one of them may change without the others: its line has it
        too, and an answer is kept as long as that is the same.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], process: int = 0, asked: Mapping[int | str, str] | None = None
    ):
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings, self._asked = folder, about, asked
        self._about = dict(about)
        if asked is not None:  # processes of one run have the same questions
            self._about["questions"] = hashlib.sha256(json.dumps(list(asked.items())).encode()).hexdigest()
        # the first process has its file under the name by which all have their answers in the end
        self._head = _one_line(self._about) if process else b""
        self.path = _file_of(folder, process)
        found = self._files()
        for held in found.values():
            self.texts |= held.texts
        own = found.get(self.path, _Held({}, [], ""))
        self._put_aside(own, process)
        self._own = dict(own.texts)
        # first the predictions: what is said of none is put aside
        self._write(self._own)
        if not process:
            write_whole(folder / ABOUT, _beside(self._about))
        self._file = self.path.open("ab") if isinstance(self.path, Path) else None

    def _files(self) -> dict[Path, _Held]:
        """What each file has, the first process's before the others'."""
        found, told, first = {}, self._folder / ABOUT, _file_of(self._folder, 0)
        if first.exists():
            found[first] = self._held(told.read_bytes() if told.exists() else b"", first.read_bytes().split(b"\n"))
        for file in sorted(self._folder.glob(OTHERS)):
            head, *lines = file.read_bytes().split(b"\n")
            found[file] = self._held(head, lines)
        return found

    def _held(self, head: bytes, lines: list[bytes]) -> _Held:
        try:
            told = dict(json.loads(head))
        except (ValueError, TypeError):
            told = {}
        apart = {"questions"} if self._asked is not None else set()
        names = (told.keys() | self._settings.keys()) - apart
        differ = sorted(name for name in names if told.get(name, self) != self._settings.get(name, self))
        if differ:
            return _Held({}, [line for line, _ in _whole(lines)], ", ".join(differ))
        texts, others = {}, []
        for line, row in _whole(lines):
            if self._asked is None or (row["key"] in self._asked and row.get("of") == self._asked[row["key"]]):
                texts[row["key"]] = row["prediction"]
            else:
                others.append(line)
        return _Held(texts, others, "their questions or pictures")

    def _put_aside(self, held: _Held, process: int) -> None:
        if held.others:
            file = self._folder / (OLD.replace(".jsonl", f"-{process}.jsonl") if process else OLD)
            before = file.read_bytes() if file.exists() else b""
            write_whole(file, before + b"".join(line + b"\n" for line in held.others))
            _log.warning("%d answers are put aside in %s, as these have changed: %s", len(held.others), file, held.why)

    def _line(self, key: int | str, text: str) -> bytes:
        of = {} if self._asked is None else {"of": self._asked[key]}
        return json.dumps({"key": key, "prediction": text} | of).encode() + b"\n"

    def _write(self, texts: Mapping[int | str, str]) -> None:
        write_whole(self.path, self._head + b"".join(self._line(key, text) for key, text in texts.items()))

    def add(self, key: int | str, text: str) -> None:
        super().add(key, text)
        if self._file is None:
            self._own[key] = text
            return
        self._file.write(self._line(key, text))
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
        found = self._files()
        for process in range(1, count):
            if not self._is_of_this_run(_file_of(self._folder, process)):
                raise ConfigError(
                    f"{self._folder} has no answers of process {process} to these questions: all processes need the "
                    "same workdir, which they share, the same data and the same checkpoint"
                )
        for held in found.values():
            self.texts |= held.texts
            self._put_aside(held, 0)
        self._write(self.texts)
        for file in self._folder.glob(OTHERS):
            file.unlink()

    def _is_of_this_run(self, file: Path) -> bool:
        return file.exists() and file.read_bytes().startswith(_one_line(self._about))


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


def _whole(lines: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Up to the first that is not whole: where the run was killed."""
    for line in lines:
        try:
            row = json.loads(line)
            row["key"], row["prediction"]
        except (ValueError, KeyError, TypeError):
            return
        yield line, row
