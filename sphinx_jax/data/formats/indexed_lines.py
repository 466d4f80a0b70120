"""Large lists in lines: a sequence that holds where each line begins, and parses an item when it is asked for.

The first opening parses every line once.  It could note where lines begin alone, some ten times quicker; but which
lines can be used, and so the length and every number, is known of parsed ones only, as `read_items` has it, and what
choosing by domain, task or picture asks of every item is then known too.  What is found is kept beside the list, where
it can be written, and else among what a machine can make again; it is made anew when the list changes.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sphinx_jax.data.conversation import (
    Item,
    Items,
    parse_item,
    parse_json,
    read_items,
    tell,
    why_left_out,
    with_picture,
)
from sphinx_jax.data.formats.files import open_binary
from sphinx_jax.data.joined import Indexed
from sphinx_jax.data.messages import BadItem, Remarks
from sphinx_jax.disk import DiskFull, told_when_full
from sphinx_jax.distributed import one_first
from sphinx_jax.paths import CACHE, located, shortened
from sphinx_jax.progress import progress

LARGE = 64 << 20  # bytes of a list that is not read whole
VERSION = 1  # goes up with the form of an index, and whenever other lines than before can be used
LINE = np.dtype([("begin", "<u8"), ("length", "<u8"), ("kind", "<u4"), ("", "<u4")])
SKIPPED = 2**32 - 1  # in place of a kind
LINES = 4096  # that are written at once
ENDS = 1 << 16  # bytes at both ends of a list, by which a change shows
STALE = 3600  # seconds after which nobody writes to a draft any more
PICTURE, TEXT = "picture", "text"  # of the examples of kinds

_BOM = b"\xef\xbb\xbf"
_MARK = b"sphinx_jax lines"


def open_list(path: str | PathLike[str], root: str | PathLike[str] | None = None) -> Items | Lines:
    """A list of conversations: read whole, or where it is large and in lines, a sequence that reads each when asked.

    Args and errors are those of `read_items`.  All processes of a run have to ask for it: the first makes the index.
    """
    path = located(path)
    if not _is_large(path):
        return read_items(path, root)
    with one_first(f"lines of {path.name}"):
        lines = Lines(path, root)
    tell(shortened(path), len(lines), lines.skipped, lines.remarks)
    return lines


def _is_large(path: Path) -> bool:
    """Of a list here; one in an object store cannot be read in places."""
    try:
        return isinstance(path, Path) and path.suffix.lower() == ".jsonl" and path.stat().st_size > LARGE
    except (OSError, ValueError):  # reading says what is wrong
        return False


class Lines(Indexed):
    """The usable conversations of a `.jsonl` file, as `read_items` finds them; in memory is none of them.

    Threads may share it; a copy in another process opens the files itself.

    Attributes:
      kinds: an item of each kind, of which only that is true which all of its kind have in common: whether there is a
        picture, whether it is a text, the domain, the names of tasks; and the kind of each item, (N,) uint32.
      skipped: a line about each item that cannot be used, made when it is asked for.
      remarks: what was noticed in items that are used.

    Raises:
      ValueError: not JSON, not UTF-8, a list that changes; BadItem: nothing usable in it; in one line.
    """

    def __init__(self, path: Path, root: str | PathLike[str] | None = None, known: Mapping[str, Any] | None = None):
        self.path, self.root, self._name = path, root, shortened(path)
        self._file = open_binary(path)
        self.key = _key(self._file)
        if known is not None and known != self.key:
            raise self._changed()
        self._index = _found(path, self.key) or _made(path, self._file, self.key)
        self.remarks = self._index.remarks
        self.skipped = Skipped(self)

    def __len__(self) -> int:
        return len(self._index.lines) - len(self._index.skipped)

    def item(self, index: int) -> Item:
        # so many of those that are left out stand before it
        before = int(np.searchsorted(self._index.skipped, index, side="right"))
        item = parse_item(self.raw(index + before))
        return with_picture(item, self.path.parent, self.root, os.path.lexists)

    @property
    def content(self) -> str:
        """Of which list it is."""
        return json.dumps(self.key)

    @property
    def kinds(self) -> tuple[Sequence[Item], np.ndarray]:
        kinds = self._index.lines["kind"]
        return self._index.kinds, kinds[kinds != SKIPPED] if len(self.skipped) else kinds

    def raw(self, number: int) -> Any:
        """What a line says, of all but the blank ones."""
        line = self._index.lines[number]
        now = os.fstat(self._file.fileno())
        if [now.st_size, now.st_mtime_ns] != [self.key["bytes"], self.key["changed"]]:
            raise self._changed()
        return parse_json(os.pread(self._file.fileno(), int(line["length"]), int(line["begin"])).decode(), self._name)

    def _changed(self) -> ValueError:
        return ValueError(f"{self._name} has changed since it was opened; start again")

    def __reduce__(self) -> tuple[Any, ...]:
        return Lines, (self.path, self.root, self.key)


class Skipped(Sequence[str]):
    """Why each item that is left out cannot be used."""

    def __init__(self, lines: Lines):
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines._index.skipped)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        number = int(self._lines._index.skipped[index]) + index % len(self)
        try:
            parse_item(self._lines.raw(number))
        except BadItem as error:
            return why_left_out(self._lines._name, number, error)
        raise self._lines._changed()


@dataclass(frozen=True)
class _Index:
    """What is known of a list.

    Attributes:
      lines: (all that are not blank,) `LINE`, mapped into memory.
      skipped: (lines that cannot be used,) int64, mapped: how many that can be used stand before each.
    """

    lines: np.ndarray
    skipped: np.ndarray
    kinds: Sequence[Item]
    remarks: Sequence[str]


def _key(file: BinaryIO) -> dict[str, Any]:
    """By which a change of a list shows."""
    now = os.fstat(file.fileno())
    ends = [os.pread(file.fileno(), ENDS, begin) for begin in (0, max(now.st_size - ENDS, 0))]
    content = sha256(b"".join(ends)).hexdigest()
    return {"version": VERSION, "bytes": now.st_size, "changed": now.st_mtime_ns, "ends": content}


def places(path: Path) -> tuple[Path, Path]:
    """Where the index of a list may lie."""
    kept = CACHE / "lines" / f"{sha256(os.fsencode(path.absolute())).hexdigest()[:16]}.index"
    return path.with_name(f"{path.name}.sphinx_jax.index"), kept


def _found(path: Path, key: Mapping[str, Any]) -> _Index | None:
    return next((index for place in places(path) if (index := _read(place, key))), None)


def _read(place: Path, key: Mapping[str, Any]) -> _Index | None:
    """The index in a file; None where there is none, or one of another list, or of this as it was."""
    try:
        with place.open("rb") as file:
            size = file.seek(-8 - len(_MARK), os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            if file.read() != _MARK:
                return None
            file.seek(size - length)
            told = json.loads(file.read(length))
        if told["key"] != key:
            return None
        lines, skipped = told["lines"], told["skipped"]
        end = lines * LINE.itemsize
        if end + 8 * skipped + length != size:
            return None
        mapped = np.asarray(np.memmap(place, np.uint8, "r"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    kinds = [_example(*kind) for kind in told["kinds"]]
    return _Index(mapped[:end].view(LINE), mapped[end : end + 8 * skipped].view("<i8"), kinds, told["remarks"])


def _example(picture: bool, text: bool, domain: str, tasks: Sequence[str]) -> Item:
    return Item(PICTURE if picture else None, (), tuple(tasks), domain=domain, text=TEXT if text else "")


def _made(path: Path, file: BinaryIO, key: Mapping[str, Any]) -> _Index:
    """Makes the index of a list and keeps it in the first place that can be written and has room."""
    full: DiskFull | None = None
    for place in places(path):
        try:
            with told_when_full(place.parent):
                with _draft(place) as draft:
                    if draft is None:
                        continue
                    _write(draft, path, file, key)
                if index := _read(place, key):
                    return index
        except DiskFull as error:
            full = error
    if full is not None:
        raise full
    raise ValueError(f"{shortened(path)}: its index can be written neither beside it nor to {places(path)[1].parent}")


@contextlib.contextmanager
def _draft(place: Path) -> Iterator[BinaryIO | None]:
    """What becomes the file `place` when it is whole, in whose place another process may put its own; None where
    nothing can be written there."""
    for old in place.parent.glob(f"{glob.escape(place.name)}.*.draft"):  # of processes that were killed
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink()
    name = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.draft")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = name.open("xb")
    except OSError:
        yield None
        return
    try:
        with file:
            yield file
        name.replace(place)
    finally:
        name.unlink(missing_ok=True)


def _write(draft: BinaryIO, path: Path, file: BinaryIO, key: Mapping[str, Any]) -> None:
    kinds: dict[tuple[Any, ...], int] = {}
    skipped, remarks = list[int](), Remarks()
    first, count, rows = "", 0, []
    name = shortened(path)
    for line, begin, length, text in _lines(path, file, name):
        raw = parse_json(text, name, line)
        try:
            item = parse_item(raw, remarks)
            tasks = tuple(sorted(set(item.tasks)))
            kind = kinds.setdefault((item.image is not None, bool(item.text), item.domain, tasks), len(kinds))
        except BadItem as error:
            first = first or why_left_out(name, count, error)
            skipped.append(count - len(skipped))
            kind = SKIPPED
        rows.append((begin, length, kind, 0))
        count += 1
        if len(rows) == LINES:
            draft.write(np.array(rows, LINE).tobytes())
            rows.clear()
    if count == len(skipped):
        raise BadItem(first or f"{name} has no items")
    if _key(file) != key:
        raise ValueError(f"{name} has changed while it was read; start again")
    draft.write(np.array(rows, LINE).tobytes())
    draft.write(np.array(skipped, "<i8").tobytes())
    told = {"key": key, "lines": count, "skipped": len(skipped), "kinds": list(kinds), "remarks": [*remarks.lines()]}
    end = json.dumps(told).encode()
    draft.write(end + len(end).to_bytes(8, "little") + _MARK)


def _lines(path: Path, file: BinaryIO, name: str) -> Iterator[tuple[int, int, int, str]]:
    """The lines that are not blank, by the breaks of a text file: (number from 1, first byte, bytes, what it says)."""
    file.seek(0)
    begin = number = 0
    size = os.fstat(file.fileno()).st_size
    with progress(total=size, desc=f"index of {path.name}", unit="B", unit_scale=True) as bar:
        for until_feed in file:
            for line in until_feed.splitlines(keepends=True):  # of bytes: at \r too, and at nothing else
                number += 1
                skip = len(_BOM) if begin == 0 and line.startswith(_BOM) else 0
                said = line[skip:].rstrip(b"\r\n")
                try:
                    text = said.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(f"{name} cannot be read: line {number} is not UTF-8 ({error.reason})") from None
                if text.strip():
                    yield number, begin + skip, len(said), text
                begin += len(line)
            bar.update(len(until_feed))
