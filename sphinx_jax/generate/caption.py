"""What a model says about every picture of some data, as prepared data: the paper's synthetic domain is made so."""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
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
from sphinx_jax.data.formats.prepared import WORK, Kept, Prepared
from sphinx_jax.data.image import BadImage, ImageSource
from sphinx_jax.data.prepare.copy import Samples, write_shards
from sphinx_jax.data.prepare.look import found_in, state
from sphinx_jax.data.prepare.pipeline import finish, making
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.tasks import instruct
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import Engine, Request, Settings
from sphinx_jax.paths import write_whole
from sphinx_jax.progress import progress

_log = logging.getLogger(__name__)
EDGES = (-6.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.25, -1.0, -0.75, -0.5, -0.25, -0.1, 0.0)  # nats a token


@dataclass(frozen=True)
class Captions:
    """What is to be said about which pictures.

    Attributes:
      format: a name of the table of formats; `prepared` for prepared data.
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


class Line(NamedTuple):
    """What was said about the picture of an item, by its number in its file."""

    number: int
    task: str
    text: str
    likelihood: float  # mean logarithm of the probability of its tokens, in nats


class _Record:
    """What was said about the pictures of one file, on disk as it is said."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[tuple[int, str], Line] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        for line in filter(None, whole.split(b"\n")):
            found = Line(*json.loads(line))
            self.lines[found.number, found.task] = found
        self._file = path.open("ab")
        self._file.truncate(len(whole) + bool(whole))  # without the half line that a killed run left

    def add(self, line: Line) -> None:
        self.lines[line.number, line.task] = line
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def caption(engine: Engine, what: Captions, quiet: bool = False) -> Prepared:
    """Ask about every picture and write what is said; killed anywhere, the same call goes on with the next picture.

    Items carry what their source carried, and of each task `likelihood`, by which `tools/prepare_data.py` can choose.

    Raises:
      ConfigError: the folder was made otherwise; BadData: a file changed under way; DiskFull.
    """
    if not what.inputs:
        raise ConfigError("no file to read pictures from: the patterns of --input match nothing")
    made_from = what.as_json()
    with making(what.out, made_from) as to_do:
        if to_do:
            _caption(engine, what, made_from, quiet)
    return Prepared(what.out)


def _caption(engine: Engine, what: Captions, made_from: Mapping[str, Any], quiet: bool) -> None:
    folder, done = what.out / WORK / "said", []
    with progress(desc="captions", unit="answer", disable=quiet) as bar:
        for number, file in enumerate(what.inputs):
            # what was said is of the file as it is
            name = sha256(json.dumps([number, state(file)]).encode()).hexdigest()[:16]
            done.append(folder / f"{name}.json")
            if not done[-1].exists():
                told = _of_file(engine, what, number, Source(file, what.root), folder / f"{name}.jsonl", bar)
                write_whole(done[-1], json.dumps(told).encode())
    dropped: collections.Counter[str] = collections.Counter()
    bars = np.zeros(len(EDGES) - 1, int)
    for told in map(_read, done):
        dropped.update(told["dropped"])
        bars += told["likelihoods"]
    drawn = {"likelihood, nats a token": {"edges": EDGES, "kept": bars.tolist(), "dropped": [0] * len(bars)}}
    finish(what.out, made_from, map(_read, done), dict(dropped.most_common()), what.domain, drawn)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def _of_file(engine: Engine, what: Captions, number: int, source: Source, said: Path, bar: Any) -> dict[str, Any]:
    """Ask about the pictures of one file and write its shards; what was said before is not asked."""
    before = state(source.file)
    record = _Record(said)
    _ask(engine, what, source, record, bar)
    record.close()
    samples, dropped = Samples(), collections.Counter[str]()
    shards = write_shards(what.out, number, _kept(what, source, record, dropped, samples))
    if state(source.file) != before:
        raise BadData(f"{source.file} has changed while it was read; run the same command again")
    likelihoods = [line.likelihood for line in record.lines.values() if line.text]
    bars = np.histogram(np.clip(likelihoods, EDGES[0], EDGES[-1]), EDGES)[0].tolist()
    return {"shards": shards, "samples": samples.found, "dropped": dict(dropped), "likelihoods": bars}


def _prompt(task: str) -> str:
    return render([(instruct(task), None)], SYSTEM)[0]


class _Asked(NamedTuple):
    number: int
    tasks: Sequence[str]
    image: ImageSource


def _ask(engine: Engine, what: Captions, source: Source, record: _Record, bar: Any) -> None:
    prompts = {task: _prompt(task) for task in what.tasks}
    waiting: dict[int, tuple[int, str]] = {}

    def left() -> Iterator[_Asked]:
        for number, found in enumerate(found_in(what.format, source)):
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
                _log.warning("item %d of %s: %s", one.number, source.file, picture)
                continue
            for task in one.tasks:
                try:
                    request = Request(prompts[task], picture, **(what.sampling or {}))
                    engine.fitted(request.prompt, True, request.max_new_tokens)
                except BadArgument as error:
                    raise ConfigError(f"task {task}: {error}") from None
                waiting[place] = one.number, task
                place += 1
                yield request

    for place, (said,) in engine.as_completed(requests()):
        number, task = waiting.pop(place)
        likelihood = float(np.mean(said.logprobs)) if said.logprobs else 0.0
        record.add(Line(number, task, said.text.strip(), likelihood))
        bar.update()


def _kept(
    what: Captions, source: Source, record: _Record, dropped: collections.Counter[str], samples: Samples
) -> Iterator[Kept]:
    for number, found in enumerate(found_in(what.format, source)):
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
        samples.add("kept", item)
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
