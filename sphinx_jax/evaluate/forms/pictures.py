"""Pictures of questions, from folders, parquet files and tables."""

from __future__ import annotations

import base64
import csv
import functools
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sphinx_jax.data.image import BadImage
from sphinx_jax.evaluate.forms.files import walk
from sphinx_jax.evaluate.question import InTable, Picture, Question

HELD = 2  # groups of rows of parquet files that are in memory


class Pictures:
    """Finds and reads pictures.

    Args:
      folder: of the benchmark, where paths of pictures begin, or anywhere below which their names are unique.
    """

    def __init__(self, folder: Path):
        folder = folder.absolute()
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
        name = Path(picture).name
        # some files name pictures without their ending, or with that of another form
        found = self._by_name.get(name) or self._by_stem.get(name) or self._by_stem.get(Path(picture).stem) or []
        if len(found) != 1:
            many = f"more than one picture {name}" if found else f"no picture {picture}"
            raise BadImage(f"there is {many} in {self.folder}")
        return found[0]

    @functools.cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in walk(self.folder):
            found.setdefault(path.name, []).append(path)
        return found

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for name, paths in self._by_name.items():
            found.setdefault(Path(name).stem, []).extend(paths)
        return found


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
    spans, column = _lines(at.file)
    begin, end = spans[at.row]
    with open(at.file, "rb") as file:
        file.seek(begin)
        text = file.read(end - begin).decode()
    (cells,) = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row)
    try:
        return base64.b64decode(cells[column], validate=True)
    except (ValueError, IndexError):
        raise BadImage(f"row {at.row} of {at.file} has a picture that is not base64") from None


@functools.lru_cache(maxsize=HELD)
def _lines(file: str) -> tuple[list[tuple[int, int]], int]:
    """Where each row that `files.read_table` finds begins and ends, and the column of its picture."""
    csv.field_size_limit(sys.maxsize)
    taken = 0

    def lines(raw: BinaryIO) -> Iterator[str]:
        nonlocal taken
        for line in raw:
            taken += len(line)
            yield line.decode()

    with open(file, "rb") as raw:
        reader = csv.reader(lines(raw), delimiter="\t")
        column = [name.removeprefix("\ufeff") for name in next(reader)].index("image")
        spans, begin = [], taken
        for row in reader:
            if row:
                spans.append((begin, taken))
            begin = taken
    return spans, column


def named_pictures(questions: Iterable[Question], folder: Path) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """The pictures of some questions by name, each once; and the names of those that are not there, with why."""
    pictures, found, lost = Pictures(folder), dict[str, Path | bytes](), dict[str, str]()
    for question in questions:
        picture = question.picture
        name = ":".join(map(str, picture)) if isinstance(picture, InTable) else str(picture)
        if name in found or name in lost:
            continue
        try:
            found[name] = pictures.find(picture)
        except BadImage as error:
            lost[name] = str(error)
    return found, lost
