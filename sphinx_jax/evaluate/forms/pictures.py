"""Pictures of questions, from folders, parquet files and tables."""

from __future__ import annotations

import base64
import csv
import functools
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from sphinx_jax.data.image import PAD_COLOUR, BadImage, ImageSource, load_image
from sphinx_jax.evaluate.forms.files import listed, picture_columns, walk
from sphinx_jax.evaluate.question import BadBenchmark, InTable, Joined, Picture, Question

HELD = 2  # groups of rows of parquet files that are in memory
LONGEST = 4096  # pixels of several pictures side by side, which is more than a model sees
_WRITTEN_AROUND = re.compile(r"^\s*data:[^,]*;base64,|\s+")  # base64: the head of a data URL, ends of lines
BETWEEN = 50  # as many times the space between two of them is their height


class Pictures:
    """Finds and reads pictures.

    Args:
      folder: of the benchmark, where paths of pictures begin, or anywhere below which their names are unique.
    """

    def __init__(self, folder: Path):
        folder = folder.absolute()
        self.folder = folder if folder.is_dir() else folder.parent

    def find(self, picture: Picture) -> ImageSource:
        """A file of a picture, or its bytes; of several one with all of them side by side.  Raises BadImage."""
        if isinstance(picture, Joined):
            return side_by_side([load_image(self.find(one)) for one in picture.pictures])
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


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """RGB pictures as one, of the height of the tallest if there is room, with a little padding between them."""
    spaces = (len(pictures) - 1) / BETWEEN
    heights = LONGEST / (sum(picture.width / picture.height for picture in pictures) + spaces)
    height = max(1, int(min(heights, LONGEST, max(picture.height for picture in pictures))))
    between = max(1, height // BETWEEN)
    widths = [max(1, round(picture.width * height / picture.height)) for picture in pictures]
    whole = Image.new("RGB", (sum(widths) + between * (len(pictures) - 1), height), PAD_COLOUR)
    left = 0
    for picture, width in zip(pictures, widths, strict=True):
        # a picture that is of this size already stays as it is
        whole.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, 0))
        left += width + between
    return whole


def _cell(at: InTable) -> bytes:
    value = _in_parquet(at) if at.file.endswith(".parquet") else _in_text(at)
    if isinstance(value, list):
        value = value[at.place] if value else None
    if isinstance(value, dict):
        value = value.get("bytes")
    if not value:
        raise BadImage(f"row {at.row} of {at.file} has no picture")
    return value


def _in_parquet(at: InTable) -> Any:
    import pyarrow

    try:
        starts, read = _parquet(at.file)
        group = max(i for i, start in enumerate(starts) if start <= at.row)
        column = read(group, at.column)
        if isinstance(column, Exception):
            raise column
        return column[at.row - starts[group]].as_py()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadImage(f"row {at.row} of {at.file} cannot be read: {why}") from None


@functools.lru_cache(maxsize=HELD)
def _parquet(file: str) -> tuple[list[int], Any]:
    import pyarrow
    import pyarrow.parquet as parquet

    held = parquet.ParquetFile(file)
    starts = [0]
    for group in range(held.num_row_groups - 1):
        starts.append(starts[-1] + held.metadata.row_group(group).num_rows)

    @functools.lru_cache(maxsize=HELD * len(picture_columns(held)))
    def read(group: int, column: str) -> Any:
        """The column, or its error: what is damaged is no more read for each of its rows than what is whole."""
        try:
            return held.read_row_group(group, columns=[column]).column(column)
        except (pyarrow.ArrowException, OSError) as error:
            return error

    return starts, read


def _in_text(at: InTable) -> bytes:
    spans, column = _lines(at.file)
    begin, end = spans[at.row]
    with open(at.file, "rb") as file:
        file.seek(begin)
        text = file.read(end - begin).decode()
    (cells,) = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row)
    try:
        return base64.b64decode(_WRITTEN_AROUND.sub("", listed(cells[column])[at.place]), validate=True)
    except (ValueError, IndexError, BadBenchmark):
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


def named_pictures(questions: Iterable[Question], folder: Path) -> tuple[dict[str, ImageSource], dict[str, str]]:
    """The pictures of some questions by name, each once; and the names of those that are not there, with why."""
    pictures, found, lost = Pictures(folder), dict[str, ImageSource](), dict[str, str]()
    for question in questions:
        shown = question.picture
        for picture in shown.pictures if isinstance(shown, Joined) else (shown,):
            name = ":".join(map(str, picture)) if isinstance(picture, InTable) else str(picture)
            if name in found or name in lost:
                continue
            try:
                found[name] = pictures.find(picture)
            except BadImage as error:
                lost[name] = str(error)
    return found, lost
