"""Pictures with captions in tables: parquet that holds the pictures, and lists of captions and paths.

A parquet file has a picture a row, as bytes or as {bytes, path}, and its caption; img2dataset's has the picture as
`jpg`. What img2dataset writes as single files is read by its parquet file too: pictures lie in the folder of the same
name, by `key` (read in its writer). What other copies call their columns is from memory.

The lists that Google published name web addresses: CC3M `caption⇥url`, CC12M `url⇥caption`, without header. Fetched by
img2dataset they are tar shards. Whoever fetched them otherwise has names of his own for the pictures, so here the
column of addresses is to hold paths: `caption⇥path` or `path⇥caption`. A header such as `filepath⇥title` (OpenCLIP's,
other names from memory) goes before that order. Cells are not quoted: a caption may begin with a quotation mark.

As in `tar_shards`, items have `text` and a domain: `synthetic` where the caption is LAION-COCO's `top_caption`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.files import BadData, open_binary
from sphinx_jax.data.formats.found import Dropped, Format, Found, Reader, Source
from sphinx_jax.data.formats.tables import carried, parquet_columns, parquet_rows, picture_at, text_of
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.paths import WEB

PICTURES = ("image", "jpg", "jpeg", "png", "webp")
CAPTIONS = ("top_caption", "caption", "txt", "text", "TEXT")
NAMES = ("uid", "key", "id")
KINDS = ("jpg", "png", "webp")  # that img2dataset encodes in
BATCH = 32  # rows; a picture has some 100 kB
REAL, SYNTHETIC = DOMAINS

PATHS = ("filepath", "file_path", "path", "file", "image", "image_path", "url")
TITLES = ("title", "caption", "text")
ADDRESSES = tuple(f"{scheme}://" for scheme in WEB)


def read_parquet(source: Source) -> Iterator[Found | Dropped]:
    """An item a row.  Raises BadData: no parquet, no captions, or no pictures in it nor beside it."""
    path = source.file
    columns = parquet_columns(path)
    caption = next((name for name in CAPTIONS if name in columns), None)
    picture = next((name for name in PICTURES if name in columns), None)
    folder = source.pictures / path.stem
    if caption is None:
        raise BadData(f"{path} has no captions: expected a column {', '.join(CAPTIONS[:-1])} or {CAPTIONS[-1]}")
    if picture is None and not ("key" in columns and folder.is_dir()):
        raise BadData(f"{path} holds no pictures, and there is no folder {folder}: fetch them with img2dataset")
    named = next((name for name in NAMES if name in columns), "")
    domain = SYNTHETIC if caption == "top_caption" else REAL
    for number, row in parquet_rows(path, [name for name in (picture, caption, named) if name], BATCH):
        if isinstance(row, Dropped):
            yield row
            continue
        id = str(row[named]) if row.get(named) not in (None, "") else f"{path.stem}/{number}"
        image = _beside(folder, row["key"]) if picture is None else _picture(source, row[picture])
        item = _pair(f"{path.name}/{number}", image, row[caption], id, domain)
        yield item if isinstance(item, Dropped) else Found(item, carried(row, (picture or "", caption)))


def _picture(source: Source, value: Any) -> bytes | str | None:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return picture_at(source, value)
    return value if isinstance(value, bytes) else None


def _beside(folder: Path, key: Any) -> str | None:
    return next((found for kind in KINDS if (found := picture_at(Source(folder, folder), f"{key}.{kind}"))), None)


def _pair(name: str, image: bytes | str | None, caption: Any, id: str, domain: str = REAL) -> Item | Dropped:
    if not image:
        return Dropped(name, "picture is missing")
    if not (text := text_of(caption)):
        return Dropped(name, "caption is missing")
    return Item(image, (), text=text, domain=domain, id=id)


def _list_reader(caption: int, picture: int) -> Reader:
    """Of lists with a tab between cells, which are in the order of the header or, without one, in this."""

    def read(source: Source) -> Iterator[Found | Dropped]:
        path, places, lists_pictures = source.file, None, False
        for number, cells in _lines(path):
            if isinstance(cells, Dropped):
                yield cells
                continue
            if places is None:
                places = _header(cells)
                if places:
                    continue
                places = caption, picture
                if len(cells) != 2:
                    raise BadData(f"{path} is no list: expected a caption and a path, parted by a tab, in every line")
            name = f"{path.name}/{number}"
            if len(cells) <= max(places):
                yield Dropped(name, "cell is missing")
                continue
            title, picture_name = (cells[place].strip() for place in places)
            if picture_name.lower().startswith(ADDRESSES):
                if not lists_pictures:
                    raise BadData(f"{path} lists web addresses: fetch them with img2dataset and give its tar shards")
                yield Dropped(name, "picture is a web address")
                continue
            lists_pictures = True
            image = picture_at(source, picture_name) if picture_name else None
            item = _pair(name, image, title, f"{path.stem}/{number}")
            yield item if isinstance(item, Dropped) else Found(item)

    return read


def _lines(path: Path) -> Iterator[tuple[int, list[str] | Dropped]]:
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, line.decode("utf-8-sig").split("\t")
                except UnicodeDecodeError:
                    yield number, Dropped(f"{path.name}/{number}", "line is not UTF-8")


def _header(cells: Sequence[str]) -> tuple[int, int] | None:
    """Places of caption and path."""
    lower = [cell.strip().lower() for cell in cells]
    title, path = (next((lower.index(name) for name in names if name in lower), None) for names in (TITLES, PATHS))
    return None if title is None or path is None else (title, path)


PAIRS = Format("pictures with captions in parquet", "00000.parquet", read_parquet)
CC3M = Format(
    "CC3M, and lists like it", "a .tsv of caption and path; its tar shards are read as LAION's", _list_reader(0, 1)
)
CC12M = Format(
    "CC12M, and lists like it", "a .tsv of path and caption; its tar shards are read as LAION's", _list_reader(1, 0)
)
