"""Files that data sets and benchmarks come in: texts, JSON, lines of JSON, pickles of plain containers."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from sphinx_jax.config import ConfigError


class BadData(ConfigError):
    """A file that does not hold what it was said to; the message is one line that names it."""


def read_text(path: Path) -> str:
    """A text in UTF-8, its byte order mark left out.  Raises BadData."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not text: {error.reason}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """What `read_text` gives, to be read line by line, with its line ends as they are.  Raises BadData while it is."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not text: {error.reason}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def open_binary(path: Path) -> BinaryIO:
    """A file to be read piece by piece.  Raises BadData."""
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> BadData:
    if isinstance(error, IsADirectoryError):
        return BadData(f"{path} is a folder; name the files in it, as {path / '*'}")
    return BadData(f"{path} cannot be read: {error.strerror}")


def read_json(path: Path) -> Any:
    """A JSON file, or one of a JSON object a line.  Raises BadData."""
    text = read_text(path)
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except json.JSONDecodeError as whole:
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except json.JSONDecodeError:
            raise BadData(f"{path} is not JSON: {whole}") from None


class _Plain(pickle.Unpickler):
    """What has no class of its own: lists, dicts, texts, numbers."""

    def find_class(self, module: str, name: str) -> Any:
        raise BadData(f"the pickle asks for {module}.{name}; one of plain lists and dicts asks for nothing")


def read_pickle(path: Path) -> Any:
    """A pickle of plain containers.  Raises BadData where it is anything else: a pickle may run programs."""
    try:
        return _Plain(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except BadData as error:
        raise BadData(f"{path}: {error}") from None
    except Exception as error:  # an unpickler raises anything
        raise BadData(f"{path} cannot be read as a pickle: {error}") from None
