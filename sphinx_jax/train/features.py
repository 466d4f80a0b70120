"""A cache of what the frozen encoders say about each picture of a data set.

The encoders never change within a recipe, so a data set that is seen many times needs them once.  It is a switch of the
training stage: without it pixels go through the encoders at every step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sphinx_jax.config import ModelConfig, need, to_dict
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.image import BadImage, load_image, padded_resize
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.disk import told_when_full
from sphinx_jax.model.blueprint import FROZEN, Leaves, make_encode, matches
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.paths import write_whole
from sphinx_jax.progress import compiling, progress

_log = logging.getLogger(__name__)
BAD, CHOSEN = "bad.json", "chosen.json"


class FeatureCache:
    """Features by item number, float16, memory-mapped: {"overview": (1, 1 + P, C), "crops": …, "queries": …}.

    It may hold those of some items alone.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # opened here, not by the threads that read: CPython 3.11's parser, which reads the header, is not thread-safe
        files = {name: folder / f"{name}.npy" for name in Features._fields}
        self.arrays = {name: np.load(file, mmap_mode="r") for name, file in files.items() if file.exists()}
        self.bad: dict[int, str] = {int(i): why for i, why in json.loads((folder / BAD).read_text()).items()}
        chosen = folder / CHOSEN
        self._rows = {n: row for row, n in enumerate(json.loads(chosen.read_text()))} if chosen.exists() else None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Raises BadImage where the picture could not be read."""
        if index in self.bad:
            raise BadImage(self.bad[index])
        return self.blank(index)

    def blank(self, index: int) -> dict[str, np.ndarray]:
        """What is stored, be it of a picture or of black in the place of a bad one."""
        row = index if self._rows is None else self._rows[index]
        return {name: np.asarray(array[row]) for name, array in self.arrays.items()}

    def __reduce__(self):
        return FeatureCache, (self.folder,)  # a worker process opens its own


def fingerprint(leaves: Leaves, config: ModelConfig) -> str:
    """Identifies the frozen encoders: features of other ones are not reused."""
    digest = hashlib.sha256(json.dumps(to_dict(config) | {"decoder": None, "name": None}, sort_keys=True).encode())
    for path in sorted(leaves):
        if matches(path, FROZEN):
            digest.update(np.ascontiguousarray(leaves[path]).tobytes())
    return digest.hexdigest()[:16]


def pictures_hash(items: Sequence[Item]) -> str:
    """Identifies the pictures of a data set: embedded ones by their bytes, files by path, size and time of change."""
    digest = hashlib.sha256()
    for item in items:
        image = item.image
        if isinstance(image, str | Path):
            stat = os.stat(image) if os.path.exists(image) else None
            image = json.dumps([str(image), stat and [stat.st_size, stat.st_mtime_ns]]).encode()
        digest.update(hashlib.sha256(image or b"").digest())
    return digest.hexdigest()[:16]


def cache_features(
    folder: Path,
    items: Sequence[Item],
    leaves: Leaves,
    config: ModelConfig,
    description: str,
    batch: int = 64,
    only: Sequence[int] | None = None,
) -> FeatureCache:
    """Features of the pictures of `items`, read from `folder` when they are those of these encoders.

    A picture that cannot be read is noted: the stream skips and names its item.

    Args:
      only: the numbers of the items that are asked for; None, all.

    Raises:
      DiskFull: in one line.
    """
    numbers = range(len(items)) if only is None else [int(n) for n in only]
    mark: dict[str, Any] = {
        "encoders": fingerprint(leaves, config),
        "pictures": pictures_hash([items[n] for n in numbers]),
    }
    if only is not None:
        mark["chosen"] = numbers
    marker = folder / "complete.json"
    if marker.exists() and json.loads(marker.read_text()) == mark:
        return FeatureCache(folder)
    with told_when_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        _fill(folder, items, numbers, leaves, config, description, batch)
        if only is not None:
            (folder / CHOSEN).write_text(json.dumps(numbers))
        write_whole(marker, json.dumps(mark).encode())
    return FeatureCache(folder)


def _fill(
    folder: Path,
    items: Sequence[Item],
    numbers: Sequence[int],
    leaves: Leaves,
    config: ModelConfig,
    description: str,
    batch: int,
) -> None:
    bad: dict[int, str] = {}
    size, arrays, encode = need(config.views).image_size, {}, make_encode(config)
    encoders = {path: leaf for path, leaf in leaves.items() if matches(path, FROZEN)}

    def read(start: int) -> tuple[np.ndarray, dict[int, str]]:
        pixels, damaged = np.zeros((batch, size, size, 3), np.uint8), {}
        for row, index in enumerate(numbers[start : start + batch]):
            try:
                pixels[row] = padded_resize(load_image(items[index].image or b""), size)
            except BadImage as error:
                damaged[index] = str(error)
        return pixels, damaged

    starts = range(0, len(numbers), batch)
    ahead = read_ahead(read, starts, readers=1)  # one batch: many would fill the memory
    for start, found in progress(zip(starts, ahead, strict=True), total=len(starts), desc=description, unit="batch"):
        pixels, damaged = found.result()
        bad |= damaged
        with compiling(f"encoders of {config.name}"):  # which is said once
            seen = jax.block_until_ready(encode(encoders, pixels))
        for name, value in seen._asdict().items():
            if value is None:
                continue
            if name not in arrays:
                shape = (len(numbers), *value.shape[1:])
                arrays[name] = _new_array(folder / f"{name}.npy", shape)
            rows = min(batch, len(numbers) - start)
            arrays[name][start : start + rows] = np.asarray(value[:rows], np.float16)
    for array in arrays.values():
        array.flush()
    (folder / BAD).write_text(json.dumps(bad))


def _new_array(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float16 array in a file of its full size, all of it there: a write to a page that a full disk has no room for
    ends the process."""
    array = np.lib.format.open_memmap(file, "w+", np.float16, shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return array
