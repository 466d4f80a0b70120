"""What prepared data costs: how opening, memory and reading grow with its size, and pictures beside Pillow alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from sphinx_jax.data import task_mix
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.indexed_lines import Lines, places
from sphinx_jax.data.formats.prepared import MANIFEST, VERSION, Kept, Prepared
from sphinx_jax.data.image import PAD_COLOUR
from sphinx_jax.data.order import Order
from sphinx_jax.data.prepare.copy import BLOCK, SHARD, write_shards
from sphinx_jax.data.rows import Shape, Source
from sphinx_jax.measure.peers.sides import Pair
from sphinx_jax.recipe.recipe import PLAYGROUND

SIZES = (10**4, 10**5, 10**6, 10**7)

READ = 20_000  # items of the stream that are read
LINES = 100_000  # of a list
PICTURES, SIDE, SEEN = 512, 512, 224  # pictures, their pixels a side, those that a model sees

_READER = f"""
import json, resource, sys, time
from sphinx_jax.data import task_mix
from sphinx_jax.measure.data import opened
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
items, order = opened(sys.argv[1])
first = items[order(0)]
ready = time.perf_counter()
for position in range({READ}):
    items[order(position)]
spent = time.perf_counter() - ready
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([ready - begun, {READ} / spent, (peak - before) / 1024, peak / 1024]))
"""


def opened(folder: str) -> tuple[Prepared, Order]:
    """Prepared data as a stage of training opens it."""
    items = Prepared(Path(folder))
    return items, Order(items.edges, 0, items.block)


def measure(folder: Path, rounds: int, sizes: Sequence[int] = SIZES) -> Iterator[str]:
    """Lines of the tables.  Shards of the larger sizes are links to one on disk: all are opened and read as others."""
    yield f"{'items':>12} {'open, s':>9} {'items / s':>10} {'MB more':>8} {'MB in all':>10}"
    for count in sizes:
        _growing(folder / f"texts-{count}", count)
        run = subprocess.run([sys.executable, "-c", _READER, str(folder / f"texts-{count}")], capture_output=True)
        if run.returncode:
            raise ValueError(run.stderr.decode().strip().splitlines()[-1])
        ready, rate, more, peak = json.loads(run.stdout)
        yield f"{count:>12,} {ready:>9.3f} {rate:>10,.0f} {more:>8.1f} {peak:>10.1f}"
    yield ""
    yield _pictures(folder / "pictures", rounds).line()
    yield _in_lines(folder / "conversations.jsonl")


def _in_lines(file: Path) -> str:
    """A large list: how quickly its index is made, it is opened again, and items are read in any order."""
    said = [("human", "What is it? " + "words " * 20), ("gpt", "It is. " + "words " * 60)]
    talk = [{"from": who, "value": value} for who, value in said]
    with file.open("w") as written:
        for i in range(LINES):
            written.write(json.dumps({"id": str(i), "image": f"{i:012d}.jpg", "conversations": talk}) + "\n")
    places(file)[0].unlink(missing_ok=True)
    times = [time.perf_counter()]
    for _ in range(2):
        items = Lines(file)
        times.append(time.perf_counter())
    for number in np.random.default_rng(0).integers(0, LINES, READ):
        items[int(number)]
    times.append(time.perf_counter())
    made, again, read = np.diff(times)
    return (
        f"{LINES:,} conversations in lines: {LINES / made:,.0f} lines a second into the index, opened again in "
        f"{1000 * again:.1f} ms, {READ / read:,.0f} items a second in any order"
    )


def _growing(folder: Path, count: int) -> None:
    """Texts, in one shard that is written and as many links to it as it takes."""
    if (folder / MANIFEST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    texts = (Kept(Item(None, (), text=f"text {i} " + "of some words " * (1 + i % 9)), {}) for i in range(SHARD))
    (shard,) = write_shards(folder, 0, texts)
    shards = []
    for number, begin in enumerate(range(0, count, SHARD)):
        name = f"part-{number:05d}-000.array_record"
        if number:
            (folder / name).unlink(missing_ok=True)
            os.link(folder / shard["name"], folder / name)
        shards.append({"name": name, "items": min(SHARD, count - begin), "bytes": shard["bytes"]})
    _write_manifest(folder, count, shards, 0)


def _write_manifest(folder: Path, count: int, shards: list[dict[str, object]], pictures: int) -> None:
    told = {
        "version": VERSION,
        "items": count,
        "block": BLOCK,
        "shards": shards,
        "pictures": pictures,
        "domains": {"": count},
    }
    (folder / MANIFEST).write_text(json.dumps(told))


def _pictures(folder: Path, rounds: int) -> Pair:
    """A stream of rows of prepared JPEG files beside Pillow alone, on as many threads."""
    made = [_jpeg(i) for i in range(PICTURES)]
    if not (folder / MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept = (Kept(Item(image, (("?", "a"),), ("vqa",), id=str(i)), {}) for i, image in enumerate(made))
        shards = write_shards(folder, 0, kept)
        _write_manifest(folder, PICTURES, shards, PICTURES)
    threads = os.cpu_count() or 1
    pair = Pair(f"{PICTURES} pictures of {SIDE} px", [], [], f"Pillow alone, {threads} threads")
    for round_ in range(rounds + 1):  # the first fills the caches of the disk
        ours, theirs = _stream(folder, threads), _pillow(made, threads)
        if round_:
            pair.ours.append(ours)
            pair.theirs.append(theirs)
    return pair


def _jpeg(number: int) -> bytes:
    """A picture that is neither flat nor noise, three by two."""
    coarse = np.random.default_rng(number).integers(0, 255, (12, 18, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE, SIDE * 2 // 3), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _stream(folder: Path, threads: int) -> float:
    from sphinx_jax.data.tokenizer import load_tokenizer

    source = Source("pictures", Prepared(folder))
    rows = task_mix.rows([source], load_tokenizer(PLAYGROUND / "tokenizer.model"), Shape(48, SEEN), seed=0)
    batches = task_mix.task_mix({"image": (rows, 16)}, threads=threads)
    begun = time.perf_counter()
    for _ in range(PICTURES // 16):
        next(batches)
    return time.perf_counter() - begun


def _pillow(made: Sequence[bytes], threads: int) -> float:
    def one(image: bytes) -> np.ndarray:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        side = max(picture.size)
        square = Image.new("RGB", (side, side), PAD_COLOUR)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return np.array(square.resize((SEEN, SEEN), Image.Resampling.BICUBIC))

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(made), 16):
            np.stack(list(pool.map(one, made[first : first + 16])))
    return time.perf_counter() - begun
