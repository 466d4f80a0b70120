"""The first step: each file is read once, its pictures decoded, and what is seen of each item written beside it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped, Found, Source
from sphinx_jax.data.formats.prepared import MANIFEST, content_of, read_manifest
from sphinx_jax.data.formats.table import FORMATS
from sphinx_jax.data.image import BadImage, load_image
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.seen import coco_number, seen

_log = logging.getLogger(__name__)

VERSION = 5  # of the rows of a sidecar
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
HEARD = 1000  # letters of a text by which its language is found
WORD = 16  # letters of what a file says that can be chosen by
# whose answers, or questions, are of places in the picture
PLACED = {
    "rec",
    "reg",
    "relation",
    "detection",
    "grounded_caption",
    "pose",
    "layout",
    "text_detection",
    "text_spotting",
}
SHAPE = 0.02  # by which the aspect of a picture may differ from that of its annotations
UNREADABLE = "file is of another format"
ROWS = 4096  # of a sidecar that are written at once
KEY = b"looked_at"  # of a sidecar's metadata: the stamp of the file that it is of


@dataclass(frozen=True)
class Task:
    """A file to be looked at.

    Attributes:
      format: its name in the table of formats.
      root: folder in which paths of pictures begin.
      sidecar: the parquet file that is written: a row for each item of the file, in its order.
      language: whether the language of what is learnt is found out.
    """

    format: str
    file: Path
    root: Path | None
    sidecar: Path
    language: bool = False

    @property
    def source(self) -> Source:
        return Source(self.file, self.root)


@dataclass
class Look:
    """What is seen of an item; `reason` says why none can be made of it, "" where one can."""

    name: str
    reason: str = ""
    picture: bool = False
    width: int = 0
    height: int = 0
    content: bytes = b""  # 8 of SHA-256 of the pixels
    whole: bytes = b""  # 8 of SHA-256 of the pixels, if there are any, and of all that is said
    look: int = -1  # 64 bits as a signed number, -1 of a picture that is like any other
    number: int = -1  # of the picture in COCO
    characters: int = 0  # of what is learnt
    words: int = 0
    language: str = ""  # of what is learnt, "" where it was not asked for or there are no letters
    carried: str = "{}"


def look(task: Task) -> None:
    """Write the sidecar of a file, or leave it where it is of this file already.

    A file of another format is one item that is dropped: of ten thousand shards some are broken.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a picture is dropped, and counted
    key = stamp(task)
    if is_current(task):
        return
    empty = asdict(Look(""))
    kinds = {str: pyarrow.string(), bool: pyarrow.bool_(), int: pyarrow.int64(), bytes: pyarrow.binary()}
    schema = pyarrow.schema([(name, kinds[type(value)]) for name, value in empty.items()], metadata={KEY: key})
    task.sidecar.parent.mkdir(parents=True, exist_ok=True)
    begun = task.sidecar.with_name(f"{task.sidecar.name}.{os.getpid()}")
    try:
        with parquet.ParquetWriter(begun, schema) as writer:
            rows: list[dict[str, Any]] = []
            if task.language:
                language_of("a")  # read once, not by each thread
            one_by_one = functools.partial(looked, language=task.language)
            for done in read_ahead(one_by_one, found_in(task.format, task.source)):
                rows.append(asdict(done.result()))
                if len(rows) == ROWS:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        begun.replace(task.sidecar)
    finally:
        begun.unlink(missing_ok=True)


def found_in(form: str, source: Source) -> Iterator[Found | Dropped]:
    """What the reader of a format finds in a file; one of another format is one that is dropped.

    Raises BadData where the fault lies behind items that were found, or in prepared data, none of which may be missing.
    """
    any_found = form == "prepared"
    try:
        for found in FORMATS[form].read(source):
            any_found = any_found or isinstance(found, Found)
            yield found
    except BadData as error:
        if any_found:
            raise
        _log.warning("%s", error)
        yield Dropped(source.file.name, UNREADABLE)


def is_current(task: Task) -> bool:
    """Whether the sidecar is there and of the file as it is."""
    import pyarrow.parquet as parquet

    return task.sidecar.exists() and (parquet.read_schema(task.sidecar).metadata or {}).get(KEY) == stamp(task)


def stamp(task: Task) -> bytes:
    """Which file was looked at, as it was then, and what lies beside an annotation file and may belong to it."""
    beside = sorted(task.file.parent.glob("*.json")) if task.file.suffix in (".json", ".p") else []
    files = [state(file) for file in dict.fromkeys([task.file, *beside])]
    return json.dumps([VERSION, task.format, str(task.root), task.language, files]).encode()


def state(file: Path) -> list[Any]:
    """A file, or folder, by which a change shows; of prepared data its shards."""
    if (file / MANIFEST).is_file():
        manifest = read_manifest(file)
        return [str(file), manifest["items"], content_of(manifest)]
    found = file.stat()
    return [str(file), found.st_size, found.st_mtime_ns]


def looked(found: Found | Dropped, language: bool = False) -> Look:
    """One item: its picture is decoded here, so that whatever is kept can be used."""
    if isinstance(found, Dropped):
        return Look(found.name, found.reason)
    item = found.item
    text = learnt(item)
    said = sha256(json.dumps([item.turns, item.text, item.system]).encode())
    told = Look(
        item.id,
        picture=item.image is not None,
        characters=len(text),
        words=words_in(text),
        language=language_of(text) if language else "",
        carried=json.dumps(facts(found.carried), sort_keys=True),
    )
    if item.image is None:
        told.whole = said.digest()[:8]
        return told
    told.reason = unusable(item.image)
    if told.reason:
        return told
    try:
        picture = load_image(item.image)
        known = seen(picture)
    except BadImage:
        told.reason = "picture is damaged"
        return told
    told.width, told.height = picture.size
    if PLACED.intersection(item.tasks) and not _is_annotated_shape(picture.size, found.carried):
        told.reason = "picture is not of the annotated shape"
        return told
    told.content = bytes.fromhex(known.content)[:8]
    said.update(bytes.fromhex(known.content))
    told.whole = said.digest()[:8]
    if known.look is not None:
        told.look = known.look - (1 << 64 if known.look >> 63 else 0)
    names = (item.image if isinstance(item.image, str) else "", str(found.carried.get("file_name", "")))
    told.number = next((n for name in names if (n := coco_number(os.path.basename(name))) is not None), -1)
    if told.number < 0 and isinstance(number := found.carried.get("coco_id"), int):  # as Visual Genome has it
        told.number = number
    return told


def _is_annotated_shape(size: tuple[int, int], carried: Mapping[str, Any]) -> bool:
    """Whether coordinates fit: a picture that its EXIF turns, or another copy, may have been annotated otherwise."""
    width, height = carried.get("width"), carried.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        return True
    return abs(width * size[1] - height * size[0]) <= SHAPE * max(width * size[1], height * size[0])


def unusable(image: str | bytes) -> str:
    """Why a picture is not even opened; "" where it may be."""
    if isinstance(image, str) and not os.path.isfile(image):
        return "picture is missing"
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as header:
            pixels = header.width * header.height
    except Image.DecompressionBombError:
        return "picture is too large"
    except Exception:  # what Pillow raises for files that are not pictures
        return "picture is damaged"
    return "picture is too large" if limit and pixels > limit else ""


def words_in(text: str) -> int:
    """Words, of scripts that leave no blanks between them (Han, kana, Thai, Lao, Khmer, Burmese) characters."""
    apart, count = UNSPACED.subn(" ", text)
    return count + len(apart.split())


def language_of(text: str) -> str:
    """The likeliest language of a text as py3langid knows it, such as "en"; "" of a text without letters."""
    import py3langid

    text = text[:HEARD]
    return str(py3langid.classify(text)[0]) if any(map(str.isalpha, text)) else ""


def learnt(item: Item) -> str:
    """All that an item teaches."""
    return item.text or "\n".join(answer for _, answer in item.turns)


def facts(carried: Mapping[str, Any]) -> dict[str, float | str]:
    """What a file says of an item that can be chosen by: numbers, and words such as a language, in small letters."""
    found: dict[str, float | str] = {}
    for name, value in carried.items():
        if isinstance(value, bool | int | float | str):
            with contextlib.suppress(ValueError, OverflowError):
                found[name] = float(value)
                continue
        if isinstance(value, str) and 0 < len(value) <= WORD:
            found[name] = value.lower()
    return found


def read_looks(sidecar: Path, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """Columns of a sidecar, some thousand rows at a time."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(sidecar) as file:
        for batch in file.iter_batches(1 << 16, columns=columns):
            yield {name: batch.column(name) for name in columns}
