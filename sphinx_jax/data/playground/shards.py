"""The playground's pictures and texts as the web's are kept: what stage 1 is prepared from, for a path to try.

write(items, texts, Path("web"))    # web/real/00000.tar, web/synthetic/00000.tar, web/texts/0000.parquet
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sphinx_jax.data.conversation import Item

SHARD = 1000  # pairs of a tar
SHORT, WHOLE = "short_caption", "detailed_caption"  # beside real pictures; what a model says of synthetic ones


def write(items: Iterable[Item], texts: Iterable[str], folder: Path) -> dict[str, int]:
    """Write pairs of each domain as img2dataset does, real ones as LAION-400M has them and synthetic ones as
    LAION-COCO, whose captions stand in the JSON and not in the text; and documents as RefinedWeb does.

    Returns how many of each there are.
    """
    counts = {}
    by_domain: dict[str, list[Item]] = {}
    for item in items:
        by_domain.setdefault(item.domain, []).append(item)
    for domain, own in by_domain.items():
        pairs = list(_pairs(domain, own))
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for number, begin in enumerate(range(0, len(pairs), SHARD)):
            _tar(folder / domain / f"{number:05d}.tar", pairs[begin : begin + SHARD])
        counts[domain] = len(pairs)
    counts["texts"] = _documents(folder / "texts", list(texts))
    return counts


def _pairs(domain: str, items: Iterable[Item]) -> Iterator[Mapping[str, bytes]]:
    for number, item in enumerate(items):
        answers = {task: answer for task, (_, answer) in zip(item.tasks, item.turns, strict=True)}
        caption = answers.get(WHOLE if domain != "real" else SHORT) or answers.get(SHORT)
        if caption is None or not isinstance(item.image, bytes):
            continue
        key = f"{number // SHARD:05d}{number % SHARD:04d}"
        told = {"key": key, "caption": caption, "status": "success", "url": f"https://playground/{item.id}"}
        beside = caption
        if domain != "real":  # what stood beside the picture tells little
            beside = item.id
            told |= {"caption": beside, "top_caption": caption, "all_captions": [caption]}
        ending = "png" if item.image.startswith(b"\x89PNG") else "jpg"
        yield {
            f"{key}.{ending}": item.image,
            f"{key}.txt": beside.encode(),
            f"{key}.json": json.dumps(told).encode(),
        }


def _tar(file: Path, pairs: Iterable[Mapping[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for pair in pairs:
            for name, content in pair.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _documents(folder: Path, texts: list[str]) -> int:
    import pyarrow
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"content": texts}), folder / "0000.parquet", row_group_size=1000)
    return len(texts)
