"""The training loop of one stage: steps, log lines, checkpoints, exact resume."""

from __future__ import annotations

import collections
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.command import Stopped
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.distributed import gather
from sphinx_jax.progress import compiling
from sphinx_jax.sharding import row_sharding, row_share
from sphinx_jax.train.checkpoints import Checkpoints
from sphinx_jax.train.history import History
from sphinx_jax.train.preemption import Preemption
from sphinx_jax.train.step import Sums, TrainState, by_group
from sphinx_jax.train.tally import SEEN, Tally, by_set

_log = logging.getLogger(__name__)


DATA_WAIT = 0.5  # share of the time between two log lines above which data, not steps, set the pace
AHEAD = 2  # steps that have begun and not ended: the devices always have work, and few batches are held
UNUSABLE_ROWS = 16  # one after the other, and nothing between them: no data set has so many bad items in a row


class TrainingStopped(ValueError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True)
class LoopSettings:
    steps: int
    log_every: int = 20
    save_every: int = 500
    keep: int | Literal["best"] = 1  # newest checkpoints; best: the newest and that of the lowest held-out loss
    evaluate_every: int = 0
    # consecutive steps whose loss or gradient is not finite, after which the stage stops
    bad_steps: int = 20


@dataclass
class Throughput:
    """What one step is worth, for the log line."""

    tokens: int
    flops: float
    peak: float


@dataclass(frozen=True)
class TrainJob:
    """What a stage trains, on what, and where that is kept.

    Args:
      begin: the stage's own newest checkpoint, or None where there is none yet -> the state to go on from.  Called
        once; nothing else should hold the arrays of what it returns, which the steps write over.
      step: (state, batches, what `rate` gives) -> (state, metrics), as `step.make_step` returns it.
      rate: number of a step, from 0 -> its learning rate, and what else the step takes.
      data: number of a step -> batches from there on, this process's share of the rows.
      sets: kind of batch -> what its data sets are called, by the numbers that rows carry.
      place: number of a step -> what its checkpoint says of where the data is, as JSON.
      config, tokenizer, recipe: what checkpoints say of themselves.
      throughput: what a step is worth.
      held_out: (state, what places an array's rows on the mesh) -> the history's entries of held-out data, which are
        asked for every `evaluate_every` steps and at the end.
      identify: number of a step, from 0 -> what its batch was made of, as JSON.
      profile: steps, from 0, of which `folder`/profile gets a trace for XProf and TensorBoard.
    """

    name: str
    folder: Path
    settings: LoopSettings
    begin: Callable[[Path | None], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    rate: Callable[[int], Any]
    data: Callable[[int], Iterator[Any]]
    config: ModelConfig
    tokenizer: Tokenizer | None
    mesh: Mesh
    recipe: dict[str, Any]
    throughput: Throughput
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    place: Callable[[int], Mapping[str, Any]] = lambda step: {}
    held_out: Callable[[TrainState, Callable[[np.ndarray], jax.Array]], dict[str, float]] = lambda state, place: {}
    identify: Callable[[int], Any] = lambda step: None
    profile: range | None = None
    quiet: bool = False


def run(job: TrainJob) -> TrainState:
    """Train from the job's newest checkpoint, or from its beginning, to the end.

    Writes `history.jsonl` (one line a log step), TensorBoard events and checkpoints into the job's folder; a
    checkpoint holds the state after its step, whose number is also the position in the data, so a resumed run repeats
    and skips nothing.  Checkpoints are written while training goes on.  Batches are on their way to the devices while
    these work on the steps before, of which there are `AHEAD`.

    Raises:
      TrainingStopped: after too many steps in a row that are not finite, whose batches `bad_steps.json` names, or
        whose rows were all left out; at the end where no step was of any use.  Before one was, nothing is saved.
      Stopped: on SIGTERM and Ctrl-C, after a checkpoint of the step at hand.
      DiskFull: a checkpoint could not be written; those before it are whole.
    """
    folder, name, settings, profile = job.folder, job.name, job.settings, job.profile
    checkpoints = Checkpoints(folder / "checkpoints", settings.keep, job.config, job.tokenizer, job.recipe)
    leader = jax.process_index() == 0
    quiet = job.quiet or not leader
    found = store.newest(checkpoints.folder)
    start = 0 if found is None else int(found.name)
    state = job.begin(found)
    if found is not None and not quiet:
        print(f"{name}: all {start} steps are done" if start == settings.steps else f"{name}: on from step {start}")
    history = History(folder, start, leader)
    tally = Tally(job.sets, store.read_recipe(found).get(SEEN) if found is not None else None)
    line = _Line(name, settings.steps, quiet)
    data = job.data(start)
    window = _Window(start)
    bad, left, waits, blind, tracing = 0, None, False, False, False
    unusable: collections.Counter[str] = collections.Counter()
    used: collections.Counter[str]
    learnt, used = start > 0, collections.Counter()  # whether a step was of use; rows that were, by kind
    rows, (_, shares) = row_sharding(job.mesh), row_share(job.mesh)

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(rows, x, (len(x) * shares, *x.shape[1:]))

    ended: collections.deque[Future[float]] = collections.deque(maxlen=AHEAD)  # of the last steps, when they have
    with jax.set_mesh(job.mesh), Preemption() as preemption, ThreadPoolExecutor(1, "steps") as watch:
        if found is not None and _is_unseen(found, settings):  # who was told to leave did not look
            looked = job.held_out(state, place)
            history.amend(start, looked)
            checkpoints.judge(found, looked["held_out/loss"])
        for step in range(start, settings.steps):
            if profile and step in profile and leader and not tracing:  # a resumed run may begin among them
                jax.profiler.start_trace(folder / "profile")
                tracing = True
            if len(ended) == AHEAD:
                ended[0].result()
            asked = time.perf_counter()
            batches = next(data)
            waited = _idle(ended[-1] if ended else None, asked)
            skipped = {}
            for kind, batch in batches.items():
                left_out, sets = (batch.pop(name, np.zeros(1, int)) for name in ("skipped", "set"))
                skipped[kind] = int(left_out.sum())
                tally.add(kind, batch, sets, left_out)
            batches = jax.tree.map(place, batches)
            with compiling(f"{name}, a step of {job.config.name}", quiet or step > start):
                state, metrics = job.step(state, batches, job.rate(step))
            ended.append(watch.submit(_ended, metrics))
            window.add(metrics, {kind: len(next(iter(b.values()))) for kind, b in batches.items()}, skipped, waited)
            if profile and tracing and step in (profile[-1], settings.steps - 1):
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
                tracing = False
            leaving = preemption.due(step + 1)
            last = step + 1 == settings.steps or leaving
            saves = (step + 1) % settings.save_every == 0 or last
            every = settings.evaluate_every
            # who is to leave has little time, and saves first of all
            looks = every and (((step + 1) % every == 0 and not leaving) or step + 1 == settings.steps)
            if (step + 1) % settings.log_every == 0 or last or looks or (saves and not learnt):
                entry = window.summary(step + 1, job.throughput, shares)
                for number, finite in enumerate(window.finite, window.first + 1):
                    bad = 0 if finite else bad + 1
                    if bad >= min(settings.bad_steps, settings.steps):
                        batches = [
                            {"step": n, "batch": job.identify(n - 1)} for n in range(number - bad + 1, number + 1)
                        ]
                        if leader:
                            bad_steps = json.dumps({"stage": name, "steps": batches}, indent=1)
                            (folder / "bad_steps.json").write_text(bad_steps)
                        raise TrainingStopped(
                            f"{name}: the {bad} steps up to {number} had a loss or gradient that is not finite; "
                            f"{folder / 'bad_steps.json'} names their batches"
                        )
                for kind, count in window.usable.items():
                    used[kind] += count
                    unusable[kind] = 0 if count else unusable[kind] + window.rows[kind]
                    never = start == 0 and step + 1 == settings.steps and not used[kind]
                    if unusable[kind] >= UNUSABLE_ROWS or never:
                        raise TrainingStopped(
                            f"{name}: none of the {unusable[kind]} {kind} rows up to step {step + 1} could be used; "
                            "the log says why (where pictures do not exist, check the list's root)"
                        )
                learnt = learnt or (any(window.finite) and any(used.values()))
                if looks:
                    looking = time.perf_counter()
                    entry |= job.held_out(state, place)
                    if not math.isfinite(entry["held_out/loss"]) and leader and not blind:
                        blind = True
                        _log.warning("%s: step %d has no finite loss on held-out data, and is no best", name, step + 1)
                    saves = saves or (settings.keep == "best" and checkpoints.is_best(entry["held_out/loss"]))
                    entry["seconds"] += time.perf_counter() - looking
                history.write(entry | by_set(tally.seen(shares)))
                line.show(entry)
                if entry["data_wait"] > DATA_WAIT and leader and not waits:
                    waits = True
                    _log.warning(
                        "%s: %.0f%% of the time steps wait for data; give the stage more workers or cache_features",
                        name,
                        100 * entry["data_wait"],
                    )
                window = _Window(step + 1)
            if saves and learnt:
                saving = time.perf_counter()
                loss = entry.get("held_out/loss") if looks else None
                checkpoints.save(step + 1, state, loss, {SEEN: tally.seen(shares), **job.place(step + 1)})
                window.saving += time.perf_counter() - saving
            if leaving:
                left = step + 1
                break
        checkpoints.wait()
    history.close()
    line.close()
    if left is not None:
        by = preemption.signal
        saved = f"step {left} is saved, and the same command goes on from there"
        raise Stopped(
            f"{name}: stopped by {by.name}; {saved if learnt else 'no step was of use yet, none is saved'}", by
        )
    return state


def _is_unseen(checkpoint: Path, settings: LoopSettings) -> bool:
    """Whether a look at held-out data was due at a checkpoint's step, and was not taken."""
    step, every = int(checkpoint.name), settings.evaluate_every
    due = bool(every) and step % every == 0 and step < settings.steps
    return due and math.isinf(store.held_out_loss(checkpoint))


def _ended(metrics: Any) -> float:
    """When a step has ended."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


def _idle(step: Future[float] | None, asked: float) -> float:
    """Seconds for which the devices have had nothing to do, where `step` was their last and data was asked for then."""
    if step is None:
        return time.perf_counter() - asked
    return max(0.0, time.perf_counter() - max(step.result(), asked)) if step.done() else 0.0


class _Window:
    """Metrics between two log lines; read from the device only when a line is due.

    Of the time between them the devices (of many hosts the slowest's) wait for data a share of `data_wait` and for a
    checkpoint, the one before or the arrays of this one, a share of `checkpoint_wait`; the rest is compute.
    `goodput` is the share of the time that went into steps which counted: what is left of these waits, less the steps
    that were not finite.
    """

    def __init__(self, step: int):
        self.first, self.started = step, time.perf_counter()
        self.metrics: list[dict[str, Any]] = []
        self.waited = self.saving = 0.0
        self.rows: collections.Counter[str] = collections.Counter()  # by kind; of this process alone
        self.skipped: collections.Counter[str] = collections.Counter()
        self.finite: list[bool] = []  # of each step, once they are read
        self.usable: dict[str, int] = {}  # rows of each kind in all processes, once they are read

    def add(self, metrics: dict[str, Any], rows: dict[str, int], skipped: dict[str, int], waited: float) -> None:
        self.metrics.append(metrics)
        self.rows.update(rows)
        self.skipped.update(skipped)
        self.waited += waited

    def summary(self, step: int, throughput: Throughput, shares: int) -> dict[str, float]:
        """`shares`: that the processes feed of a batch; those that feed the same one leave out the same items."""
        metrics = jax.device_get(self.metrics)
        seconds = time.perf_counter() - self.started
        found = gather(np.array([self.waited, self.saving, *(self.skipped[kind] for kind in self.rows)]))
        waited, saving = found[:, :2].max(axis=0)  # the slowest process sets the pace
        left_out = dict(
            zip(self.rows, (found[:, 2:].sum(axis=0) * shares / len(found)).round().astype(int), strict=True)
        )
        self.usable = {kind: count - int(left_out[kind]) for kind, count in self.rows.items()}
        steps = step - self.first
        self.finite = [bool(m["finite"]) for m in metrics]
        finite = [m for m in metrics if m["finite"]]
        entry = {
            "step": step,
            "steps": steps,
            "loss": float(np.mean([m["loss"] for m in finite])) if finite else float("nan"),
            "gradient_norm": float(np.mean([m["norm"] for m in finite])) if finite else float("nan"),
            "seconds": seconds,
            "tokens_per_second": throughput.tokens * steps / seconds,
            "mfu": throughput.flops * steps / seconds / throughput.peak / jax.device_count(),
            "data_wait": float(waited / seconds),
            "checkpoint_wait": float(saving / seconds),
            "goodput": len(finite) / len(metrics) * float(max(0.0, 1 - (waited + saving) / seconds)),
            **peak_memory(),
            "not_finite": len(metrics) - len(finite),
            "skipped": int(sum(left_out.values())),
        }
        for name in finite[0].get("losses", ()) if finite else ():
            entry[f"loss/part/{name}"] = float(np.mean([m["losses"][name] for m in finite]))
        if finite and "sums" in finite[0]:
            entry |= by_group(Sums(*np.sum([m["sums"] for m in finite], axis=0)), "loss/")
        return entry


def peak_memory() -> dict[str, float]:
    """The most bytes in use on the fullest device so far, in GiB; a CPU does not say."""
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return {"memory_gib": max(used) / 2**30} if any(used) else {}


class _Line:
    """One progress line, rewritten in place on a terminal."""

    def __init__(self, name: str, steps: int, quiet: bool):
        self.name, self.steps, self.quiet = name, steps, quiet
        self.terminal = sys.stderr.isatty()
        self.created = self.started = time.perf_counter()
        self.first: float | None = None

    def show(self, entry: dict[str, float]) -> None:
        if self.quiet:
            return
        step = entry["step"]
        # the first window holds the compilation; the estimate starts after it
        if self.first is None:
            self.first, self.started = step, time.perf_counter()
            left = (time.perf_counter() - self.created) / entry["steps"] * (self.steps - step)
        else:
            left = (time.perf_counter() - self.started) / (step - self.first) * (self.steps - step)
        domains = " ".join(f"{d} {entry[f'loss/{d}']:.3f}" for d in DOMAINS if f"loss/{d}" in entry)
        text = (
            f"{self.name} {step}/{self.steps}  loss {entry['loss']:.3f}  {domains}{'  ' if domains else ''}"
            f"{entry['tokens_per_second']:,.0f} tok/s  MFU {entry['mfu']:.0%}  "
            f"ETA {int(left) // 60}:{int(left) % 60:02d}"
        )
        if "held_out/loss" in entry:
            text += f"  held out {entry['held_out/loss']:.3f}"
        if entry["skipped"]:
            text += f"  skipped {entry['skipped']}"
        if entry["not_finite"]:
            text += f"  not finite {entry['not_finite']}"
        print(
            f"\r\033[K{text}" if self.terminal else text,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self.terminal and not self.quiet:
            print(file=sys.stderr)
