"""The evaluation stage: the model on held-out questions, beside two honest baselines.

*Majority* is the best constant answer per kind of question, chosen on the training split; *blind* is the same model
with the picture withheld.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import MinLen

from sphinx_jax import distributed
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError
from sphinx_jax.data.answer_grammar import TASKS
from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.image import BadImage
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.sources import some
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.distributed import gather_json
from sphinx_jax.evaluate.baseline import best_constant
from sphinx_jax.evaluate.metrics import METRICS
from sphinx_jax.evaluate.record import Record
from sphinx_jax.evaluate.scores import tabulate
from sphinx_jax.generate.batching.pictures import Detail, Picture
from sphinx_jax.generate.engine import Engine, Request
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import blueprint, held_dtypes
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.progress import progress
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import Count, Name, Settings
from sphinx_jax.sharding import device_bytes, serving_mesh
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
    detail: Detail = "high"
    constrained: bool = False  # answers whose task has a form keep to it


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
    """Write `predictions.jsonl` and `scores.json` into the stage's folder.

    Several processes share the pictures out, each with a model of its own on its devices.
    """
    s, count = settings, jax.process_count()
    mesh = serving_mesh(run.recipe.model.decoder, jax.local_devices())
    # first: what cannot be had is told before pictures are made
    if count > 1:
        check_room(blueprint(run.recipe.model).abstract(mesh, held_dtypes(run.recipe.model)), jax.local_devices()[0])
    leaves = run.leaves(s.start, held_dtypes(run.recipe.model), mesh=mesh if count > 1 else None)
    asked = questions(run, s)
    features = {domain: run.features(leaves, s.split, domain) for domain in s.domains}
    # pictures were encoded on the recipe's mesh
    shardings = blueprint(run.recipe.model).shardings(mesh)
    placed = {path: jax.device_put(leaves.pop(path), shardings[path]) for path in list(leaves)}
    engine = Engine(Sphinx(run.recipe.model, placed, run.tokenizer, mesh), slots=s.batch)

    def look(q: Question) -> Picture:
        image = run.data.items(s.split, q.domain)[q.picture].image
        cache = features[q.domain]
        if cache is None:
            return engine.pictures.picture(image or b"")
        row = cache[q.picture]
        pixels = engine.pictures.picture(image or b"").pixels if s.detail == "auto" else None
        return Picture(f"{q.domain} {q.picture}", pixels, Features(*(row.get(n) for n in Features._fields)))

    folder = run.folder(name)
    record = Record(folder, fingerprint(run, s, asked), jax.process_index())
    mine = share(asked, jax.process_index(), count)
    answer(run, s, engine, mine, look, record)
    answer(run, s, engine, {n: q for n, q in mine.items() if key(n) in record.texts}, None, record)
    constant = constants(run, s, asked)  # in all processes, which open data together
    keys = [key(n, blind) for n in mine for blind in (False, True)]
    texts = functools.reduce(operator.or_, gather_json({k: record.texts[k] for k in keys if k in record.texts}))
    if not texts:
        raise ConfigError(f"no picture of the {s.split} split in domains {some(s.domains)} could be read")
    if jax.process_index() == 0:
        write(s, folder, asked, texts, constant)
        record.remove()


def check_room(leaves: Mapping[str, jax.ShapeDtypeStruct], device: jax.Device) -> None:
    """Raises ConfigError where a process has too few devices for a model of its own."""
    room = (device.memory_stats() or {}).get("bytes_limit")
    size = device_bytes(leaves)
    if room and size > room:
        raise ConfigError(
            f"the model takes {size / 2**30:.1f} GiB of each device of this process, which has {room / 2**30:.1f}; "
            "evaluate in fewer processes that have more devices each"
        )


def share(asked: Sequence[Question], process: int, count: int) -> dict[int, Question]:
    """Number -> question of those that one of so many processes asks: all about a picture, or none."""
    return {n: asked[n] for n in distributed.share([(q.domain, q.picture) for q in asked], process, count)}


def key(number: int, blind: bool = False) -> str:
    """Of the answer to a question, on record."""
    return f"{'blind' if blind else 'seen'} {number}"


def write(
    s: EvaluateStage,
    folder: Path,
    asked: Sequence[Question],
    texts: Mapping[str, str],
    constant: Mapping[tuple[str, str], Mapping[str, str]],
) -> None:
    """Predictions and scores, beside constant answers; of pictures that could not be read there are none."""
    rows = []
    for number, question in enumerate(asked):
        if key(number) not in texts:
            continue
        majority = constant[question.task, question.domain][question.kind]
        given = {"prediction": texts[key(number)], "blind": texts[key(number, blind=True)], "majority": majority}
        fn = METRICS[question.task].fn
        rows.append(asdict(question) | given | {"score": {k: fn(t, question.answer) for k, t in given.items()}})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "scores.json").write_text(json.dumps(tabulate(rows, s.domains), indent=2))


def fingerprint(run: Run, s: EvaluateStage, asked: Sequence[Question]) -> dict[str, Any]:
    """What answers depend on: the questions, the pictures, and the checkpoint as it was written."""
    questions = json.dumps([asdict(q) for q in asked]).encode()
    pictures = [pictures_hash(run.data.items(s.split, domain)) for domain in s.domains]
    how = {"detail": s.detail, "constrained": s.constrained}
    found: dict[str, Any] = how | {"questions": hashlib.sha256(questions).hexdigest(), "pictures": pictures}
    if s.start != "fresh":
        made = run.checkpoint(s.start) / store.RECIPE
        found |= {"checkpoint": hashlib.sha256(made.read_bytes()).hexdigest()}
        found |= {"written": made.stat().st_mtime_ns if isinstance(made, Path) else None}
    return found


def answer(
    run: Run,
    s: EvaluateStage,
    engine: Engine,
    asked: Mapping[int, Question],
    look: Callable[[Question], Picture] | None,
    record: Record,
) -> None:
    """Put greedy answers on record, each question alone; without `look` the picture is withheld.

    Those on record are not asked again, and those whose picture cannot be read are left out.
    """
    blind = look is None
    left = [(n, q) for n, q in asked.items() if key(n, blind) not in record.texts]
    groups = [list(g) for _, g in itertools.groupby(left, lambda one: (one[1].domain, one[1].picture))]
    numbers: list[int] = []

    def requests() -> Iterator[Request]:
        shown = itertools.repeat(None) if look is None else read_ahead(look, [group[0][1] for group in groups])
        for group, picture in zip(groups, shown, strict=False):
            try:
                image = picture and picture.result()
            except BadImage as error:
                q = group[0][1]
                _log.warning("not asked about picture %d of %s %s: %s", q.picture, q.domain, s.split, error)
                bar.update(len(group))
                continue
            for number, q in group:
                numbers.append(number)
                yield request(s, q, image)

    doing = "answering blind" if blind else "answering"
    with progress(total=len(asked), initial=len(asked) - len(left), desc=doing, unit="q", disable=run.quiet) as bar:
        for place, (said,) in engine.as_completed(requests()):
            record.add(key(numbers[place], blind), said.text)
            bar.update()


def request(s: EvaluateStage, q: Question, image: Picture | None) -> Request:
    text, _ = render([(q.question, None)], SYSTEM if q.system is None else q.system)
    return Request(
        text,
        image,
        max_new_tokens=LONG if q.task in LONG_TASKS else SHORT,
        temperature=0.0,
        detail=s.detail,
        task=q.task if s.constrained and q.task in TASKS else "",
    )


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
