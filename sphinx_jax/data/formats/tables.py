"""Tables too large to be held: parquet by row group, JSON by line; and what an item takes of a row."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import BadData, open_binary
from sphinx_jax.data.formats.found import Dropped, Source
from sphinx_jax.paths import as_path, joined

DAMAGED = "json is damaged"

Row = tuple[int, dict[str, Any] | Dropped]
"""A row and its number in the file, or why there is none."""


def text_of(value: Any) -> str:
    """A text without blanks around it; "" where there is none.

    Half of a surrogate pair, which a caption that was cut within an emoji ends in, is left out: no file can hold it.
    """
    return _whole(value).strip() if isinstance(value, str) else ""


def carried(row: Mapping[str, Any], left_out: Collection[str] = ()) -> dict[str, Any]:
    """Texts, numbers, truth values, and lists of them, as JSON can hold them; times are texts as in ISO 8601."""
    plain = {name: _plain(value) for name, value in row.items() if name not in left_out}
    return {name: value for name, value in plain.items() if value is not None}


def picture_at(source: Source, name: str) -> str | None:
    """The absolute path of a picture that a file names; None where it is not there."""
    try:
        file = joined(source.pictures, name)
        return str(as_path(file)) if file.is_file() else None
    except (ValueError, OSError):  # a web address, a null byte, too long a name
        return None


def parquet_columns(path: Path) -> list[str]:
    """Raises BadData."""
    with _open_parquet(path) as file:
        return file.schema_arrow.names


def parquet_rows(path: Path, needed: Collection[str], batch: int) -> Iterator[Row]:
    """Rows with the columns that are needed and those that can be carried, counted from 0.

    A row group that cannot be read is one Dropped; what came before its fault is there.

    Args:
      batch: how many rows are decoded at a time.

    Raises:
      BadData: no parquet.
    """
    import pyarrow

    with _open_parquet(path) as file:
        names = [field.name for field in file.schema_arrow if field.name in needed or _can_be_carried(field.type)]
        begin = 0
        for group in range(file.num_row_groups):
            number = begin
            try:
                for part in file.iter_batches(batch, row_groups=[group], columns=names):
                    yield from _decoded(part, number, path.name)
                    number += len(part)
            except (pyarrow.ArrowException, OSError):
                yield number, Dropped(f"{path.name} row group {group}", "row group is damaged")
            begin += file.metadata.row_group(group).num_rows


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a file with one a line, counted from 1.

    Raises:
      BadData: no such file, or its first line is no object.
    """
    with open_binary(path) as file:
        begun = False
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            if not begun and not text.startswith(b"{"):
                raise BadData(f"{path} is not JSON with one object a line")
            begun = True
            name = f"{path.name} line {number}"
            try:
                value = json.loads(text.decode())
            except (ValueError, RecursionError):
                yield number, Dropped(name, DAMAGED)
                continue
            yield number, value if isinstance(value, dict) else Dropped(name, "item is not an object")


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def _can_be_carried(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not binary and not types.is_nested(kind)


def _decoded(part: Any, number: int, name: str) -> Iterator[Row]:
    try:
        yield from enumerate(part.to_pylist(), number)
        return
    except ValueError:  # a text that is not UTF-8, a time beyond the year 9999
        pass
    for i in range(len(part)):
        try:
            yield number + i, part.slice(i, 1).to_pylist()[0]
        except ValueError:
            yield number + i, Dropped(f"{name} row {number + i}", "row is damaged")


def _whole(text: str) -> str:
    return text.encode(errors="ignore").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        items = [None if isinstance(item, list) else _plain(item) for item in value]
        return None if None in items else items
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        return _whole(value)
    return value if isinstance(value, int) else None
