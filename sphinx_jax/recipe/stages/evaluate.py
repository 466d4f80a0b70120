"""The evaluation stage: the model on held-out questions, beside two honest baselines.

*Majority* is the best constant answer per kind of question, chosen on the training split; *blind* is the same model
with the picture withheld.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import MinLen
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError
from sphinx_jax.data.answer_grammar import TASKS
from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.sources import some
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.distributed import agree
from sphinx_jax.evaluate.answers import Answers, put_together
from sphinx_jax.evaluate.asked import Worded, ask, ask_blind, own, slots_for
from sphinx_jax.evaluate.baseline import best_constant
from sphinx_jax.evaluate.metrics import METRICS
from sphinx_jax.evaluate.question import Question
from sphinx_jax.evaluate.scores import tabulate
from sphinx_jax.generate.batching.pictures import Detail, Picture
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.request import Request
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import Leaves, blueprint, held_dtypes
from sphinx_jax.paths import remove, write_whole
from sphinx_jax.progress import compiling
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import Count, Name, Settings
from sphinx_jax.sharding import device_bytes, serving_mesh
from sphinx_jax.train.features import FeatureCache, pictures_hash

# what an answer may take at most: the published evaluation's 10 for short answers and 30 for boxes, more where an
# answer lists many things: a pose takes 172 where digits are tokens
SHORT, LONG = 32, 192
FIRST = 8  # questions with which most of what answers is compiled
SLOTS = 64  # answers at once, where the stage does not say
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
ANSWERS = "answers"  # a folder of the stage, until all are there


@dataclass(frozen=True)
class EvaluateStage(Settings):
    start: Name  # a stage or a checkpoint folder
    domains: Annotated[tuple[Name, ...], MinLen(1)] = DOMAINS
    split: Name = "test"
    tasks: Annotated[tuple[Name, ...], MinLen(1)] | None = None  # None: all that occur
    limit: Count | None = None  # questions per task and domain
    batch: Count | None = None  # answers at once; None: as suits the model and the device
    detail: Detail = "high"
    constrained: bool = False  # answers whose task has a form keep to it


def questions(run: Run, s: EvaluateStage) -> list[Question]:
    """Every turn of the held-out pictures as a question of its own, `source` what `predictions.jsonl` says of it.

    Raises ConfigError where there is none to ask.
    """
    found, counts = [], collections.Counter[tuple[str, str]]()
    for domain in s.domains:
        for number, item in enumerate(run.data.items(s.split, domain)):
            kinds, picture = item.kinds or ("",) * len(item.turns), f"{domain}/{number}"
            for turn, (task, kind, (text, answer)) in enumerate(zip(item.tasks, kinds, item.turns, strict=True)):
                if task not in METRICS or (s.tasks is not None and task not in s.tasks):
                    continue
                counts[domain, task] += 1
                if s.limit is None or counts[domain, task] <= s.limit:
                    source = {"domain": domain, "picture": number, "task": task, "kind": kind}
                    source |= {"question": text, "answer": answer, "system": item.system}
                    found.append(Question(f"{picture}:{turn}", text, picture, (answer,), source=source))
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
    s, process, count = settings, jax.process_index(), jax.process_count()
    mesh = serving_mesh(run.recipe.model.decoder, jax.local_devices())
    # first: what cannot be had is told before pictures are made
    if count > 1:
        check_room(blueprint(run.recipe.model).abstract(mesh, held_dtypes(run.recipe.model)), jax.local_devices()[0])
    leaves = run.leaves(s.start, held_dtypes(run.recipe.model), mesh=mesh if count > 1 else None)
    asked = questions(run, s)
    features = {domain: run.features(leaves, s.split, domain) for domain in s.domains}
    model = placed(run, leaves, mesh)  # pictures were encoded on the recipe's mesh
    engine = Engine(model, slots=s.batch or slots_for(model, SLOTS))

    folder, about, mine = run.folder(name), fingerprint(run, s, asked), own(asked, process, count)
    seen, blind = (Answers(folder / ANSWERS / which, about, process) for which in ("seen", "blind"))
    bars = ("", "") if run.quiet else ("answering", "answering blind")
    look = looking(run, s, engine, features)
    left = [q for q in mine if q.key not in seen.texts]
    with compiling(f"{name}, first answers of {run.recipe.model.name}", run.quiet or not left):
        ask(engine, left[:FIRST], worded(s), look, seen)
    ask(engine, left[FIRST:], worded(s), look, seen, bars[0])
    ask_blind(engine, [q for q in mine if q.key in seen.texts], worded(s), blind, bars[1])
    put_together(f"answered {name}", seen, blind)
    constant = constants(run, s, asked)  # in all processes, which open data together
    none = process == 0 and not blind.texts
    agree(f"no picture of the {s.split} split in domains {some(s.domains)} could be read" if none else None)
    if process == 0:
        write(s, folder, asked, seen.texts, blind.texts, constant)
        remove(folder / ANSWERS)


def placed(run: Run, leaves: Leaves, mesh: Mesh | None = None) -> Sphinx:
    """The recipe's model as it answers; its leaves, on any mesh, are taken over."""
    mesh = mesh or serving_mesh(run.recipe.model.decoder)
    shardings = blueprint(run.recipe.model).shardings(mesh)
    there = {path: jax.device_put(leaves.pop(path), shardings[path]) for path in list(leaves)}
    return Sphinx(run.recipe.model, there, run.tokenizer, mesh)


def looking(
    run: Run, s: EvaluateStage, engine: Engine, features: Mapping[str, FeatureCache | None]
) -> Callable[[Question], Picture]:
    """What finds the picture of a question, as encoded before where that is kept; raises BadImage."""

    def look(q: Question) -> Picture:
        domain, number = q.source["domain"], q.source["picture"]
        image = run.data.items(s.split, domain)[number].image
        cache = features[domain]
        if cache is None:
            return engine.pictures.picture(image or b"")
        row = cache[number]
        pixels = engine.pictures.picture(image or b"").pixels if s.detail == "auto" else None
        return Picture.encoded(str(q.picture), row, pixels)

    return look


def worded(s: EvaluateStage) -> Worded:
    """Questions as the data has them, each alone, answered greedily."""

    def request(q: Question, picture: Picture | None) -> Request:
        task, system = q.source["task"], q.source["system"]
        text, _ = render([(q.text, None)], SYSTEM if system is None else system)
        return Request(
            text,
            picture,
            max_new_tokens=LONG if task in LONG_TASKS else SHORT,
            temperature=0.0,
            detail=s.detail,
            task=task if s.constrained and task in TASKS else "",
        )

    return request


def check_room(leaves: Mapping[str, jax.ShapeDtypeStruct], device: jax.Device) -> None:
    """Raises ConfigError where a process has too few devices for a model of its own."""
    room = (device.memory_stats() or {}).get("bytes_limit")
    size = device_bytes(leaves)
    if room and size > room:
        raise ConfigError(
            f"the model takes {size / 2**30:.1f} GiB of each device of this process, which has {room / 2**30:.1f}; "
            "evaluate in fewer processes that have more devices each"
        )


def write(
    s: EvaluateStage,
    folder: Path,
    asked: Sequence[Question],
    seen: Mapping[int | str, str],
    blind: Mapping[int | str, str],
    constant: Mapping[tuple[str, str], Mapping[str, str]],
) -> None:
    """Predictions and scores, beside constant answers; of pictures that could not be read there are none."""
    rows = []
    for q in asked:
        if q.key not in blind:
            continue
        about = q.source
        majority = constant[about["task"], about["domain"]][about["kind"]]
        given = {"prediction": seen[q.key], "blind": blind[q.key], "majority": majority}
        fn = METRICS[about["task"]].fn
        rows.append({**about, **given, "score": {name: fn(text, about["answer"]) for name, text in given.items()}})
    write_whole(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_whole(folder / "scores.json", json.dumps(tabulate(rows, s.domains), indent=2).encode())


def fingerprint(run: Run, s: EvaluateStage, asked: Sequence[Question]) -> dict[str, Any]:
    """What answers depend on: the questions, the pictures, and the checkpoint as it was written."""
    questions = json.dumps([[q.key, q.source] for q in asked]).encode()
    pictures = [pictures_hash(run.data.items(s.split, domain)) for domain in s.domains]
    how = {"detail": s.detail, "constrained": s.constrained}
    found: dict[str, Any] = how | {"questions": hashlib.sha256(questions).hexdigest(), "pictures": pictures}
    if s.start != "fresh":
        made = run.checkpoint(s.start) / store.RECIPE
        found |= {"checkpoint": hashlib.sha256(made.read_bytes()).hexdigest()}
        found |= {"written": made.stat().st_mtime_ns if isinstance(made, Path) else None}
    return found


def constants(run: Run, s: EvaluateStage, asked: Sequence[Question]) -> dict[tuple[str, str], dict[str, str]]:
    """(task, domain) -> kind -> the constant answer that scores best on the training split."""
    wanted = {(q.source["task"], q.source["domain"]) for q in asked}
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
