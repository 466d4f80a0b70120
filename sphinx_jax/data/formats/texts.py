"""Documents: parquet tables and lines of JSON.

RefinedWeb has its text as `content`, beside url, timestamp, dump, segment and image_urls; FineWeb as `text`, beside id,
dump, url, date, file_path, language, language_score and token_count: read in their cards. C4, Dolma and others with
`text` (from memory) are lines of JSON; packed ones have to be unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source
from sphinx_jax.data.formats.tables import carried, json_rows, parquet_columns, parquet_rows, text_of

TEXTS = ("text", "content")
BATCH = 256  # rows; a document has some 3 kB


def read(source: Source) -> Iterator[Found | Dropped]:
    """An item a document, without picture and turns.  Raises BadData: no row has a text."""
    path = source.file
    lacks = f"{path} holds no documents: expected {' or '.join(map(repr, TEXTS))}"
    if path.suffix != ".parquet":
        rows, named = json_rows(path), False
    elif any(name in parquet_columns(path) for name in TEXTS):
        rows, named = parquet_rows(path, TEXTS, BATCH), True
    else:
        raise BadData(lacks)
    number = 0
    for number, row in rows:
        if isinstance(row, Dropped):
            yield row
            continue
        column = next((name for name in TEXTS if name in row), "")
        named = named or bool(column)
        if text := text_of(row.get(column)):
            item = Item(None, (), text=text, id=text_of(row.get("id")) or f"{path.stem}/{number}")
            yield Found(item, carried(row, (column, "id")))
        else:
            yield Dropped(f"{path.name}/{number}", "text is missing")
    if number and not named:
        raise BadData(lacks)


DOCUMENTS = Format("RefinedWeb, FineWeb and other documents", "0000.parquet, documents.jsonl", read)
