"""The show stage: `scores.json`, `report.html` and pictures in the workdir, and the table in the terminal."""

from __future__ import annotations

import collections
import json
import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.image import load_image
from sphinx_jax.evaluate.metrics import METRICS
from sphinx_jax.paths import write_whole
from sphinx_jax.recipe.run import Run, seconds
from sphinx_jax.report.card import Card
from sphinx_jax.report.card_files import CARD, PAGE, lines_of
from sphinx_jax.report.drawing import encoded
from sphinx_jax.report.page import Beside, Sample, format_table, write_report
from sphinx_jax.settings import Count, Name, Settings
from sphinx_jax.train.history import read_history
from sphinx_jax.train.tally import seen_by

EXAMPLE = "example.png"  # a held-out picture, to ask about
TAUGHT = "example.json"  # what is known of it, in the form of people's own lists


@dataclass(frozen=True)
class ShowStage(Settings):
    evaluate: Name = "evaluate"  # the stage whose scores are shown
    mix: Name | None = "mix"  # the stage whose β curve is shown
    card: Name | None = None  # the stage whose card of benchmarks is shown
    split: Name = "test"
    samples: Count = 24  # held-out questions in the picture grid


def show(run: Run, name: str, settings: ShowStage) -> None:
    s = settings
    scores = _result(run, s.evaluate, "scores.json")
    if s.mix is not None:
        scores["beta"] = _result(run, s.mix, "beta.json")
    card = None
    if s.card is not None:
        card = Card(lines_of(_result(run, s.card, CARD)), f"{s.card}/{PAGE}")
    timings = seconds(run)
    scores["seconds"] = sum(timings.values())
    histories = {n: read_history(run.folder(n)) for n in run.recipe.stages}
    config = (run.workdir / "config.json").read_text()
    rows = chosen(run, s)
    drawn = [_sample(run, s, row) for row in rows]
    report = write_report(
        run.workdir,
        title=run.recipe.title,
        intro=[" ".join(run.recipe.about), f"config.json\n{config}"],
        histories={n: h for n, h in histories.items() if h},
        scores=scores,
        samples=drawn,
        timings=timings,
        beside=Beside({n: found for n in run.recipe.stages if (found := seen_by(run.folder(n)))}, card),
    )
    (run.workdir / "scores.json").write_text(json.dumps(scores, indent=2))
    if drawn:
        write_whole(run.workdir / EXAMPLE, encoded(drawn[0].image, "PNG"))
        write_whole(run.workdir / TAUGHT, json.dumps([_as_listed(_item(run, s, rows[0]))], indent=2).encode())
    if not run.quiet:
        print(format_table(scores, colour=sys.stdout.isatty(), width=shutil.get_terminal_size((120, 24)).columns))
        for page in (report, *((run.workdir / card.page,) if card else ())):
            print(f"\n{page}")


def _result(run: Run, stage: str, file: str) -> dict[str, Any]:
    path = run.folder(stage) / file
    if not path.exists():
        raise ConfigError(f"there is no {path} yet; run stage {stage} first")
    return json.loads(path.read_text())


def _item(run: Run, s: ShowStage, row: Mapping[str, Any]) -> Item:
    return run.data.items(s.split, row["domain"])[row["picture"]]


def _sample(run: Run, s: ShowStage, row: Mapping[str, Any]) -> Sample:
    image = load_image(_item(run, s, row).image)
    values = (row[key] for key in ("task", "domain", "question", "answer", "prediction"))
    return Sample(image, *values, row["score"]["prediction"])


def _as_listed(item: Item) -> dict[str, Any]:
    """An item as an entry of a list, about the picture that lies beside it."""
    said = [
        {"from": who, "value": value} for turn in item.turns for who, value in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"image": EXAMPLE, "conversations": said}


def chosen(run: Run, s: ShowStage) -> list[dict[str, Any]]:
    """Questions of each task and domain in turn, drawn at random whatever their score."""
    rows = [json.loads(line) for line in (run.folder(s.evaluate) / "predictions.jsonl").open()]
    random.Random(run.recipe.seed).shuffle(rows)
    order = list(METRICS)
    rows.sort(key=lambda row: order.index(row["task"]))
    queues: dict[Any, collections.deque] = collections.defaultdict(collections.deque)
    for row in rows:
        queues[row["task"], row["domain"]].append(row)
    found: list[dict] = []
    while len(found) < min(s.samples, len(rows)):
        found += [queue.popleft() for queue in queues.values() if queue]
    return found[: s.samples]
