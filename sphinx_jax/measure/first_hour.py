"""The quickstart of two versions of this code, one after the other on the same machine: minutes and scores."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

LOST = 0.02  # of a task's score, which is told
COMMAND = ("-m", "sphinx_jax.main", "--config", "configs/quickstart.py")


class Run(NamedTuple):
    """seconds: of all, and by stage; scores: by task."""

    seconds: float
    stages: dict[str, float]
    scores: dict[str, float]

    @property
    def score(self) -> float:
        return float(np.mean(list(self.scores.values())))


def measure(repository: Path, revision: str, folder: Path, settings: Sequence[str] = ()) -> Iterator[str]:
    """Run the quickstart of a revision of the repository, then that of its working tree, and compare.

    Each begins with nothing: no data, no compiled programs.

    Args:
      folder: for the revision's files, both runs and their logs; one that is there already is not run again.
      settings: of the recipe, as flags.

    Raises ValueError where there is no such revision, or a run fails.
    """
    old = folder / "old"
    if not old.exists():
        made = subprocess.run(["git", "archive", revision], cwd=repository, capture_output=True)
        if made.returncode:
            why = " ".join(made.stderr.decode(errors="replace").split())
            raise ValueError(f"revision {revision}: {why}; a clone with --depth lacks what is older")
        with tarfile.open(fileobj=io.BytesIO(made.stdout)) as files:
            files.extractall(part := folder / "old.part", filter="data")
        part.rename(old)
    runs = []
    for name, tree, kept in ((revision, old, "run-old"), ("now", repository, "run-now")):
        runs.append(_run(tree.absolute(), (folder / kept).absolute(), settings))
        stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in runs[-1].stages.items())
        yield f"{name}: {runs[-1].seconds / 60:.1f} min, mean score {runs[-1].score:.4f}; seconds of stages: {stages}"
    before, now = runs
    yield f"{now.seconds / before.seconds:.2f} x the time, scores {now.score - before.score:+.4f}"
    for task, score in before.scores.items():
        if (found := now.scores.get(task, 0.0)) < score - LOST:
            yield f"{task}: {score:.3f} before, {found:.3f} now"


def _run(tree: Path, folder: Path, settings: Sequence[str]) -> Run:
    """The quickstart of a tree from nothing to its scores."""
    kept = folder / "seconds.json"
    workdir = folder / "run"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = {"PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
        begun = time.perf_counter()
        with (folder / "log").open("wb") as log:
            command = [sys.executable, *COMMAND, "--workdir", str(workdir), *settings]
            done = subprocess.run(command, cwd=tree, env=os.environ | beside, stdout=log, stderr=log)
        if done.returncode:
            raise ValueError(f"the quickstart of {tree} failed; see {folder / 'log'}")
        kept.write_text(json.dumps(time.perf_counter() - begun))
    stages = {path.parent.name: json.loads(path.read_text())["seconds"] for path in workdir.glob("*/done.json")}
    tasks = json.loads((workdir / "scores.json").read_text())["tasks"]
    return Run(json.loads(kept.read_text()), stages, {name: task["value"] for name, task in tasks.items()})
