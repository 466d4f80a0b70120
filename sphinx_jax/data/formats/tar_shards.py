"""Pictures with captions in tar shards, as img2dataset and webdataset write them.

A sample is the members that stand together under one key, which ends at the first dot of the file's name:
`000000012.jpg` (or png, webp), `000000012.txt`, `000000012.json` with url, caption, key, status, width, height,
original_width, original_height, and the columns that the downloader was told to keep: for LAION-COCO similarity, hash,
punsafe, pwatermark, top_caption, all_captions, all_similarities; for COYO clip_similarity_vitb32,
clip_similarity_vitl14, nsfw scores, watermark_score, aesthetic_score_laion_v2; for DataComp uid, whose scores lie in
metadata apart. All of it was read in img2dataset's writer and examples, and in DataComp's downloader.

An item has `text`, not a turn: this is what stage 1 of SPHINX trains on, and what the conversation form keeps for it is
the picture and what was found beside it, learnt whole. The domain is that of the paper's two pre-trainings, `real` for
what people wrote, `synthetic` for LAION-COCO, so that the weights of the two can be mixed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.files import BadData, open_binary
from sphinx_jax.data.formats.found import Dropped, Format, Found, Reader, Source
from sphinx_jax.data.formats.tables import DAMAGED, carried, text_of
from sphinx_jax.data.tasks import DOMAINS

PICTURES = ("jpg", "jpeg", "png", "webp")
FIELDS = (*PICTURES, "txt", "json")
CAPTIONS = ("caption", "text", "TEXT")
REAL, SYNTHETIC = DOMAINS

CUT_OFF = "tar is cut off"
TAR_DAMAGED = "tar is damaged"
GOES_ON = "tar goes on after its end"  # as two that were joined by cat do


class _Member(NamedTuple):
    key: str
    field: str
    content: bytes
    fault: str


@dataclass
class _Sample:
    key: str
    fields: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""

    def add(self, member: _Member) -> None:
        self.fault = self.fault or member.fault or ("member is there twice" if member.field in self.fields else "")
        self.fields[member.field] = member.content

    @property
    def picture(self) -> bytes | None:
        return next((self.fields[kind] for kind in PICTURES if self.fields.get(kind)), None)

    @property
    def is_whole(self) -> bool:
        return not self.fault and self.picture is not None and {"txt", "json"} <= self.fields.keys()


def _reader(caption_of: Callable[[_Sample, Mapping[str, Any]], str], domain: str, left_out: tuple[str, ...]) -> Reader:
    def found(name: str, sample: _Sample) -> Found | Dropped:
        if sample.fault:
            return Dropped(name, sample.fault)
        try:
            about = json.loads(sample.fields.get("json", b"{}"))
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            return Dropped(name, DAMAGED)
        if sample.picture is None:
            return Dropped(name, "picture is missing")
        try:
            caption = caption_of(sample, about)
        except UnicodeDecodeError:
            return Dropped(name, "caption is not UTF-8")
        if not caption:
            return Dropped(name, "caption is missing")
        item = Item(sample.picture, (), text=caption, domain=domain, id=text_of(about.get("uid")) or sample.key)
        return Found(item, carried(about, left_out))

    def read(source: Source) -> Iterator[Found | Dropped]:
        for sample in _samples(source.file):
            yield sample if isinstance(sample, Dropped) else found(f"{source.file.name}/{sample.key}", sample)

    return read


def _found_beside(sample: _Sample, about: Mapping[str, Any]) -> str:
    written = text_of(sample.fields.get("txt", b"").decode("utf-8-sig"))
    return written or next(filter(None, (text_of(about.get(name)) for name in CAPTIONS)), "")


def _top_caption(sample: _Sample, about: Mapping[str, Any]) -> str:
    return text_of(about.get("top_caption"))


def _samples(path: Path) -> Iterator[_Sample | Dropped]:
    sample = None
    for member in _members(path):
        if isinstance(member, Dropped):
            # of the last one before a break nobody knows what else belongs to it, unless nothing can
            if sample and (sample.is_whole or member.reason == GOES_ON):
                yield sample
            yield member
            return
        if sample is None or sample.key != member.key:
            if sample:
                yield sample
            sample = _Sample(member.key)
        sample.add(member)
    if sample:
        yield sample


def _members(path: Path) -> Iterator[_Member | Dropped]:
    """The members that matter; where the tar does not end as it should, one Dropped is the last."""
    with open_binary(path) as file:
        head = file.read(tarfile.BLOCKSIZE)
        if len(head) < tarfile.BLOCKSIZE:
            yield Dropped(path.name, CUT_OFF)
            return
        _check_header(path, head)
        file.seek(0)
        try:
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="backslashreplace")
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep those of the whole shard
                if tar.offset <= member.offset:  # a negative size, which would be read for ever
                    raise ValueError(member.size)
                if found := _member(tar, member):
                    yield found
        except tarfile.TarError:
            yield Dropped(path.name, CUT_OFF)
        except (ValueError, OverflowError):
            yield Dropped(path.name, TAR_DAMAGED)
        else:
            # tarfile takes a missing end for an end
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE:
                yield Dropped(path.name, CUT_OFF)
            elif any(end):
                yield Dropped(path.name, TAR_DAMAGED)
            elif any(any(part) for part in iter(lambda: file.read(1 << 16), b"")):
                yield Dropped(path.name, GOES_ON)


def _check_header(path: Path, head: bytes) -> None:
    try:
        if any(head):
            tarfile.TarInfo.frombuf(head, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        raise BadData(f"{path} is no tar: expected an uncompressed shard of img2dataset, such as 00000.tar") from None


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Member | None:
    folder, slash, file = member.name.removeprefix("./").rpartition("/")
    stem, _, kind = file.partition(".")
    key, kind = folder + slash + stem, kind.lower()
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return _Member(key, kind, b"", "name leads out of the shard")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return _Member(key, kind, b"", "member is no file")
    if not stem or not kind:
        return None
    content = tar.extractfile(member) if kind in FIELDS else None
    return _Member(key, kind, content.read() if content else b"", "")


LAION = Format(
    "LAION-400M, COYO, DataComp, CC3M, CC12M, and what else img2dataset fetched",
    "00000.tar, captions in its .txt",
    _reader(_found_beside, REAL, CAPTIONS),
)
LAION_COCO = Format(
    "LAION-COCO",
    "00000.tar, captions as top_caption in its .json",
    # the .txt is what stood beside the picture in the web
    _reader(_top_caption, SYNTHETIC, ("top_caption",)),
)
