"""Every check that wants an accelerator, by one command: each in a process of its own, and a table of what was found.

A process gives its memory back, and one that crashes costs its own rows alone; this one does not touch the device.
What a check found is kept as a line of JSON when it ends, so the same command goes on after an interruption.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.measure.device.rows import Row, Setting, reason
from sphinx_jax.paths import PROGRAMS, write_whole


class Failed(ValueError):
    """Checks that did not come to an end, or found what is over its bound."""


@dataclass(frozen=True)
class Check:
    name: str
    seconds: float  # at most, with its start and what it compiles; what earlier ones leave of theirs is added
    about: str
    work: str  # module:function, of a `Setting` and the time.time() to be done by, that gives rows one by one
    options: tuple[tuple[str, Any], ...] = ()  # of the function


_HERE = "sphinx_jax.measure.device."
CHECKS = (
    Check("parity", 110, "logits beside the reference's", _HERE + "parity:check"),
    Check("decode", 70, "a token of the decoder", _HERE + "decode:check"),
    Check("step", 160, "the published training step", _HERE + "step:check"),
    Check("int8", 45, "the same, matrices in 8 bits", _HERE + "decode:check", (("quantize", "int8"),)),
    Check("nf4", 45, "the same, matrices in 4 bits", _HERE + "decode:check", (("quantize", "nf4"),)),
    Check("saves", 60, "a checkpoint beside the steps", _HERE + "step:check_saves"),
)
START = 45  # seconds that the device has to say what it is
MARGIN = 10  # seconds before its limit that a check should be done by
IDENTITY = ("device", "jax", "jaxlib", "driver")  # lines with another of these are of another table
Line = dict[str, Any]  # of the file: a check, what it ran on, when, and its rows


def run(
    setting: Setting,
    out: Path | None = None,
    only: Sequence[str] = (),
    fresh: bool = False,
    checks: Sequence[Check] = CHECKS,
) -> Iterator[str]:
    """Progress, then the table, of the checks (those named, else all); `out` keeps them, and what it has is not run.

    `out` is runs/device/<name of the device>.jsonl by default; `fresh` runs the checks anew.

    Raises:
      ConfigError: `only` names no check, `out` is another file, or there is no device.
      Failed: at the end, where a row failed.
    """
    by_name = {check.name: check for check in checks}
    for name in only:
        if name not in by_name:
            raise unknown("check", name, by_name)
    chosen = [check for check in checks if not only or check.name in only]
    _environment()
    here = _identify(setting)
    out = out or Path("runs") / "device" / f"{slug(here['device'])}.jsonl"
    lines = read(out)
    if fresh:
        lines = [line for line in lines if not (_same(line, here) and line["check"] in {c.name for c in chosen})]
    have = {line["check"] for line in lines if _same(line, here)}
    todo = [check for check in chosen if check.name not in have]
    yield f"{here['count']} x {title(here)}: {len(todo)} of {len(chosen)} checks to run; kept in {out}"
    out.parent.mkdir(parents=True, exist_ok=True)
    begun, allowed = time.monotonic(), 0.0
    for number, check in enumerate(todo, 1):
        allowed += check.seconds
        limit = allowed - (time.monotonic() - begun)
        yield f"[{number}/{len(todo)}] {check.name}: {check.about}, {check.seconds:.0f} s at most"
        started = time.monotonic()
        # made here, and so gone too where the check is killed
        with tempfile.TemporaryDirectory(prefix=f"{check.name}-", dir=out.parent) as scratch:
            on_disk = dataclasses.replace(setting, scratch=str(Path(scratch).absolute()))
            rows = run_check(check, on_disk, limit, out.with_suffix(f".{check.name}.log"))
        line = {"check": check.name, **{key: here[key] for key in IDENTITY}, "count": here["count"]}
        line |= {"date": datetime.date.today().isoformat(), "seconds": round(time.monotonic() - started, 1)}
        lines.append(line | {"rows": [dataclasses.asdict(row) for row in rows]})
        write_whole(out, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for row in rows:
            yield f"    {row.what}: {row.result}"
    yield ""
    order = {check.name: number for number, check in enumerate(checks)}
    shown = [line for line in lines if _same(line, here) and line["check"] in order]
    shown.sort(key=lambda line: order[line["check"]])
    yield from table(shown)
    failed = [line["check"] for line in shown if not all(row["ok"] for row in line["rows"])]
    if failed:
        raise Failed(f"{', '.join(failed)}: see the table; --fresh --only {' '.join(failed)} tries again")


def table(lines: Sequence[Line]) -> Iterator[str]:
    """Markdown, of one device: what it is and when it was asked, then a row for everything that was measured."""
    if not lines:
        return
    days = sorted({line["date"] for line in lines})
    yield f"{title(lines[0])}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"
    yield ""
    yield "| check | what | result | memory |"
    yield "|---|---|---|--:|"
    for line in lines:
        for row in line["rows"]:
            memory = "" if row["memory"] is None else f"{row['memory']:.1f} GiB"
            cells = (line["check"], row["what"], row["result"], memory)
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def title(here: Line) -> str:
    """The device and the versions that numbers depend on."""
    words = (here["device"], f"jax {here['jax']}", f"jaxlib {here['jaxlib']}", here["driver"])
    return ", ".join(filter(None, words))


def slug(device: str) -> str:
    """A device's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"


def read(out: Path) -> list[Line]:
    """The lines that earlier runs left.  Raises ConfigError for a file of something else."""
    lines = []
    for number, text in enumerate(out.read_text().splitlines() if out.exists() else (), 1):
        try:
            line = json.loads(text)
            _ = line["rows"], line["check"], line["date"], [line[key] for key in IDENTITY]
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"line {number} of {out} is not of this command; give another --out") from None
        lines.append(line)
    return lines


def run_check(check: Check, setting: Setting, limit: float, log: Path) -> list[Row]:
    """Rows of a check that has `limit` seconds, the last one saying why where it did not come to its end.

    What it and the libraries below it write goes to `log`, which is kept where a check fails.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    ends = time.monotonic() + limit
    deadline = time.time() + max(1.0, limit - MARGIN)
    child = context.Process(target=_carry_out, args=(check, setting, deadline, theirs, str(log)), daemon=True)
    rows: list[Row] = []
    try:
        child.start()
        theirs.close()
        why = _collect(ours, ends, rows)
        child.join(20)
    except TimeoutError:
        why = f"took longer than {limit:.0f} s and was stopped"
    finally:
        child.kill()
        child.join()
    if why is None:
        why = _end_of(child.exitcode, log)
    if why:
        rows.append(Row(check.about, f"failed: {why}", ok=False))
    else:
        log.unlink(missing_ok=True)
    return rows


def _collect(ours: Connection, ends: float, rows: list[Row]) -> str | None:
    """Take in rows until the check says that it is done (an empty text), or why not; None where it ends without a word.

    Raises TimeoutError where it has not ended by `ends`, of time.monotonic().
    """
    while True:
        if not ours.poll(max(0.0, ends - time.monotonic())):
            raise TimeoutError
        try:
            kind, said = ours.recv()
        except EOFError:
            return None
        if kind == "row":
            rows.append(said)
        else:
            return said


def _end_of(code: int | None, log: Path) -> str:
    """How a process ended that did not say so itself."""
    words = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = f": {' '.join(words[-1].split())[:120]}" if words else ""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}{last}"
    return f"ended with status {code}{last}"


def _carry_out(check: Check, setting: Setting, deadline: float, theirs: Connection, log: str) -> None:
    """In the check's own process: rows as they are found, then an empty text, or why there are no more."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        for row in _function(check)(setting, deadline):
            theirs.send(("row", row))
        theirs.send(("done", ""))
    except Exception as error:
        traceback.print_exc()
        theirs.send(("done", reason(error)))


def _function(check: Check) -> Callable[[Setting, float], Iterable[Row]]:
    module, _, name = check.work.partition(":")
    return functools.partial(getattr(importlib.import_module(module), name), **dict(check.options))


def _identify(setting: Setting) -> Line:
    """What the device is, asked in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Check("device", START, "the device", f"{__name__}:{describe.__name__}")
        (row,) = run_check(asked, setting, START, Path(folder) / "log")
    if not row.ok:
        raise ConfigError(f"no device answered: {row.result.removeprefix('failed: ')}"[:290])
    return row.numbers


def describe(setting: Setting, deadline: float) -> Iterator[Row]:
    """The device and its versions, as the numbers of a row."""
    from sphinx_jax.measure.device import hardware

    yield Row("device", "", numbers=hardware.describe())


def _same(line: Line, here: Line) -> bool:
    return all(line[key] == here[key] for key in IDENTITY)


def _environment() -> None:
    """What the checks' processes start with: nearly all of a GPU's memory, and programs that are compiled once."""
    if not any(name in os.environ for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.95"  # jax refuses to be given both names
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
