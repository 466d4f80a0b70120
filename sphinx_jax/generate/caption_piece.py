"""Captions of one file: its pictures are asked about, and what is said is written as its shards."""

from __future__ import annotations

import collections
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import SYSTEM, Item, render
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped, Found, Source
from sphinx_jax.data.formats.prepared import WORK, Kept, read_manifest, read_shard
from sphinx_jax.data.image import BadImage, ImageSource
from sphinx_jax.data.prepare.copy import Samples, write_shards
from sphinx_jax.data.prepare.look import found_in, state
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.tasks import instruct
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.request import Request, Settings
from sphinx_jax.paths import write_whole

_log = logging.getLogger(__name__)
EDGES = (-6.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.25, -1.0, -0.75, -0.5, -0.25, -0.1, 0.0)  # nats a token


class Piece(NamedTuple):
    """What is captioned at once: a file, or a shard of prepared data.

    Attributes:
      number: among all pieces, by which its shards are named.
      state: of the file when the work was given out, by which a change shows.
      shard: its number in prepared data; None for the whole of a file.
    """

    number: int
    file: Path
    state: Sequence[Any]
    shard: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.shard is None else f"shard {self.shard} of {self.file}"


@dataclass(frozen=True)
class Captions:
    """What is to be said about which pictures.

    Attributes:
      format: a name of the table of formats; `prepared` for prepared data.
      inputs: files; workers, each of which is given one, have none here.
      tasks: instructions, of which each picture gets every one.
      checkpoint: the folder of the model, for the manifest.
      domain: of what is written.
    """

    format: str
    inputs: Sequence[Path]
    out: Path
    checkpoint: Path
    tasks: Sequence[str] = ("short_caption",)
    root: Path | None = None
    domain: str = "synthetic"
    sampling: Settings | None = None
    quantize: str | None = None

    def as_json(self) -> dict[str, Any]:
        made = store.chosen_in(self.checkpoint) / store.RECIPE
        return {
            "format": self.format,
            "inputs": [state(file) for file in self.inputs],
            "root": None if self.root is None else str(self.root),
            "checkpoint": str(self.checkpoint),
            "recipe": sha256(made.read_bytes()).hexdigest() if made.is_file() else None,
            "prompts": {task: _prompt(task) for task in self.tasks},
            "sampling": dict(self.sampling or {}),
            "quantize": self.quantize,
            "domain": self.domain,
        }

    def done(self, piece: Piece) -> Path:
        """The file that says that a piece is done, and what was written; what was said is of the file as it is."""
        parts = [piece.number, piece.state, *(() if piece.shard is None else (piece.shard,))]
        name = sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return self.out / WORK / "said" / f"{name}.json"


class Line(NamedTuple):
    """What was said about the picture of an item, by its number in its file."""

    number: int
    task: str
    text: str
    likelihood: float  # mean logarithm of the probability of its tokens, in nats


class _Record:
    """What was said about the pictures of a piece, on disk as it is said.

    Each attempt writes a file of its own, as a worker that was given up for lost may still write.
    """

    def __init__(self, done: Path):
        done.parent.mkdir(parents=True, exist_ok=True)
        self.lines: dict[tuple[int, str], Line] = {}
        for file in sorted(done.parent.glob(f"{done.stem}.*.jsonl")):
            # a killed run leaves half a line
            for line in file.read_bytes().rpartition(b"\n")[0].splitlines():
                found = Line(*json.loads(line))
                self.lines[found.number, found.task] = found
        self._file = done.with_suffix(f".{uuid.uuid4().hex}.jsonl").open("xb")

    def add(self, line: Line) -> None:
        self.lines[line.number, line.task] = line
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def pieces(what: Captions) -> list[Piece]:
    """What is to be captioned, in its order.  Raises BadData: prepared data that is none."""
    found: list[Piece] = []
    for file in what.inputs:
        now = state(file)
        shards = range(len(read_manifest(file)["shards"])) if what.format == "prepared" else (None,)
        for shard in shards:
            found.append(Piece(len(found), file, now, shard))
    return found


def say(what: Captions, piece: Piece, engine: Engine, answered: Callable[[], Any] = lambda: None) -> Path:
    """Ask about the pictures of a piece and write its shards; what was said before is not asked.

    Args:
      answered: called after each answer.

    Returns the file that tells what was written.

    Raises:
      BadData: the file has changed since the work was given out.
      ConfigError: a question and its answer are longer than the model takes.
    """
    done = what.done(piece)
    if done.exists():
        return done
    _check_same(piece)
    record = _Record(done)
    try:
        _ask(engine, what, piece, record, answered)
    finally:
        record.close()
    samples, dropped = Samples(), collections.Counter[str]()
    shards = write_shards(what.out, piece.number, _kept(what, piece, record, dropped, samples))
    _check_same(piece)
    likelihoods = [line.likelihood for line in record.lines.values() if line.text]
    bars = np.histogram(np.clip(likelihoods, EDGES[0], EDGES[-1]), EDGES)[0].tolist()
    told = {"shards": shards, "samples": samples.found, "dropped": dict(dropped), "likelihoods": bars}
    write_whole(done, json.dumps(told).encode())
    return done


def _check_same(piece: Piece) -> None:
    if state(piece.file) != piece.state:
        raise BadData(f"{piece.file} has changed while it was read; run the same command again")


def _found(what: Captions, piece: Piece) -> Iterator[Found | Dropped]:
    if piece.shard is None:
        return found_in(what.format, Source(piece.file, what.root))
    manifest = read_manifest(piece.file)
    kept = read_shard(piece.file, manifest["shards"][piece.shard], manifest["block"])
    return (Found(*one) for one in kept)


def _prompt(task: str) -> str:
    return render([(instruct(task), None)], SYSTEM)[0]


class _Asked(NamedTuple):
    number: int
    tasks: Sequence[str]
    image: ImageSource


def _ask(engine: Engine, what: Captions, piece: Piece, record: _Record, answered: Callable[[], Any]) -> None:
    prompts = {task: _prompt(task) for task in what.tasks}
    waiting: dict[int, tuple[int, str]] = {}

    def left() -> Iterator[_Asked]:
        for number, found in enumerate(_found(what, piece)):
            tasks = [task for task in what.tasks if (number, task) not in record.lines]
            if isinstance(found, Found) and found.item.image is not None and tasks:
                yield _Asked(number, tasks, found.item.image)

    def look(one: _Asked) -> tuple[_Asked, Picture | BadImage]:
        try:
            return one, engine.pictures.picture(one.image)
        except BadImage as error:
            return one, error

    def requests() -> Iterator[Request]:
        place = 0
        for done in read_ahead(look, left()):
            one, picture = done.result()
            if isinstance(picture, BadImage):
                _log.warning("item %d of %s: %s", one.number, piece, picture)
                continue
            for task in one.tasks:
                try:
                    request = Request(prompts[task], picture, **(what.sampling or {}))
                    engine.room(True, request.max_new_tokens)
                except BadArgument as error:
                    raise ConfigError(f"task {task}: {error}") from None
                waiting[place] = one.number, task
                place += 1
                yield request

    for place, (said,) in engine.as_completed(requests()):
        number, task = waiting.pop(place)
        likelihood = float(np.mean(said.logprobs)) if said.logprobs else 0.0
        record.add(Line(number, task, said.text.strip(), likelihood))
        answered()


def _kept(
    what: Captions, piece: Piece, record: _Record, dropped: collections.Counter[str], samples: Samples
) -> Iterator[Kept]:
    for number, found in enumerate(_found(what, piece)):
        reason = ""
        said = [record.lines[number, task] for task in what.tasks if (number, task) in record.lines]
        if isinstance(found, Dropped):
            reason = found.reason
        elif found.item.image is None:
            reason = "item has no picture"
        elif not said:
            reason = "picture is missing or damaged"
        elif not any(line.text for line in said):
            reason = "answer is empty"
        if reason or isinstance(found, Dropped):
            dropped[reason] += 1
            continue
        item = _said(found.item, [line for line in said if line.text], what.domain)
        samples.add("kept", item.id, item)
        yield Kept(item, {**found.carried, **_likelihoods(said)})


def _likelihoods(said: Sequence[Line]) -> Mapping[str, float]:
    """By task; of one alone `likelihood`."""
    if len(said) == 1:
        return {"likelihood": said[0].likelihood}
    return {f"likelihood_{line.task}": line.likelihood for line in said}


def _said(item: Item, said: Sequence[Line], domain: str) -> Item:
    image = Path(item.image).read_bytes() if isinstance(item.image, str) else item.image
    turns = tuple((instruct(line.task), line.text) for line in said)
    tasks = tuple(line.task for line in said)
    return replace(item, image=image, turns=turns, tasks=tasks, kinds=(), text="", system=None, domain=domain)
