"""Many processes as one run: how they find each other, and what happens when one is gone.

Each process of a run has a parent that waits for it.  When a process dies, the runtime of the others ends them from
within, without a Python exception; the parent is what is left to say so, and how the work goes on.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sphinx_jax.command import LOST, Stopped, plain_errors
from sphinx_jax.config import ConfigError

CHILD = "SPHINX_JAX_CHILD"  # set for the process that does the work


class Cluster(NamedTuple):
    """Where the processes of a run meet; what is None JAX finds out from the scheduler or the TPU."""

    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    process: int | None = None


def find_cluster(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    asked: bool | None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """What flags or the environment say of this run; None where it is a process of its own.

    Flags come first, then `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, then what
    schedulers set (SLURM, Open MPI, TPU workers).  `asked`: True leaves it to JAX to find out (a TPU pod slice has
    no such variables), False wants a process of its own whatever is set.

    Raises ConfigError for some of the three without the others, or a number that does not fit.
    """
    if asked is False:
        return None
    given = (coordinator, processes, process)
    if all(value is None for value in given):
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        found = [environment.get(name) for name in names]
        if any(found):
            if not all(found) or not (found[1].isdigit() and found[2].isdigit()):
                raise ConfigError(f"{', '.join(names)} go together: an address and two numbers, not {found}")
            given = (found[0], int(found[1]), int(found[2]))
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise ConfigError("--coordinator HOST:PORT, --processes N and --process I go together")
        cluster = Cluster(*given)
        if ":" not in cluster.coordinator:
            raise ConfigError(f"--coordinator {cluster.coordinator} has no port; give HOST:PORT of process 0")
        if not 0 <= cluster.process < cluster.processes:
            raise ConfigError(
                f"--process {cluster.process} of {cluster.processes}: they are numbered 0 to {cluster.processes - 1}"
            )
        return cluster
    return Cluster() if asked or _scheduled(environment) else None


def _scheduled(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler started more than this process."""
    counts = (environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(count.isdigit() and int(count) > 1 for count in counts) or "," in environment.get(
        "TPU_WORKER_HOSTNAMES", ""
    )


def connect(cluster: Cluster, heartbeat: int) -> None:
    """Wait for the other processes; from here on `jax.devices()` are those of all.

    `heartbeat`: seconds without a sign of life after which a process counts as gone.
    """
    try:
        jax.distributed.initialize(
            cluster.coordinator, cluster.processes, cluster.process, heartbeat_timeout_seconds=heartbeat
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes of the run did not meet: {str(error).splitlines()[0]}") from None


def supervise(workdir: Path, newest: Callable[[Path], tuple[str, int] | None]) -> int:
    """Run this command again as a child, hand signals on to it, and say how the work goes on if it is lost.

    `newest`: workdir -> the stage and step that a new run would go on from.  Returns the exit status: the child's,
    or `LOST` where the child was ended by a signal or lost the others.
    """
    child = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | {CHILD: "1"})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    status = child.wait()
    if status == -signal.SIGTERM:  # before there was a step to save
        return 128 + signal.SIGTERM
    if status >= 0 and status not in (LOST, 128 + signal.SIGABRT):
        return status
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else "lost the others"
    found = newest(workdir)
    where = f"step {found[1]} of {found[0]}" if found else "the beginning"
    print(
        f"error: this process {how}: another process of the run is gone, or the machine was short of memory. The same "
        f"command, with as many processes as there are now, goes on from {where}.",
        file=sys.stderr,
    )
    return LOST


def agree(problem: str | None) -> None:
    """Every process learns here whether process 0 has met a `problem`.  Raises ConfigError in all of them if so."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(problem is not None)))
        if failed and problem is None:
            problem = "process 0 cannot begin; its own message says why"
    if problem is not None:
        raise ConfigError(problem)


def first_checks(look: Callable[[], object]) -> None:
    """Process 0 alone looks; a ConfigError of its is one in every process."""
    problem = None
    if jax.process_index() == 0:
        try:
            look()
        except ConfigError as error:
            problem = str(error)
    agree(problem)


def share(about: Sequence[Hashable], process: int, count: int) -> list[int]:
    """Numbers of the things that one of so many processes takes: of those about the same all, or none."""
    sizes = collections.Counter(about)
    whose, load = {}, [0] * count
    for one, size in sizes.items():
        whose[one] = min(range(count), key=lambda p: load[p])  # who has the fewest so far
        load[whose[one]] += size
    return [n for n, one in enumerate(about) if whose[one] == process]


def gather(mine: np.ndarray) -> np.ndarray:
    """An array (n,) of each process -> (processes, n) of all of them, the same in each."""
    if jax.process_count() == 1:
        return mine[None]
    from jax.experimental import multihost_utils

    # as bytes: JAX would make 64 bits 32
    found = multihost_utils.process_allgather(mine.view(np.uint8))
    return np.ascontiguousarray(found).view(mine.dtype)


def gather_json(mine: Any) -> list[Any]:
    """What JSON can say, of each process -> that of all of them, the same in each."""
    if jax.process_count() == 1:
        return [mine]
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = gather(np.array([len(text)]))[:, 0]
    padded = gather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(padded, lengths, strict=True)]


def barrier(name: str) -> None:
    """Every process waits here for the others."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def leaving_alone() -> Iterator[None]:
    """A process that fails within ends at once: JAX would wait minutes for the others, which wait for it.

    It also ends with its parent, which is the process that people see and kill.
    """
    with contextlib.suppress(AttributeError, OSError):  # Linux has it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        yield
    except Stopped:  # all of them leave
        raise
    except BaseException as error:
        # what the runtime raises where another is gone looks like any failure of its own
        status = LOST if isinstance(error, RuntimeError) else 1
        try:
            with plain_errors():
                raise
        except SystemExit as end:
            print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(2)  # all meet through it: those that fail alike have their say first
        os._exit(status)


@contextlib.contextmanager
def one_first(name: str) -> Iterator[None]:
    """Process 0 goes through the block before the others do: what it leaves on a shared disk they find."""
    if jax.process_index() > 0:
        barrier(name)
    yield
    if jax.process_index() == 0:
        barrier(name)
