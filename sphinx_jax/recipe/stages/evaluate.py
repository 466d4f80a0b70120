"""The evaluation stage: the model on held-out questions, beside two honest baselines.

*Majority* is the best constant answer per kind of question, chosen on the training split; *blind* is the same model
with the picture withheld.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import MinLen

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, need
from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.sources import some
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.evaluate.baseline import best_constant
from sphinx_jax.evaluate.metrics import METRICS
from sphinx_jax.evaluate.record import Record
from sphinx_jax.evaluate.scores import tabulate
from sphinx_jax.generate.engine import Engine, Request
from sphinx_jax.generate.pictures import Picture
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import blueprint, held_dtypes
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.progress import progress
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import Count, Name, Settings
from sphinx_jax.sharding import serving_mesh
from sphinx_jax.train.features import pictures_hash

# what an answer may take at most: the published evaluation's 10 for short answers and 30 for boxes, more where an
# answer lists many things
SHORT, LONG = 32, 128
LONG_TASKS = (
    "grounded_caption",
    "detailed_caption",
    "detection",
    "text_detection",
    "text_spotting",
    "layout",
    "pose",
    "chart",
)
# training answers that a constant answer is chosen on, per task and domain
BASELINE_ANSWERS = 2000


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateStage(Settings):
    start: Name  # a stage or a checkpoint folder
    domains: Annotated[tuple[Name, ...], MinLen(1)] = DOMAINS
    split: Name = "test"
    tasks: Annotated[tuple[Name, ...], MinLen(1)] | None = None  # None: all that occur
    limit: Count | None = None  # questions per task and domain
    batch: Count = 64


@dataclass(frozen=True)
class Question:
    domain: str
    picture: int
    task: str
    kind: str
    question: str
    answer: str
    system: str | None = None


def questions(run: Run, s: EvaluateStage) -> list[Question]:
    """Every turn of the held-out pictures as a question of its own.

    Raises ConfigError where there is none to ask.
    """
    found, counts = [], collections.Counter()
    for domain in s.domains:
        for picture, item in enumerate(run.data.items(s.split, domain)):
            kinds = item.kinds or ("",) * len(item.turns)
            for task, kind, (question, answer) in zip(item.tasks, kinds, item.turns, strict=True):
                if task not in METRICS or (s.tasks is not None and task not in s.tasks):
                    continue
                counts[domain, task] += 1
                if s.limit is None or counts[domain, task] <= s.limit:
                    found.append(Question(domain, picture, task, kind, question, answer, item.system))
    if not found:
        raise ConfigError(
            f"no question of the {s.split} split in domains {some(s.domains)} has a task that is scored"
            f'{f", of {some(s.tasks)}" if s.tasks else ""}; give items a "task", e.g. "vqa"'
        )
    return found


def evaluate(run: Run, name: str, settings: EvaluateStage) -> None:
    """Write `predictions.jsonl` and `scores.json` into the stage's folder."""
    s = settings
    # first: what cannot be had is told before pictures are made
    leaves = run.leaves(s.start, held_dtypes(run.recipe.model))
    asked = questions(run, s)
    features = {domain: need(run.features(leaves, s.split, domain)) for domain in s.domains}
    for domain, cache in features.items():
        for picture, why in cache.bad.items():
            _log.warning("not asked about picture %d of %s %s: %s", picture, domain, s.split, why)
    asked = [q for q in asked if q.picture not in features[q.domain].bad]
    # pictures were encoded on the recipe's mesh
    mesh = serving_mesh(run.recipe.model.decoder)
    shardings = blueprint(run.recipe.model).shardings(mesh)
    placed = {path: jax.device_put(leaves.pop(path), shardings[path]) for path in list(leaves)}
    engine = Engine(Sphinx(run.recipe.model, placed, run.tokenizer, mesh), slots=s.batch)

    def seen_of(q: Question) -> Picture:
        row = features[q.domain][q.picture]
        return Picture(f"{q.domain} {q.picture}", features=Features(*(row.get(n) for n in Features._fields)))

    folder = run.folder(name)
    record = Record(folder / "answers.jsonl", fingerprint(run, s, asked))
    seen = answer(run, engine, asked, seen_of, record, "answering")
    blind = answer(run, engine, asked, None, record, "answering blind")
    constant = constants(run, s, asked)
    rows = []
    for question, with_picture, without in zip(asked, seen, blind, strict=True):
        majority = constant[question.task, question.domain][question.kind]
        texts = {"prediction": with_picture, "blind": without, "majority": majority}
        fn = METRICS[question.task].fn
        rows.append(asdict(question) | texts | {"score": {k: fn(t, question.answer) for k, t in texts.items()}})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "scores.json").write_text(json.dumps(tabulate(rows, s.domains), indent=2))
    record.remove()


def fingerprint(run: Run, s: EvaluateStage, asked: Sequence[Question]) -> dict[str, Any]:
    """What answers depend on: the questions, the pictures, and the checkpoint as it was written."""
    questions = json.dumps([asdict(q) for q in asked]).encode()
    pictures = [pictures_hash(run.data.items(s.split, domain)) for domain in s.domains]
    found: dict[str, Any] = {"questions": hashlib.sha256(questions).hexdigest(), "pictures": pictures}
    if s.start != "fresh":
        made = run.checkpoint(s.start) / store.RECIPE
        found |= {"checkpoint": hashlib.sha256(made.read_bytes()).hexdigest()}
        found |= {"written": made.stat().st_mtime_ns if isinstance(made, Path) else None}
    return found


def answer(
    run: Run,
    engine: Engine,
    asked: Sequence[Question],
    picture: Callable[[Question], Picture] | None,
    record: Record,
    doing: str,
) -> list[str]:
    """Greedy answers, each question alone; without `picture` it is withheld. Those on record are not asked again."""
    keys = [f"{'blind' if picture is None else 'seen'} {number}" for number in range(len(asked))]
    left = [number for number, key in enumerate(keys) if key not in record.texts]

    def request(q: Question) -> Request:
        text, _ = render([(q.question, None)], SYSTEM if q.system is None else q.system)
        budget = LONG if q.task in LONG_TASKS else SHORT
        return Request(text, None if picture is None else picture(q), max_new_tokens=budget, temperature=0.0)

    with progress(total=len(asked), initial=len(asked) - len(left), desc=doing, unit="q", disable=run.quiet) as bar:
        for number, (said,) in engine.as_completed(request(asked[number]) for number in left):
            record.add(keys[left[number]], said.text)
            bar.update()
    return [record.texts[key] for key in keys]


def constants(run: Run, s: EvaluateStage, asked: Sequence[Question]) -> dict[tuple[str, str], dict[str, str]]:
    """(task, domain) -> kind -> the constant answer that scores best on the training split."""
    wanted = {(q.task, q.domain) for q in asked}
    pool: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)
    for domain in s.domains:
        for item in run.data.items("train", domain):
            kinds = item.kinds or ("",) * len(item.turns)
            for task, kind, (_, text) in zip(item.tasks, kinds, item.turns, strict=True):
                if (task, domain) in wanted and len(pool[task, domain]) < BASELINE_ANSWERS:
                    pool[task, domain].append((kind, text))
    chosen = {}
    for (task, domain), rows in pool.items():
        kinds, texts = zip(*rows, strict=True)
        chosen[task, domain] = best_constant(task, kinds, texts)
    # a kind or task that training lacks has no majority
    return {key: collections.defaultdict(str, chosen.get(key, {})) for key in wanted}
