"""Prepared data: a folder of sharded files with one manifest, that opens at once whatever its size.

items = open_prepared("data/laion")
items[12_345_678]                                # an Item, its picture as encoded bytes

A shard is an `array_record` file whose records are blocks of items, all of them of `block` items but the last.  The
manifest counts the shards' items, so that opening reads no shard and the index in memory has one number a shard and
one a block of each shard that is open.  Where tokens were counted (`tokens`, by tokenizer), each shard has its sum.
"""

from __future__ import annotations

import functools
import json
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source
from sphinx_jax.data.joined import Indexed
from sphinx_jax.paths import located

MANIFEST = "manifest.json"
WORK = ".work"  # beside it until it is complete
VERSION = 1
OPEN = 64  # shards that are open at once
KEPT = 64  # blocks that are in memory

_HEAD = struct.Struct("<I")


class Kept(NamedTuple):
    """An item of prepared data, and what the file it came from says of it."""

    item: Item
    carried: Mapping[str, Any]


def encode(items: Sequence[Kept]) -> bytes:
    """A block: the number of items, where each ends, and of each the length of its JSON, that, and its picture."""
    parts = [_encode(one) for one in items]
    ends = np.cumsum([len(part) for part in parts], dtype="<u8")
    return b"".join([_HEAD.pack(len(parts)), ends.tobytes(), *parts])


def _encode(kept: Kept) -> bytes:
    item = kept.item
    told: dict[str, Any] = {
        "turns": item.turns,
        "tasks": item.tasks,
        "kinds": item.kinds,
        "domain": item.domain,
        "id": item.id,
        "text": item.text,
        "system": item.system,
        "carried": kept.carried,
    }
    head = json.dumps({k: v for k, v in told.items() if v or v == 0}, ensure_ascii=False, sort_keys=True).encode()
    if isinstance(item.image, str):
        raise ValueError(f"item {item.id} has the path of a picture and not its bytes")
    return _HEAD.pack(len(head)) + head + (item.image or b"")


def decode(block: bytes, number: int) -> Kept:
    """Item `number` of a block."""
    (count,) = _HEAD.unpack_from(block)
    start = _HEAD.size + 8 * count
    ends = np.frombuffer(block, "<u8", count, _HEAD.size)
    begin, end = start + (int(ends[number - 1]) if number else 0), start + int(ends[number])
    (length,) = _HEAD.unpack_from(block, begin)
    told = json.loads(block[begin + _HEAD.size : begin + _HEAD.size + length])
    item = Item(
        image=block[begin + _HEAD.size + length : end] or None,
        turns=tuple((question, answer) for question, answer in told.get("turns", ())),
        tasks=tuple(told.get("tasks", ())),
        kinds=tuple(told.get("kinds", ())),
        domain=told.get("domain", ""),
        id=told.get("id", ""),
        text=told.get("text", ""),
        system=told.get("system"),
    )
    return Kept(item, told.get("carried", {}))


class Prepared(Indexed):
    """The items of a folder, in the order of its shards.  Threads may share it; a copy in another process opens its own
    files.

    Attributes:
      manifest: what `manifest.json` says: `items`, `dropped` (reason -> count), `domain`, `tasks`, `shards`, ….
      tasks: that occur, `text` for items without any.
      starts: number of the first item of each shard, and at the end of all.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder)
        shards = self.manifest["shards"]
        self.block = int(self.manifest["block"])
        self.tasks = frozenset(self.manifest["tasks"]) if "tasks" in self.manifest else None
        self.starts = np.concatenate([[0], np.cumsum([shard["items"] for shard in shards], dtype=np.int64)])
        self.edges = np.unique(self.starts)  # of shards that have items
        self._lock = threading.Lock()
        self._shard = functools.lru_cache(OPEN)(self._opened)
        self._block = functools.lru_cache(KEPT)(self._read)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def content(self) -> str:
        """Of which data it is."""
        return content_of(self.manifest)

    def item(self, index: int) -> Item:
        return self.kept(index).item

    def __iter__(self) -> Iterator[Item]:
        return (self.kept(i).item for i in range(len(self)))

    def kept(self, index: int) -> Kept:
        """An item and what its file says of it.

        Raises:
          IndexError: there is no such item.
          BadData: its shard is not as the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.folder}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        block, place = divmod(index - int(self.starts[shard]), self.block)
        return decode(self._block(shard, block), place)

    def _opened(self, shard: int) -> Any:
        return _reader(self.folder, self.manifest["shards"][shard])

    def _read(self, shard: int, block: int) -> bytes:
        with self._lock:  # a reader moves in its file
            return _block(self._shard(shard), self.folder, self.manifest["shards"][shard], block)

    def shard_files(self) -> Sequence[Path]:
        """The files of the shards.  Raises BadData where one was lost or cut since it was written."""
        return [_whole(self.folder, shard) for shard in self.manifest["shards"]]

    def __reduce__(self):
        return Prepared, (self.folder,)


def _reader(folder: Path, shard: Mapping[str, Any]) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(_whole(folder, shard)))


def _block(reader: Any, folder: Path, shard: Mapping[str, Any], number: int) -> bytes:
    try:
        return reader.read([number])[0]
    except RuntimeError as error:  # a sum of the file's does not fit
        reason = str(error).splitlines()[0][:120]
        raise BadData(
            f"{folder / shard['name']} is damaged at block {number}: {reason}; copy it anew, or prepare the data again"
        ) from None


def _whole(folder: Path, shard: Mapping[str, Any]) -> Path:
    """The file of a shard.  Raises BadData: of a file that is cut off the library reads nothing, without a word."""
    file = folder / shard["name"]
    size = file.stat().st_size if file.is_file() else None
    if size != shard["bytes"]:
        found = "is not there" if size is None else f"has {size} bytes"
        raise BadData(
            f"{file} {found}, {MANIFEST} says {shard['bytes']} bytes; copy it anew, or delete the folder and prepare "
            "it again"
        )
    return file


def read_shard(folder: Path, shard: Mapping[str, Any], block: int) -> Iterator[Kept]:
    """The items of a shard in their order, by what the manifest says of it.  Raises BadData."""
    reader = _reader(folder, shard)
    for number, begin in enumerate(range(0, shard["items"], block)):
        content = _block(reader, folder, shard, number)
        yield from (decode(content, i) for i in range(min(block, shard["items"] - begin)))


def content_of(manifest: Mapping[str, Any]) -> str:
    """By which a change of the shards shows, in 64 letters."""
    shards = [[shard.get(key) for key in ("name", "items", "sha256")] for shard in manifest["shards"]]
    return sha256(json.dumps(shards).encode()).hexdigest()


def lengths_file(folder: Path, shard: str, tokenizer: str) -> Path:
    """Where the tokens of a shard's items are recorded: (items,) uint32, little-endian, by the tokenizer's digest."""
    return folder / f"{shard.removesuffix('.array_record')}.{tokenizer}.lengths"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises BadData where there is none that can be used."""
    file = folder / MANIFEST
    if not file.is_file():
        begun = (folder / WORK).is_dir()
        why = "was not prepared to its end; the same command goes on" if begun else f"has no {MANIFEST}"
        raise BadData(f"{folder} {why}: tools/prepare_data.py writes such folders")
    try:
        manifest = json.loads(file.read_text())
        version, shards = manifest["version"], [(shard["name"], shard["items"]) for shard in manifest["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file} is damaged: {error}") from None
    if version != VERSION:
        raise BadData(f"{file} is of version {version}, this program reads {VERSION}")
    if sum(items for _, items in shards) != manifest["items"]:
        raise BadData(f"{file} does not fit its shards: it counts {manifest['items']} items")
    return manifest


def open_prepared(folder: str | Path) -> Prepared:
    """The items that `tools/prepare_data.py` wrote to a folder, as a sequence with random access.

    Raises:
      BadData: no such folder, or one that is not complete; in one line.
    """
    return Prepared(located(folder))


def _read(source: Source) -> Iterator[Found | Dropped]:
    """Prepared data, or a shard of it, as what other data is prepared from: to choose anew, or to be captioned."""
    for file in _shards(source.file):
        manifest = file.parent / MANIFEST
        block, shards = _known(file.parent, manifest.stat().st_mtime_ns if manifest.is_file() else 0)
        if file.name not in shards:
            raise BadData(f"{file} is no shard that {MANIFEST} beside it names")
        yield from (Found(*kept) for kept in read_shard(file.parent, shards[file.name], block))


def _shards(file: Path) -> Sequence[Path]:
    """The shards of a folder; a shard itself.  Raises BadData where one is not as the manifest says."""
    if not file.is_dir():
        return (file,)
    return Prepared(file).shard_files()


@functools.lru_cache(1)
def _known(folder: Path, changed: int) -> tuple[int, dict[str, dict[str, Any]]]:
    """The items of a block, and what the manifest says of each shard; read once for all of them."""
    manifest = read_manifest(folder)
    return manifest["block"], {shard["name"]: shard for shard in manifest["shards"]}


PREPARED = Format("what was prepared before", "its folder", _read, _shards)
