"""Pictures of questions, from folders, parquet files and tables."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.data.image import BadImage
from sphinx_jax.evaluate.benchmarks.files import walk
from sphinx_jax.evaluate.question import InTable, Picture, Question

HELD = 2  # groups of rows of parquet files that are in memory


class Pictures:
    """Finds and reads pictures.

    Args:
      folder: of the benchmark, where paths of pictures begin, or anywhere below which their names are unique.
    """

    def __init__(self, folder: Path):
        self.folder = folder if folder.is_dir() else folder.parent

    def find(self, picture: Picture) -> Path | bytes:
        """A file of a picture, or its bytes.  Raises BadImage."""
        if isinstance(picture, InTable):
            return _cell(picture)
        if picture is None:
            raise BadImage("the question has no picture")
        for root in (self.folder, *self.folder.parents[:2]):
            if (root / picture).is_file():
                return root / picture
        found = self._by_name.get(Path(picture).name)
        if found is None:  # some files name pictures without their ending, or with that of another form
            found = self._by_stem.get(Path(picture).name) or self._by_stem.get(Path(picture).stem)
        if found is None:
            raise BadImage(f"there is no picture {picture} in {self.folder}")
        return found

    @functools.cached_property
    def _by_name(self) -> dict[str, Path]:
        return {path.name: path for path in walk(self.folder)}

    @functools.cached_property
    def _by_stem(self) -> dict[str, Path]:
        return {path.stem: path for path in self._by_name.values()}


def _cell(at: InTable) -> bytes:
    value = _in_parquet(at) if at.file.endswith(".parquet") else _in_text(at)
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes")
    if not value:
        raise BadImage(f"row {at.row} of {at.file} has no picture")
    return value


def _in_parquet(at: InTable) -> Any:
    starts, read = _parquet(at.file)
    group = max(i for i, start in enumerate(starts) if start <= at.row)
    return read(group, at.column)[at.row - starts[group]].as_py()


@functools.lru_cache(maxsize=HELD)
def _parquet(file: str) -> tuple[list[int], Any]:
    import pyarrow.parquet as parquet

    held = parquet.ParquetFile(file)
    starts = [0]
    for group in range(held.num_row_groups - 1):
        starts.append(starts[-1] + held.metadata.row_group(group).num_rows)

    @functools.lru_cache(maxsize=HELD)
    def read(group: int, column: str) -> Any:
        return held.read_row_group(group, columns=[column]).column(column)

    return starts, read


def _in_text(at: InTable) -> bytes:
    begin, end, column = _lines(at.file)[at.row]
    with open(at.file, "rb") as file:
        file.seek(begin)
        cells = file.read(end - begin).rstrip(b"\r\n").split(b"\t")
    try:
        return base64.b64decode(cells[column], validate=True)
    except (ValueError, IndexError):
        raise BadImage(f"row {at.row} of {at.file} has a picture that is not base64") from None


@functools.lru_cache(maxsize=HELD)
def _lines(file: str) -> list[tuple[int, int, int]]:
    """Where each row begins and ends, and the column of its picture; a quoted cell may have line ends in it."""
    with open(file, "rb") as lines:
        header = next(lines)
        column = header.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf").split(b"\t").index(b"image")
        return [(begin, end, column) for begin, end in _rows(lines, len(header))]


def _rows(lines: Any, at: int) -> Iterator[tuple[int, int]]:
    begin, quotes = at, 0
    for line in lines:
        at += len(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            yield begin, at
            begin = at


def named_pictures(questions: Iterable[Question], folder: Path) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """The pictures of some questions by name, each once; and the names of those that are not there, with why."""
    pictures, found, lost = Pictures(folder), dict[str, Path | bytes](), dict[str, str]()
    for question in questions:
        picture = question.picture
        name = f"{Path(picture.file).name}:{picture.row}" if isinstance(picture, InTable) else str(picture)
        if name in found or name in lost:
            continue
        try:
            found[name] = pictures.find(picture)
        except BadImage as error:
            lost[name] = str(error)
    return found, lost
