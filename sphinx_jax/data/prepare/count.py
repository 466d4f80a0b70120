"""A last step, where a tokenizer is given: how many tokens the items of each shard have, for rows that are packed.

The lengths lie in a file beside each shard, the manifest has their sums.  Those of another tokenizer may be added to
data that was prepared long ago: nothing but the shards is read.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.data.formats.prepared import MANIFEST, WORK, lengths_file, read_manifest, read_shard
from sphinx_jax.data.lengths import digest_of, encode_whole
from sphinx_jax.data.messages import BadItem
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.paths import write_whole

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Count:
    """A shard whose items are to be counted.

    Attributes:
      shard: what the manifest says of it.
      tokenizer: where its files are, and the digest of them.
    """

    folder: Path
    shard: dict[str, Any]
    block: int
    tokenizer: tuple[Path, str]

    @property
    def file(self) -> Path:
        return lengths_file(self.folder, self.shard["name"], self.tokenizer[1])

    @property
    def is_done(self) -> bool:
        return self.file.is_file() and self.file.stat().st_size == 4 * self.shard["items"]


def count(work: Count) -> None:
    """Write the lengths of a shard, or leave them where they are."""
    if work.is_done:
        return
    rows, lengths = _rows(*work.tokenizer), np.zeros(work.shard["items"], "<u4")
    for i, kept in enumerate(read_shard(work.folder, work.shard, work.block)):
        try:
            lengths[i] = len(encode_whole(kept.item, rows))
        except BadItem as error:
            _log.warning("%s, item %d: packed rows leave it out: %s", work.shard["name"], i, error)
    begun = work.folder / WORK / f"{work.file.name}.{os.getpid()}"
    begun.parent.mkdir(exist_ok=True)
    begun.write_bytes(lengths.tobytes())
    begun.replace(work.file)


def count_all(
    folder: Path, tokenizer: Path, each: Callable[[Callable[[Count], Any], Sequence[Count], str], None]
) -> None:
    """Count what is not counted yet, and say so in the manifest.

    Raises:
      BadData: a shard that is not as the manifest says; BadTokenizer.
    """
    digest = digest_of(load_tokenizer(tokenizer))
    manifest = read_manifest(folder)
    counts = [Count(folder, shard, manifest["block"], (tokenizer, digest)) for shard in manifest["shards"]]
    known = manifest.get("tokens", {})
    if digest in known and all(one.is_done for one in counts):
        return
    if to_do := [one for one in counts if not one.is_done]:
        each(count, to_do, "counting tokens")
    total = 0
    for one in counts:
        own = int(np.frombuffer(one.file.read_bytes(), "<u4").sum(dtype=np.int64))
        one.shard["tokens"] = dict(sorted({**one.shard.get("tokens", {}), digest: own}.items()))
        total += own
    manifest["tokens"] = dict(sorted({**known, digest: total}.items()))
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    shutil.rmtree(folder / WORK, ignore_errors=True)


@functools.lru_cache(1)
def _rows(tokenizer: Path, digest: str) -> Rows:
    """One a process.  `digest`: files that are others now are read anew."""
    return Rows(Source("", ()), load_tokenizer(tokenizer), Shape(1, packed=True))
