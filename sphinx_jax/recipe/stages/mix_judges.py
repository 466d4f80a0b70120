"""What a mix of weights is chosen by: held-out data of the recipe, or public benchmarks, by loss or by score."""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import MaxLen, MinLen

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import BadItem, Item
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.image import BadImage, ImageSource, load_image
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.tasks import DOMAINS, INSTRUCTIONS
from sphinx_jax.evaluate.answers import Said
from sphinx_jax.evaluate.asked import SAMPLING, ask, worded
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.benchmarks.asking import Ask, asked_by
from sphinx_jax.evaluate.card import lines
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.predictions import PROTOCOLS
from sphinx_jax.evaluate.question import InTable, Joined, Question
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import SLOTS, Engine
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages.benchmarks import folders, limited
from sphinx_jax.report.drawing import encoded
from sphinx_jax.settings import Count, Name, NonNegative, Settings
from sphinx_jax.sharding import row_ways
from sphinx_jax.train.features import FeatureCache, cache_features
from sphinx_jax.train.step import loss_sums
from sphinx_jax.weight_mix.interpolate import interpolate
from sphinx_jax.weight_mix.search import Coefficients, Judge, LossJudge

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged(Settings):
    """Settings of what judges mixes: held-out data of the recipe, or where folders of benchmarks are named, those."""

    tasks: Mapping[str, NonNegative] = field(default_factory=dict)  # what the held-out loss is taken over; empty: all
    metric: Name = "loss"  # what it is called
    turns: Count = 4
    length: Count = 160
    batch: Count = 32
    pictures: Count = 256  # per domain and split
    # folders of benchmarks: the first chooses, the second is reported; of one alone pictures in turn do either
    benchmarks: Annotated[tuple[Name, ...], MaxLen(2)] = ()
    names: Annotated[tuple[Name, ...], MinLen(1)] | None = None  # of those; None: all that are there
    judge: Literal["loss", "score"] = "loss"  # of right answers, or of those that a mix gives
    protocol: Literal[PROTOCOLS] = "reference"
    limit: Count = 256  # questions of each benchmark

    @property
    def measure(self) -> str:
        """What is compared."""
        if not self.benchmarks:
            return self.metric
        return "answer_loss" if self.judge == "loss" else "score"


def judges(
    run: Run, s: Judged, trees: Sequence[Leaves], frozen: Leaves, domains: Sequence[str] = DOMAINS
) -> tuple[Judge, Judge]:
    """What chooses a mix, and what tells how good the chosen one is.

    Args:
      domains: of the recipe's held-out data.

    Raises:
      ConfigError: in one line, what cannot judge.
    """
    if run.recipe.model.decoder.lora_rank:
        raise ConfigError("held-out data cannot choose a mix of LoRA models; mix them with given weights")
    if not s.benchmarks:
        return held_out(run, s, trees, frozen, "validation", domains), held_out(run, s, trees, frozen, "test", domains)
    if not run.recipe.model.has_vision:
        raise ConfigError("benchmarks ask about pictures, and the model takes text alone")
    choosing, reported = of_benchmarks(s)
    if s.judge == "loss":
        return (
            by_loss(run, s, trees, frozen, choosing, "choosing"),
            by_loss(run, s, trees, frozen, reported, "reported"),
        )
    if jax.process_count() > 1:
        raise ConfigError("judge=score is for one process; judge=loss is for any number")
    return by_score(run, trees, frozen, choosing, "choosing"), by_score(run, trees, frozen, reported, "reported")


def held_out(
    run: Run, s: Judged, trees: Sequence[Leaves], frozen: Leaves, split: str, domains: Sequence[str]
) -> LossJudge:
    """The loss of the stage's tasks on one split of the domains."""
    batches = {domain: batches_of(run, s, frozen, split, domain) for domain in domains}
    return _loss_judge(run, trees, frozen, batches)


def batches_of(run: Run, s: Judged, frozen: Leaves, split: str, domain: str) -> list[dict[str, np.ndarray]]:
    """The first pictures of a split and domain, each with turns of the tasks."""
    weights = dict.fromkeys(INSTRUCTIONS, 0.0) | dict(s.tasks) if s.tasks else {}
    source = Source(domain, run.data.items(split, domain), 1.0, weights, run.features(frozen, split, domain))
    if not len(source.eligible):
        raise ValueError(f"{split} data of {domain} has no picture with one of {', '.join(s.tasks)}")
    return _batches(run, s, source, s.length, s.turns)


def _loss_judge(run: Run, trees: Sequence[Leaves], frozen: Leaves, batches: Mapping[str, Sequence[Any]]) -> LossJudge:
    plan = blueprint(run.recipe.model)

    def loss(leaves: Leaves, batch: Any) -> jax.Array:
        return loss_sums(plan.bind(leaves), batch)

    return LossJudge(loss, trees, batches, frozen)


def _batches(run: Run, s: Judged, source: Source, length: int, turns: int | None) -> list[dict[str, np.ndarray]]:
    """The same rows for every mix: the first pictures, each with turns of the tasks."""
    shape = Shape(length, run.recipe.model.views.image_size, turns, isolate_turns=True)
    mapping = Rows(source, run.tokenizer, shape)
    most = len(source.eligible) if s.benchmarks else s.pictures  # of benchmarks some were drawn
    rows = [mapping.random_map(i, np.random.default_rng(i)) for i in range(min(len(source.eligible), most))]
    empty = mapping.masked(0)
    ways = row_ways(run.mesh)
    # of a few pictures two batches, so that something can be learnt on one and chosen on the other
    size = min(s.batch, max(ways, len(rows) // 2 // ways * ways))
    rows += [empty] * (-len(rows) % size)
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [{k: np.stack([r[k] for r in batch]) for k in batch[0] if k != "skipped"} for batch in batches]


class Part(NamedTuple):
    """Questions of one benchmark that judge."""

    name: str
    protocol: str
    how: Ask
    questions: Sequence[Question]
    pictures: Pictures


def of_benchmarks(s: Judged) -> tuple[list[Part], list[Part]]:
    """The questions that choose and those that are reported.

    Raises ConfigError where there is nothing to choose by, or nothing of it to report.
    """
    parts = []
    for folder in s.benchmarks:
        parts.append(list(_parts(s, Path(folder).absolute())))
        if not parts[-1]:
            raise ConfigError(f"none of the benchmarks in {folder} can judge; the log says why")
    of_one = len(parts) == 1
    if of_one:
        parts = [[_half(part, odd) for part in parts[0]] for odd in (False, True)]
    choosing, reported = ([_some(part, s.limit) for part in own] for own in parts)
    if of_one:
        reported = [_without(part, seen) for part, seen in zip(reported, choosing, strict=True)]
    only = {part.name for part in choosing} ^ {part.name for part in reported}
    if only:
        raise ConfigError(f"{', '.join(sorted(only))}: in one of the two folders alone; names chooses of both")
    few = {part.name for part in (*choosing, *reported) if not part.questions}
    for name in sorted(few):
        _log.warning("%s is left out: its pictures are too few to choose by some and report others", name)
    choosing, reported = ([part for part in own if part.name not in few] for own in (choosing, reported))
    if not choosing:
        raise ConfigError("the benchmarks have too few pictures to choose by some and report others; add a folder")
    return choosing, reported


def _parts(s: Judged, folder: Path) -> Iterator[Part]:
    for name, of_it in folders(folder, s.names).items():
        benchmark = BENCHMARKS[name]
        try:
            if s.judge == "score" and benchmark.for_judge:
                raise BadData(f"{benchmark.title} is scored by a judge of its own")
            rules = PROTOCOLS if benchmark.for_judge else benchmark.rules
            protocol, how = asked_by(name, benchmark.title, rules, s.protocol)
            read = benchmark.read(of_it)
            questions = read.questions
            if s.judge == "loss":
                questions = [q for q in questions if how.right(q)]
                if not questions:
                    raise BadData(f"{benchmark.title} has no right answer in words, so no loss of it")
        except BadData as error:
            _log.warning("%s is left out: %s", name, error)
            continue
        for note in read.notes:
            _log.warning("%s", note)
        yield Part(name, protocol, how, questions, Pictures(of_it))


def _drawn(question: Question) -> int:
    """A number of a question's picture, or of those that it counts with, the same wherever the files lie."""
    picture = question.picture
    if isinstance(picture, InTable) and (question.same is not None or str(question.key)[-2:] in (":0", ":1")):
        pair = str(question.key)[:-2] if question.same is None else repr(question.same)  # of MME
        return zlib.crc32(pair.encode())
    if isinstance(picture, Joined):
        picture = picture.pictures[0]
    name = f"{Path(picture.file).name} {picture.row}" if isinstance(picture, InTable) else str(picture)
    return zlib.crc32(name.encode())


def _half(part: Part, odd: bool) -> Part:
    return part._replace(questions=[q for q in part.questions if _drawn(q) % 2 == odd])


def _without(part: Part, other: Part) -> Part:
    """The questions whose pictures are of none of another's: some files repeat a picture for each question."""

    def content(question: Question) -> Any:
        try:
            found = part.pictures.find(question.picture)
        except BadImage:
            return question.picture
        return found if isinstance(found, Path) else sha256(as_bytes(found)).digest()

    seen = {content(question) for question in other.questions}
    return part._replace(questions=[q for q in part.questions if content(q) not in seen])


def as_bytes(image: ImageSource) -> bytes:
    """Of a picture that was found in a file, or put together of several."""
    return image if isinstance(image, bytes) else encoded(load_image(image), "PNG")


def _some(part: Part, limit: int) -> Part:
    """Questions about pictures that are drawn of all, in the order of the files."""
    taken = limited(sorted(part.questions, key=lambda q: _drawn(q) // 2), limit, part.name == "mme")
    chosen = {q.key for q in taken}
    return part._replace(questions=[q for q in part.questions if q.key in chosen])


class _OfQuestions:
    """Features of the pictures that questions are about, by the question's number."""

    def __init__(self, cache: FeatureCache, at: Sequence[int]):
        self.cache, self.at = cache, at

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.cache[self.at[number]]

    def blank(self, number: int) -> dict[str, np.ndarray]:
        return self.cache.blank(self.at[number])


def _items(run: Run, part: Part, frozen: Leaves, what: str) -> tuple[list[Item], _OfQuestions | None]:
    """An item of every question, and what the encoders, the same in all mixes, see in its picture."""
    items, pictures = list[Item](), dict[Any, int]()
    at = []
    for question in part.questions:
        image: ImageSource
        try:
            image = part.pictures.find(question.picture)
        except BadImage as error:
            _log.warning("question %s of %s: %s", question.key, part.name, error)
            image = b""
        turn = (part.how.text(question), f"{part.how.begin} {part.how.right(question)}".strip())
        given = str(image) if isinstance(image, Path) else as_bytes(image)
        items.append(Item(given, (turn,), id=str(question.key)))
        at.append(pictures.setdefault(question.picture, len(pictures)))
    if jax.process_count() > 1:
        return items, None
    shown = [items[at.index(number)] for number in range(len(pictures))]
    folder = run.local / "features" / f"{part.name}-{what}"
    cache = cache_features(folder, shown, frozen, run.recipe.model, f"encoding {part.name} pictures")
    return items, _OfQuestions(cache, at)


def by_loss(
    run: Run, s: Judged, trees: Sequence[Leaves], frozen: Leaves, parts: Sequence[Part], what: str
) -> LossJudge:
    """The loss of the right answers of each benchmark."""
    batches = {}
    for part in parts:
        items, features = _items(run, part, frozen, what)
        source = Source(part.name, items, features=features)
        whole = Rows(source, run.tokenizer, Shape(run.recipe.model.decoder.max_positions))
        longest = max(_length(whole, item) for item in items)
        batches[part.name] = _batches(
            run, s, source, max(32, -(-longest // 32) * 32), None
        )  # few lengths, few programs
    return _loss_judge(run, trees, frozen, batches)


def _length(rows: Rows, item: Item) -> int:
    """In tokens; 0 of one that does not fit into the model, which the rows leave out and name."""
    try:
        return len(rows.conversation(item, np.random.default_rng(0)))
    except BadItem:
        return 0


@dataclass(frozen=True)
class ScoreJudge(Judge):
    """What a mix scores, in percent of full marks, with its sign turned."""

    run: Run
    trees: Sequence[Leaves]
    frozen: Leaves
    parts: Sequence[Part]
    features: Mapping[str, _OfQuestions]

    sign = -1.0

    def __call__(self, coefficients: Coefficients) -> dict[str, float]:
        leaves = self._mixed(self.trees, jax.tree.map(jnp.float32, coefficients)) | self.frozen
        recipe = self.run.recipe
        engine = Engine(Sphinx(recipe.model, leaves, self.run.tokenizer, self.run.mesh), slots=SLOTS)
        return {part.name: -self._score(engine, part) for part in self.parts}

    @functools.cached_property
    def _mixed(self) -> Any:
        return jax.jit(interpolate)

    def _score(self, engine: Engine, part: Part) -> float:
        features, said = self.features[part.name], Said()
        number = {question.key: i for i, question in enumerate(part.questions)}

        def look(question: Question) -> Picture:
            row = features[number[question.key]]
            name = f"{part.name} {features.at[number[question.key]]}"
            return Picture.encoded(name, row)

        # of two mixes the one with the likelier answers is better, not the one that was luckier
        ask(engine, part.questions, worded(part.how, SAMPLING["official"]), look, said)
        answered = [q for q in part.questions if q.key in said.texts]
        if not answered:
            raise ConfigError(f"no question of {part.name} could be asked")
        score = BENCHMARKS[part.name].rules[part.protocol](answered, [said.texts[q.key] for q in answered])
        found = lines(part.name, part.protocol, score, answered)
        return float(np.mean([line.share for line in found]))


def by_score(run: Run, trees: Sequence[Leaves], frozen: Leaves, parts: Sequence[Part], what: str) -> ScoreJudge:
    """The mean of each benchmark's numbers on the card, in percent of full marks."""
    features = {}
    for part in parts:
        _, own = _items(run, part, frozen, what)
        assert own is not None  # in one process
        features[part.name] = own
    return ScoreJudge(run, trees, frozen, parts, features)
