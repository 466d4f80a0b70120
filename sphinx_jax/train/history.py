"""What a stage says of its steps: `history.jsonl`, a line a log step, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sphinx_jax.paths import write_whole

FLUSH_SECONDS = 120  # as a SummaryWriter: an object store takes the whole file every time


class History:
    """history.jsonl and TensorBoard events, of the first process; lines beyond the step resumed from are dropped."""

    def __init__(self, folder: Path, start: int, leader: bool):
        self.seconds, self.leader = 0.0, leader
        if not leader:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "history.jsonl"
        old = self.path.read_text().splitlines() if self.path.exists() else []
        # the last line may be cut off where a process was killed
        self.lines = [entry for entry in old if entry.endswith("}") and json.loads(entry)["step"] <= start]
        self._rewrite()
        self.seconds = json.loads(self.lines[-1])["seconds"] if self.lines else 0.0
        self.events = _Events(folder / "tensorboard", start)

    def _rewrite(self) -> None:
        write_whole(self.path, "".join(f"{entry}\n" for entry in self.lines).encode())

    def write(self, entry: dict[str, float]) -> None:
        """Append a line; `seconds` becomes the time spent training up to it, over all attempts."""
        if not self.leader:
            return
        self.seconds += entry["seconds"]
        entry = entry | {"seconds": self.seconds}
        self.lines.append(json.dumps(entry))
        if isinstance(self.path, Path):
            with self.path.open("a") as file:
                file.write(self.lines[-1] + "\n")
        else:  # objects in a store cannot grow
            self._rewrite()
        self.events.write(entry)

    def amend(self, step: int, more: dict[str, float]) -> None:
        """Add to the line of a step, where it is the last."""
        if not self.leader or not self.lines or json.loads(self.lines[-1])["step"] != step:
            return
        self.lines[-1] = json.dumps(json.loads(self.lines[-1]) | more)
        self._rewrite()
        self.events.write({"step": step} | more)

    def close(self) -> None:
        if self.leader:
            self.events.close()


class _Events:
    """TensorBoard's file.

    It is written here and not by the thread of a `SummaryWriter`, which ends where it meets a full disk: what hands
    it the next numbers then waits for ever.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self.writer, self.flushed = EventsWriter(str(folder / "events")), 0.0
        # what an earlier attempt wrote of later steps does not count
        self._add(step=start, session_log=SessionLog(status=SessionLog.START))

    def write(self, entry: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for key, value in entry.items():
            if key != "step":
                self._add(step=entry["step"], summary=scalar(key, value))
        if time.time() - self.flushed > FLUSH_SECONDS:
            self.writer.flush()
            self.flushed = time.time()

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write_event(Event(wall_time=time.time(), **fields))

    def close(self) -> None:
        self.writer.close()


def read_history(folder: Path) -> list[dict[str, float]]:
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
