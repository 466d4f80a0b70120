"""Files that benchmarks come in: parquet, tables with tabs, lists; which of them a folder holds."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import open_text
from sphinx_jax.evaluate.question import BadBenchmark, InTable, joined

KINDS = (".json", ".jsonl", ".parquet", ".tsv", ".p", ".token", ".csv", ".txt")
UNFIT = "unfit"  # beside the cells of a row that has not as many as the header: why it is none
NAMED = ("file_name", "image_source")  # columns that say what the picture is called
AT_ONCE = 32  # pictures of a parquet file that are in memory while questions are read
SHARED = 64  # characters of an `image` that names the row whose picture it is, at most


class Damaged(BadBenchmark):
    """A file that cannot be read; `rows` is how many it has, where that is known."""

    def __init__(self, message: str, rows: int | None = None):
        super().__init__(message)
        self.rows = rows


def read_parquet(
    path: Path, needs: Iterable[str], content: Callable[[dict[str, Any]], Any] | None = None
) -> list[dict[str, Any]]:
    """The rows of a parquet file, pictures as `InTable`, None where a cell is empty.

    Args:
      content: what `content` of a row is, made of its `image` as the file has it, which is not kept.

    Raises Damaged where it is no parquet, BadBenchmark where it lacks a column.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    count = None
    try:
        with parquet.ParquetFile(path) as file:
            count, names = file.metadata.num_rows, file.schema_arrow.names
            _check_columns(path, names, needs)
            held = picture_columns(file)
            rows = file.read(columns=[name for name in names if name not in held]).to_pylist()
            there = {name: _beside(file, name) for name in held}
            made = [] if content is None else list(_contents(file, content))
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}", count) from None
    for row, one in zip(rows, made, strict=False):
        row["content"] = one
    for number, row in enumerate(rows):
        for name, beside in there.items():
            cell = {} if beside is None else beside[number]
            called = next((row[at] for at in NAMED if isinstance(row.get(at), str)), "") if name == "image" else ""
            if isinstance(cell, dict):
                called = cell.get("path") or called
            row[name] = None if cell is None else InTable(str(path), number, name, name=called)
    return rows


def _contents(file: Any, content: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    """What `content` makes of each picture, few of them in memory at once; None of those that cannot be read."""
    import pyarrow

    for group in range(file.num_row_groups):
        left = file.metadata.row_group(group).num_rows
        try:
            for part in file.iter_batches(AT_ONCE, row_groups=[group], columns=["image"]):
                for cell in part.column(0):
                    left -= 1
                    try:
                        picture = cell.as_py()
                        yield picture and content(picture)
                    except (ValueError, TypeError, OSError):
                        yield None
        except (pyarrow.ArrowException, OSError):
            yield from itertools.repeat(None, left)


def picture_columns(file: Any) -> list[str]:
    """Columns of a parquet file that are {bytes, path}, or lists of them."""
    return [
        field.name for field in file.schema_arrow if "<bytes: " in str(field.type) or ", bytes: " in str(field.type)
    ]


def _beside(file: Any, name: str) -> list[Any] | None:
    """What stands beside the bytes of each cell, None of an empty one; None where nothing does."""
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    beside = [leaf for leaf in leaves if leaf.startswith(f"{name}.") and leaf.endswith(".path")]
    return file.read(columns=beside).column(name).to_pylist() if beside else None


def read_table(path: Path, needs: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a table as VLMEvalKit has them; only an empty cell is missing.

    A row of another number of cells than the header is there with those that it has, and says so under `UNFIT`.
    `image` is an `InTable`, of equal pictures the same, or several where a cell is a list of them.

    Raises BadBenchmark where it is no such table or lacks a column.
    """
    csv.field_size_limit(sys.maxsize)
    rows: list[dict[str, Any]] = []
    at: dict[str, int] = {}  # index -> row of its picture
    by_content: dict[int, int] = {}
    many: dict[int, int] = {}  # row -> how many pictures it has
    # line by line, for pictures are nearly all of it
    with open_text(path) as file:
        reader = csv.DictReader(file, delimiter="\t")
        _check_columns(path, reader.fieldnames or (), needs, "tabs")
        for number, row in enumerate(reader):
            if row.pop(None, None) is not None or None in row.values():
                row = {name: cell or "" for name, cell in row.items()}
                row[UNFIT] = f"{path}: row {number + 1} has not as many cells as the header"
            picture = row.get("image", "")
            shared = picture and len(picture) <= SHARED
            first = at.get(picture, number) if shared else by_content.setdefault(hash(picture), number)
            at[row.get("index", "")] = first
            count = many.setdefault(first, len(listed(picture, "image"))) if "image" in row else 0
            row["image"] = joined(InTable(str(path), first, place=place) for place in range(count))
            rows.append(row)
    return rows


def _check_columns(path: Path, has: Sequence[str], needs: Iterable[str], parted: str = "") -> None:
    missing = [name for name in needs if name not in has]
    if missing:
        seen = ", ".join(map(repr, has[:6])) or "nothing"
        by = f"; is it separated by {parted}?" if parted and len(has) < 2 else ""
        raise BadBenchmark(f"{path} has no column {missing[0]!r}, only {seen[:200]}{by}")


def listed(value: Any, what: str = "answer") -> list[str]:
    """A list, or one that is written as Python writes it, as texts; none of None.  Raises BadBenchmark."""
    if value is None:
        return []
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            raise BadBenchmark(f"{what} {value[:80]!r} is no list") from None
    return [str(x) for x in value] if isinstance(value, (list, tuple)) else [str(value)]


def files_of(path: Path) -> list[Path]:
    """The files of a folder that a benchmark may lie in, or the one file.  Raises BadBenchmark."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadBenchmark(f"there is no {path}")
    return sorted(p for p in walk(path) if p.suffix in KINDS)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, links to folders followed, each folder once."""
    been: set[str] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in been:
            folders.clear()
            continue
        been.add(real)
        yield from (Path(at, name) for name in files)


def named(files: Iterable[Path], *patterns: str) -> list[Path]:
    """Those whose names fit one of some patterns, pattern by pattern."""
    files = list(files)
    return [path for pattern in patterns for path in files if path.match(pattern)]


def is_list(path: Path) -> bool:
    """Whether a file is a list as the reference evaluation has them."""
    if path.suffix != ".json":
        return False
    with open(path, "rb") as file:
        head = file.read(4096).lstrip()
    return head.startswith(b"[") and b'"gt_answers"' in head and b'"image_path"' in head


def lists(files: Iterable[Path]) -> Iterator[Path]:
    return (path for path in files if is_list(path))


def picture_size(picture: Any, root: Path | None = None) -> tuple[int, int]:
    """Width and height, in pixels, of a picture that a parquet file has as {bytes, path}."""
    from PIL import Image

    source = io.BytesIO(picture["bytes"]) if isinstance(picture, dict) else root / picture if root else picture
    with Image.open(source) as image:
        return image.size
