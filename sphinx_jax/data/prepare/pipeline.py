"""Look, choose, copy: from files in some format to a folder of prepared data."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.data.formats.prepared import MANIFEST, VERSION, WORK, Prepared, read_manifest
from sphinx_jax.data.formats.table import FORMATS
from sphinx_jax.data.prepare.choose import Filters, Known, choose
from sphinx_jax.data.prepare.copy import BLOCK, Copy, copy
from sphinx_jax.data.prepare.count import count_all
from sphinx_jax.data.prepare.look import UNREADABLE, Task, look, state
from sphinx_jax.data.prepare.told import TOLD, histograms
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.disk import told_when_full
from sphinx_jax.lock import locked
from sphinx_jax.paths import write_whole
from sphinx_jax.progress import progress

SETTINGS = "settings.json"
SHOWN = 60  # items of each reason that are kept for the page

Given = TypeVar("Given")


class Each(Protocol):
    """Carries a function out on each of some things, anywhere and in any order; what it returns is dropped."""

    def __call__(self, function: Callable[[Given], Any], given: Sequence[Given], title: str) -> None: ...


@dataclass(frozen=True)
class Order:
    """What is to be prepared.

    Attributes:
      format: a name of the table of formats.
      inputs: files, in the order in which their items stand in the end.
      root: folder in which paths of pictures begin; None, that of each file.
      domain: of the items, in place of those that the format gives them; "" leaves these.
    """

    format: str
    inputs: Sequence[Path]
    out: Path
    root: Path | None = None
    domain: str = ""
    filters: Filters = Filters()
    benchmarks: Path | None = None  # whose pictures are dropped
    tokenizer: Path | None = None  # by which tokens are counted; may be given later

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        if not self.inputs:
            raise ConfigError("no file to prepare: the patterns of --input match nothing")
        gone = next((file for file in self.inputs if not file.exists()), None)
        if gone:
            raise ConfigError(f"there is no {gone}")

    def as_json(self) -> dict[str, Any]:
        root = None if self.root is None else str(self.root)
        inputs = [state(file) for file in self.inputs]
        filters = dataclasses.asdict(self.filters)
        told = {"format": self.format, "inputs": inputs, "root": root, "domain": self.domain, "filters": filters}
        return told | {"benchmarks": None if self.benchmarks is None else str(self.benchmarks)}


def prepare(order: Order, known: Callable[[], Known] = Known, each: Each | None = None) -> Prepared:
    """Prepare data; killed anywhere, the same call goes on.

    Args:
      known: finds pictures that nothing may be trained on.
      each: what carries the work out; None, this process and others on this machine.

    Raises:
      BadData: a file of another format; ConfigError: the folder was prepared otherwise; DiskFull; BadTokenizer.
    """
    made_from, each = order.as_json(), each or InProcesses()
    if order.tokenizer:
        load_tokenizer(order.tokenizer)  # what cannot be had is told before hours of looking
    with making(order.out, made_from) as to_do:
        if to_do:
            _prepare(order, made_from, known, each)
        if order.tokenizer:
            count_all(order.out, order.tokenizer, each)
    items = Prepared(order.out)
    items.shard_files()  # all are there, also where all was done before
    return items


def _prepare(order: Order, made_from: Mapping[str, Any], known: Callable[[], Known], each: Each) -> None:
    out, work = order.out, order.out / WORK
    files = [part for file in order.inputs for part in FORMATS[order.format].parts(file)]
    heard = bool(order.filters.language)
    tasks = [Task(order.format, f, order.root, work / "looks" / f"{i:05d}", heard) for i, f in enumerate(files)]
    left_out = known()  # first, as the tokenizer
    each(look, tasks, "looking")
    try:
        choice = choose([task.sidecar for task in tasks], order.filters, left_out)
    except ConfigError:  # what was looked at serves another try
        (work / SETTINGS).unlink()
        raise
    if choice.counts() == {UNREADABLE: len(tasks)}:
        collections.deque(FORMATS[order.format].read(tasks[0].source), 0)  # raises what it is
    copies = []
    for i, (task, codes) in enumerate(zip(tasks, choice.codes, strict=True)):
        chosen, done = work / "codes" / f"{i:05d}.npy", work / "copied" / f"{i:05d}.json"
        for file in (chosen, done):
            file.parent.mkdir(exist_ok=True)
        np.save(chosen, codes)
        copies.append(Copy(task, i, chosen, choice.reasons, order.domain, out, done))
    each(copy, copies, "copying")
    drawn = histograms([task.sidecar for task in tasks], choice.codes)
    written = (json.loads(one.done.read_text()) for one in copies)
    finish(out, made_from, written, choice.counts(), order.domain, drawn)


@contextlib.contextmanager
def making(out: Path, made_from: Mapping[str, Any]) -> Iterator[bool]:
    """Within, nobody else works in a folder of prepared data; yields whether there is anything left to do.

    Raises ConfigError where the folder is of anything else, DiskFull.
    """
    with told_when_full(out):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, "--out"):
            done = is_done(out, made_from)
            if done:  # killed on its last step
                shutil.rmtree(out / WORK, ignore_errors=True)
            yield not done


def is_done(out: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a folder holds what is asked for; ConfigError where it holds, or was begun with, anything else."""
    now = json.loads(json.dumps(made_from))
    done = (out / MANIFEST).exists()
    begun = out / WORK / SETTINGS
    if (out / MANIFEST).exists():
        before = read_manifest(out).get("made_from")
    elif begun.exists():
        before = json.loads(begun.read_text())
    else:
        others = [path.name for path in out.iterdir() if path.name not in (WORK, ".lock")]
        if others:
            raise ConfigError(f"{out} holds other files ({others[0]}); give a folder of its own")
        begun.parent.mkdir(exist_ok=True)
        write_whole(begun, json.dumps(now).encode())
        before = now
    before = before or {}
    if "filters" in before:  # what a folder was prepared without before there was such a filter
        before = before | {"filters": json.loads(json.dumps(dataclasses.asdict(Filters()))) | before["filters"]}
    told = _other_files(*({one[0]: one[1:3] if done else None for one in of.get("inputs", ())} for of in (before, now)))
    if told:
        raise ConfigError(f"{out} was prepared from other files: {told}; give another folder or delete this one")
    flat = [{**of, **{f"filter {key}": value for key, value in of.get("filters", {}).items()}} for of in (before, now)]
    changed = [key for key in flat[1] if key not in ("inputs", "filters") and flat[0].get(key) != flat[1][key]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{out} was prepared with {key} = {flat[0].get(key)!r}, now it is {flat[1][key]!r}; give another folder or "
            "delete this one"
        )
    return done


def _other_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not as it was with files, of which each has its size and time, or nothing where both may have changed."""
    for name, files, others in (("is new", now, before), ("is not among them any more", before, now)):
        if found := next((file for file in files if file not in others), None):
            return f"{found} {name}"
    if found := next((file for file in now if now[file] != before[file]), None):
        return f"{found} has changed since, by its size or time"
    return "" if list(before) == list(now) else "their order is another"


def finish(
    out: Path,
    made_from: Mapping[str, Any],
    written: Iterable[Mapping[str, Any]],
    dropped: Mapping[str, int],
    domain: str,
    drawn: Mapping[str, Any],
) -> None:
    """Write the manifest, which makes the folder complete, and what a page shows.

    Args:
      written: of each file its `shards` and `samples`.
      drawn: histograms, as `told.histograms` has them.
    """
    shards, samples = list[dict[str, Any]](), dict[str, list[Any]]()
    for one in written:
        shards += one["shards"]
        for reason, some in one["samples"].items():
            own = samples.setdefault(reason, [])
            own += some[: SHOWN - len(own)]
    there = {shard["name"] for shard in shards}
    for file in out.glob("part-*.array_record"):
        if file.name not in there:  # of a run with another choice
            file.unlink()
    counts = {name: collections.Counter[str]() for name in ("tasks", "domains")}
    for shard in shards:
        for name, own in counts.items():
            own.update(shard.pop(name))
    manifest = {
        "version": VERSION,
        "items": sum(shard["items"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "dropped": dict(dropped),
        "domain": domain or (next(iter(counts["domains"])) if len(counts["domains"]) == 1 else ""),
        "pictures": sum(shard.pop("pictures") for shard in shards),
        **{name: dict(own) for name, own in counts.items()},
        "block": BLOCK,
        "made_from": dict(made_from),
        "shards": shards,
    }
    write_whole(out / TOLD, json.dumps({"samples": samples, "histograms": dict(drawn)}).encode())
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1).encode())
    shutil.rmtree(out / WORK)


class InProcesses:
    """Each on this machine, in so many processes; in this one alone where that is one."""

    def __init__(self, processes: int = 0, quiet: bool = False):
        self.processes, self.quiet = processes or os.cpu_count() or 1, quiet

    def __call__(self, function: Callable[[Given], Any], given: Sequence[Given], title: str) -> None:
        with progress(total=len(given), desc=title, unit="file", disable=self.quiet) as bar:
            for _ in self._results(function, given):
                bar.update()

    def _results(self, function: Callable[[Given], Any], given: Sequence[Given]) -> Iterator[Any]:
        count = min(self.processes, len(given))
        if count <= 1:
            yield from map(function, given)
            return
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(function, given)


class OnBeam:
    """Each by Apache Beam.  Only names of files travel: no picture goes through a shuffle, and all workers see the
    folder that is made, and the files, under the same paths.

    Args:
      runner: as Beam names it; `FnApiRunner` is this machine.
      options: further ones of Beam, as on its command line.
    """

    def __init__(self, runner: str = "FnApiRunner", options: Iterable[str] = ()):
        try:
            import apache_beam  # noqa: F401
        except ImportError:
            raise ConfigError("Apache Beam is not installed: pip install 'sphinx_jax[scale]'") from None
        self.runner, self.options = runner, list(options)

    def __call__(self, function: Callable[[Given], Any], given: Sequence[Given], title: str) -> None:
        import apache_beam as beam

        self.apply(beam.Map(lambda one: (function(one), None)[1]), given, title)

    def apply(self, transform: Any, given: Sequence[Given], title: str) -> None:
        """One of Beam's transforms on each; what it returns is dropped."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions(self.options)
        with beam.Pipeline(runner=self.runner, options=options) as pipeline:
            things = pipeline | title >> beam.Create(list(given), reshuffle=True)
            _ = things | f"{title} each" >> transform
