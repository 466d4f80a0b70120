"""The third step: items that were chosen are copied into shards, each file into shards of its own."""

from __future__ import annotations

import base64
import collections
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats import prepared
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped
from sphinx_jax.data.image import BadImage, load_image
from sphinx_jax.data.prepare.choose import KEPT
from sphinx_jax.data.prepare.look import Task, found_in, is_current, learnt, stamp
from sphinx_jax.paths import write_whole

BLOCK = 16  # items of a record
SHARD = 8192  # items of a shard at most
SAMPLES = 6  # of each reason and file, for a person to look at
SIDE = 160  # pixels of a sample
OPTIONS = "group_size:1,zstd:3"  # of array_record: each block on its own


@dataclass(frozen=True)
class Copy:
    """A file to be copied.

    Attributes:
      codes: file of (items,) uint8, 0 where an item is kept, else the place of its reason.
      done: the file that says it is done, and what was written.
    """

    task: Task
    number: int
    codes: Path
    reasons: Sequence[str]
    domain: str
    folder: Path
    done: Path


def copy(work: Copy) -> None:
    """Write the shards of a file, or leave them where they are those of this choice already.

    Raises:
      BadData: the file has changed since it was looked at.
    """
    codes = np.load(work.codes)
    key = sha256(stamp(work.task) + codes.tobytes() + repr((*work.reasons, work.domain)).encode()).hexdigest()
    if work.done.exists():
        known = json.loads(work.done.read_text())
        if known["key"] == key and all(_is_whole(work.folder, shard) for shard in known["shards"]):
            return
    samples = Samples()
    written = write_shards(work.folder, work.number, _kept(work, codes, samples))
    if not is_current(work.task):
        raise _changed(work.task, str(work.task.file))
    told = {"key": key, "shards": written, "samples": samples.found}
    write_whole(work.done, json.dumps(told).encode())


def write_shards(folder: Path, number: int, kept: Iterator[prepared.Kept]) -> list[dict[str, Any]]:
    """Write the shards of file `number`; returns what the manifest says of each."""
    written = []
    for place in itertools.count():
        first = next(kept, None)
        if first is None:
            return written
        name = f"part-{number:05d}-{place:03d}.array_record"
        some = itertools.chain([first], itertools.islice(kept, SHARD - 1))
        written.append(_write(folder / name, some))


def _is_whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    file = folder / shard["name"]
    return file.is_file() and file.stat().st_size == shard["bytes"]


def _kept(work: Copy, codes: np.ndarray, samples: Samples) -> Iterator[prepared.Kept]:
    """The items that are kept, with the bytes of their pictures; of the others some are shown."""
    count = 0
    for found in found_in(work.task.format, work.task.source):
        count += 1
        if count > len(codes):
            break
        code = int(codes[count - 1])
        if isinstance(found, Dropped):
            if code == KEPT:
                raise _changed(work.task, f"{found.name} ({found.reason})")
            samples.add(work.reasons[code], found.name)
            continue
        item = found.item
        samples.add(work.reasons[code], item.id, item)
        if code != KEPT:
            continue
        if isinstance(item.image, str):
            try:
                item = replace(item, image=Path(item.image).read_bytes())
            except FileNotFoundError:
                raise _changed(work.task, item.image) from None
        yield prepared.Kept(replace(item, domain=work.domain or item.domain), found.carried)
    if count != len(codes):
        raise _changed(work.task, str(work.task.file))


def _changed(task: Task, what: str) -> BadData:
    """The error, after which the same command looks anew."""
    task.sidecar.unlink(missing_ok=True)
    return BadData(f"{what} has changed since it was looked at; run the same command again")


def _write(file: Path, items: Iterator[prepared.Kept]) -> dict[str, Any]:
    """A shard, which appears when it is whole; returns what the manifest says of it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    begun = file.parent / prepared.WORK / f"{file.name}.{os.getpid()}"  # which goes when the folder is complete
    begun.parent.mkdir(exist_ok=True)
    count, pictures, characters = 0, 0, 0
    tasks, domains = collections.Counter[str](), collections.Counter[str]()
    try:
        writer = ArrayRecordWriter(str(begun), OPTIONS)
        while block := list(itertools.islice(items, BLOCK)):
            writer.write(prepared.encode(block))
            count += len(block)
            for one in block:
                tasks.update(one.item.tasks or ("text",))
                domains[one.item.domain] += 1
                pictures += one.item.image is not None
                characters += len(learnt(one.item))
        writer.close()
        with begun.open("rb") as written:
            content = file_digest(written, "sha256").hexdigest()
        size = begun.stat().st_size
        begun.replace(file)
    finally:
        begun.unlink(missing_ok=True)
    return {
        "name": file.name,
        "items": count,
        "bytes": size,
        "sha256": content,
        "characters": characters,
        "pictures": pictures,
        "domains": dict(sorted(domains.items())),
        "tasks": dict(sorted(tasks.items())),
    }


class Samples:
    """Some items of each reason, small enough for a page."""

    def __init__(self) -> None:
        self.found: dict[str, list[dict[str, str]]] = {}

    def add(self, reason: str, name: str, item: Item | None = None) -> None:
        """`item`: None where none could be made of what has this name."""
        own = self.found.setdefault(reason, [])
        if len(own) >= SAMPLES:
            return
        if item is None:
            own.append({"name": name, "picture": "", "text": ""})
            return
        picture = ""
        if isinstance(item.image, str):
            name = f"{name}: {item.image}" if name else item.image
        if item.image is not None:
            try:
                small = load_image(item.image)
                small.thumbnail((SIDE, SIDE))
                stream = io.BytesIO()
                small.save(stream, "JPEG", quality=80)
                picture = base64.b64encode(stream.getvalue()).decode()
            except BadImage:
                picture = ""
        text = item.text or next((f"{question} {answer}" for question, answer in item.turns), "")
        own.append({"name": name, "picture": picture, "text": text[:200]})
