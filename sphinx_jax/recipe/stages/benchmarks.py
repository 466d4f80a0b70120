"""The benchmarks stage: public benchmarks that lie in a folder, or the playground's questions in their files, asked and
scored, and a card of all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, need, unknown
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.image import ImageSource
from sphinx_jax.data.sources import HELD_OUT
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.distributed import agree, gather_json
from sphinx_jax.evaluate.answers import Answers, put_together
from sphinx_jax.evaluate.asked import SAMPLING, ask, in_files, own, slots_for, tell_of_joined, worded
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark, Benchmark
from sphinx_jax.evaluate.benchmarks.asking import asked_by
from sphinx_jax.evaluate.card import ITEMS, Line, for_judge, item, items, left_out, lines
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.predictions import PROTOCOLS, counted
from sphinx_jax.evaluate.question import InTable, Joined, Question, Read, Unread
from sphinx_jax.evaluate.question import Picture as Shows
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import SLOTS, Engine
from sphinx_jax.generate.load import from_pretrained
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import blueprint, held_dtypes
from sphinx_jax.paths import as_path, write_whole
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages.evaluate import check_room
from sphinx_jax.report.benchmark_page import Shown, write_page
from sphinx_jax.report.card import markdown, terminal
from sphinx_jax.report.card_files import CARD, PAGE
from sphinx_jax.settings import Count, Name, Settings
from sphinx_jax.sharding import serving_mesh

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarksStage(Settings):
    start: Name  # a stage or a checkpoint folder
    names: tuple[Name, ...] | None = None  # None: all that the folder has
    protocol: Literal[PROTOCOLS] = "reference"  # of a benchmark that has not this one the other
    limit: Count | None = None  # questions of each, the first ones; those that count together are one
    batch: Count | None = None  # answers at once; None: as suits the model and the device
    quantize: Literal["int8", "nf4"] | None = None


def benchmarks(run: Run, name: str, settings: BenchmarksStage) -> None:
    """Write `predictions.jsonl` of each benchmark as answers come, then `items.jsonl` with what each counts, or what a
    judge takes; at the end `card.json`, `card.md` and `card.html`.

    A benchmark whose files cannot be used is named, in the card too, and the others are asked.  Several processes share
    the questions out, all about a picture to one of them, each with a model of its own on its devices and a file of
    answers of its own; the first puts them together and scores.
    """
    s, data = settings, run.data.benchmarks
    found = folders(data, s.names)
    model = _model(run, s)
    engine = Engine(model, slots=s.batch or slots_for(model, SLOTS))
    encoded = _encoded(run, s, engine)
    card: list[Line] = []
    shown: list[Shown] = []
    for benchmark, folder in found.items():
        try:
            asked = _ask(run, s, name, engine, encoded, benchmark, folder)
            if jax.process_index() > 0:
                continue
            scores, of_it = _score(run, name, asked)
        except BadData as error:
            _log.warning("%s is left out: %s", benchmark, error)
            card.append(left_out(benchmark, str(error).replace(f"{folder.absolute()}", benchmark)))
            continue
        card += scores
        shown.append(of_it)
    none = not shown and jax.process_index() == 0
    agree(f"none of the benchmarks in {data} could be scored; the log says why" if none else None)
    if jax.process_index() > 0:
        return
    write_whole(run.folder(name) / CARD, json.dumps([line.as_json() for line in card], indent=1).encode())
    write_whole(run.folder(name) / "card.md", markdown(card).encode())
    page = run.folder(name) / PAGE
    write_whole(page, write_page(run.recipe.title, card, shown).encode())
    if not run.quiet:
        reported = any(getattr(stage, "card", None) == name for stage in run.recipe.settings.values())
        print(page if reported else f"{terminal(card)}\n\n{page}")


def folders(data: Path, names: tuple[str, ...] | None) -> dict[str, Path]:
    """The benchmarks asked for, or all that there are, each with its folder.

    Raises ConfigError where one is not there, or none is.
    """
    for name in names or ():
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
        if not (data / name).is_dir():
            raise ConfigError(f"names: there is no folder {data / name} with the files of {BENCHMARKS[name].title}")
    there = {name: data / name for name in names or BENCHMARKS if (data / name).is_dir()}
    if not there:
        raise ConfigError(
            f"{data} has no folder named as a benchmark is: {', '.join(BENCHMARKS)}"
            if data.is_dir()
            else f"data: there is no folder {data} with benchmarks; --config.data=FOLDER"
        )
    return there


def _model(run: Run, s: BenchmarksStage) -> Sphinx:
    folder = run.checkpoint(s.start)
    if jax.process_count() == 1:
        return from_pretrained(folder, quantize=s.quantize)
    config, device = store.read_config(folder), jax.local_devices()[0]
    mesh = serving_mesh(config.decoder, jax.local_devices())
    if s.quantize is None:  # of what is quantised the size is not known before
        check_room(blueprint(config).abstract(mesh, held_dtypes(config)), device)
    return from_pretrained(folder, mesh=mesh, quantize=s.quantize)


class _Asked(NamedTuple):
    """A benchmark with what all processes answered."""

    name: str
    protocol: str
    questions: Sequence[Question]
    unfit: Sequence[Question]  # which cannot be scored
    texts: Mapping[int | str, str]
    pictures: Pictures
    without: Sequence[Unread]


def _ask(
    run: Run,
    s: BenchmarksStage,
    stage: str,
    engine: Engine,
    encoded: Mapping[ImageSource, Picture],
    name: str,
    folder: Path,
) -> _Asked:
    """Ask what is this process's to ask, and wait for the others."""
    benchmark, process = BENCHMARKS[name], jax.process_index()
    rules = benchmark.rules if benchmark.for_judge is None else PROTOCOLS
    protocol, how = asked_by(name, benchmark.title, rules, s.protocol)
    read = _read(benchmark, folder)
    notes = [*read.notes, *(counted(benchmark, [*read.questions, *read.unfit]) if run.recipe.data.benchmarks else ())]
    questions = limited(read.questions, s.limit, by_category=name == "mme")
    if process == 0:
        for note in notes:
            _log.warning("%s", note)
        for file in read.without:
            _log.warning("%s is asked without what is damaged: %s", name, file.why)
        tell_of_joined(questions)
    of = {q.key: _digest([how.begin + how.text(q), how.most, _shown(q.picture, folder)]) for q in questions}
    answers = Answers(run.folder(stage) / name, _about(run, s, protocol), process, of)
    bar = "" if run.quiet else name
    pictures = Pictures(folder)
    mine = own(questions, process, jax.process_count())
    look = _looking(engine, pictures, encoded)
    ask(engine, mine, worded(how, SAMPLING[protocol]), look, answers, bar)
    put_together(f"answered {stage} {name}", answers)
    # which of the first questions they would be cannot be told
    unfit = read.unfit if s.limit is None else ()
    return _Asked(name, protocol, questions, unfit, answers.texts, pictures, read.without)


def _score(run: Run, stage: str, asked: _Asked) -> tuple[list[Line], Shown]:
    name, protocol, questions, unfit, texts, pictures, without = asked
    unread = ", ".join(one.file + ("" if one.rows is None else f" of {one.rows} rows") for one in without)
    benchmark = BENCHMARKS[name]
    answered = [q for q in questions if q.key in texts]
    if not answered:
        raise BadBenchmark(f"no question of {benchmark.title} could be asked")
    model, missing = run.recipe.model.name, [*(q for q in questions if q.key not in texts), *unfit]
    if (judge := benchmark.for_judge) is not None:
        write_whole(run.folder(stage) / name / judge.file, judge.write(questions, texts, model))
        line = for_judge(name, protocol, len(answered), len(missing), f"{name}/{judge.file}", model)
        rows = [item(q, texts[q.key], None) for q in answered]
        return [replace(line, without=unread)], Shown(name, rows, pictures.find)
    score = benchmark.rules[protocol](answered, [texts[q.key] for q in answered])
    rows = items(score, answered, texts)
    write_whole(run.folder(stage) / name / ITEMS, "".join(json.dumps(row) + "\n" for row in rows).encode())
    of_it = lines(name, protocol, score, answered, missing, model)
    # of average precision no answer counts for itself
    rows = rows or [item(q, texts[q.key], None) for q in answered]
    return [replace(line, without=unread) for line in of_it], Shown(name, rows, pictures.find)


def _encoded(run: Run, s: BenchmarksStage, engine: Engine) -> dict[ImageSource, Picture]:
    """The playground's pictures by their bytes, as the encoders of this recipe see them, where that is kept."""
    if run.recipe.data.benchmarks or s.start not in run.recipe.settings or s.quantize or jax.process_count() > 1:
        return {}
    found = dict[ImageSource, Picture]()
    for domain in DOMAINS:
        features = need(run.features(engine.pictures.leaves, HELD_OUT, domain))
        for number, shown in enumerate(run.data.items(HELD_OUT, domain)):
            found[need(shown.image)] = Picture.encoded(f"{domain}/{number}", features[number])
    return found


def _looking(
    engine: Engine, pictures: Pictures, encoded: Mapping[ImageSource, Picture]
) -> Callable[[Question], Picture]:
    """What finds the picture of a question; raises BadImage."""
    if not encoded:
        return in_files(engine, pictures)

    def look(question: Question) -> Picture:
        found = pictures.find(question.picture)
        content = found.read_bytes() if isinstance(found, Path) else found
        return encoded.get(content) or engine.pictures.picture(found)

    return look


def _read(benchmark: Benchmark, folder: Path) -> Read:
    """The questions, and what could not be read.

    Raises BadData in all processes where one of them cannot read them, for they wait for each other.
    """
    problem, read = "", None
    try:
        read = benchmark.read(folder, in_part=True)
    except BadData as error:
        problem = str(error)
    problems = [found for one in gather_json({"problem": problem}) if (found := one["problem"])]
    if problems:
        raise BadData(problems[0])
    return need(read)


def _shown(picture: Shows, folder: Path) -> Any:
    """Which picture it is, wherever the folder lies."""
    if isinstance(picture, Joined):
        return [_shown(one, folder) for one in picture.pictures]
    name = picture.file if isinstance(picture, InTable) else picture or ""
    return [name.removeprefix(f"{folder.absolute()}/"), *(picture[1:] if isinstance(picture, InTable) else ())]


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def limited(questions: Sequence[Question], limit: int | None, by_category: bool = False) -> list[Question]:
    """The first questions, or as many of each category, whose scores are summed; of those that count together all."""
    if limit is None:
        return list(questions)
    taken: dict[Any, set[Any]] = {}
    found = []
    for question in questions:
        group = taken.setdefault(question.labels.get("category") if by_category else "", set())
        one = question.key if question.same is None else question.same
        if one in group or len(group) < limit:
            group.add(one)
            found.append(question)
    return found


def _about(run: Run, s: BenchmarksStage, protocol: str) -> Mapping[str, Any]:
    """What all predictions depend on."""
    made = as_path(str(run.checkpoint(s.start))) / store.RECIPE
    return {
        "protocol": protocol,
        "checkpoint": hashlib.sha256(made.read_bytes()).hexdigest(),
        "quantize": s.quantize,
    }
