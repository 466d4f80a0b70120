"""What the settings of an answer cost and save, by the held-out questions of a recipe that was run."""

from __future__ import annotations

import dataclasses
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from sklearn.metrics import roc_auc_score

from sphinx_jax.config import from_dict
from sphinx_jax.data.answer_grammar import TASKS
from sphinx_jax.data.grammar import NO_BOX
from sphinx_jax.data.tasks import Box, parse_answer
from sphinx_jax.evaluate.asked import slots_for
from sphinx_jax.evaluate.metrics import METRICS, iou, score
from sphinx_jax.evaluate.question import Question
from sphinx_jax.generate.batching.pictures import Detail
from sphinx_jax.generate.engine import SLOTS, Engine
from sphinx_jax.generate.load import trained_checkpoint
from sphinx_jax.generate.located import weighed
from sphinx_jax.generate.request import Request, Said
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import held_dtypes
from sphinx_jax.recipe.stages.evaluate import EvaluateStage, looking, placed, questions, worded
from sphinx_jax.recipe.stages.mix_choice import opened

DETAILS = get_args(Detail)[::-1]
BOXED = ("rec", "relation", "detection")  # tasks whose answers are boxes
RIGHT, CLOSE = 0.5, 0.75  # intersections over unions
JUDGED = 150  # questions by which keys and values in 8 bits are judged
ROUNDS = 2  # of each task


class Answered(NamedTuple):
    """What was said to the questions of one task."""

    said: list[Said]
    seconds: float

    def score(self, task: str, asked: Sequence[Question]) -> float:
        return score(task, [one.text for one in self.said], [q.source["answer"] for q in asked])

    @property
    def milliseconds(self) -> float:
        """A question."""
        return 1e3 * self.seconds / len(self.said)

    @property
    def tokens(self) -> float:
        """An answer."""
        return float(np.mean([len(one.tokens) for one in self.said]))

    @property
    def passes(self) -> float:
        """An answer with a grammar: for each token that was chosen among several one."""
        return float(np.mean([len(one.others) for one in self.said]))


class Bench:
    """The questions of a workdir's recipe by task, and its model.

    Raises:
      ConfigError, BadCheckpoint: the workdir has no recipe, or no checkpoint yet.
    """

    def __init__(self, workdir: Path, limit: int | None):
        self.run, stages = opened(workdir, True, "constrained")
        found = trained_checkpoint(workdir)
        stage = from_dict(stages[0], EvaluateStage, "stage.evaluate") if stages else EvaluateStage(start="finetune")
        self.stage = dataclasses.replace(stage, start=str(found), limit=limit)
        leaves = self.run.leaves(self.stage.start, held_dtypes(self.run.recipe.model))
        self.features = {d: self.run.features(leaves, self.stage.split, d) for d in self.stage.domains}
        self.model = placed(self.run, leaves)
        self.asked = questions(self.run, self.stage)
        tasks = [task for task in METRICS if any(q.source["task"] == task for q in self.asked)]
        self.by_task = {task: [q for q in self.asked if q.source["task"] == task] for task in tasks}
        self.engine = Engine(self.model, slots=slots_for(self.model, SLOTS))

    def requests(self, asked: Sequence[Question], **settings: Any) -> list[Request]:
        """These questions as the stage with these settings asks them, their pictures encoded before."""
        s = dataclasses.replace(self.stage, **settings)
        word, look = worded(s), looking(self.run, s, self.engine, self.features)
        shown = {q.picture: look(q) for q in {q.picture: q for q in asked}.values()}
        return [word(q, shown[q.picture]) for q in asked]

    def answers(self, asked: Sequence[Question], *ways: Mapping[str, Any]) -> list[Answered]:
        """Of the engine, to these questions, with each of these settings in turn.

        The first of the rounds compiles; of each way the shortest counts.
        """
        requests = [self.requests(asked, **settings) for settings in ways]
        found: dict[int, Answered] = {}
        for _ in range(ROUNDS):
            for way, these in enumerate(requests):
                begun = time.perf_counter()
                said = [one for (one,) in self.engine.map(these)]
                answered = Answered(said, time.perf_counter() - begun)
                if way not in found or answered.seconds < found[way].seconds:
                    found[way] = answered
        return list(found.values())


def measure(workdir: Path, limit: int | None) -> Iterator[str]:
    """Tables in Markdown, of at most so many questions a task and domain."""
    bench = Bench(workdir, limit)
    whole: dict[str, Answered] = {}
    yield f"| task | metric | n | {' | '.join(DETAILS)} | ms a question: {' | '.join(DETAILS)} |"
    yield f"|---|---|--:|{'--:|' * 2 * len(DETAILS)}"
    for task, asked in bench.by_task.items():
        found = dict(zip(DETAILS, bench.answers(asked, *({"detail": d} for d in DETAILS)), strict=True))
        whole[task] = found["high"]
        scores = " | ".join(f"{one.score(task, asked):.3f}" for one in found.values())
        times = " | ".join(f"{one.milliseconds:.0f}" for one in found.values())
        yield f"| {task} | {METRICS[task].name} | {len(asked)} | {scores} | {times} |"
    yield ""
    yield "| task | n | free | with a grammar | free that read back | tokens with one | passes | ms free | ms with |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    formed: dict[str, Answered] = {}
    for task in [task for task in bench.by_task if task in TASKS]:
        asked, free = bench.by_task[task], whole[task]
        (held,) = bench.answers(asked, {"constrained": True})
        formed[task] = held
        reads = float(np.mean([_reads(task, one.text) for one in free.said]))
        scores = f"{free.score(task, asked):.3f} | {held.score(task, asked):.3f}"
        times = " | ".join(f"{one.milliseconds:.0f}" for one in (free, held))
        counts = f"{held.tokens:.1f} | {held.passes:.1f}"
        yield f"| {task} | {len(asked)} | {scores} | {reads:.1%} | {counts} | {times} |"
    yield ""
    yield from _confidence(bench, formed)
    yield ""
    yield _eight_bits(bench)


def _reads(task: str, text: str) -> bool:
    """Whether a text has its task's form: of none of a list's items an empty one is read."""
    if task == "multiple_choice":
        return re.fullmatch("[A-Z]", text) is not None
    return bool(parse_answer(task, text)) or text == NO_BOX


def _confidence(bench: Bench, formed: Mapping[str, Answered]) -> Iterator[str]:
    """How well a box's confidence tells right from wrong, and whether its expected box is closer."""
    yield "| task | boxes | mean IoU | of expected boxes | at least 0.75 | of expected boxes |"
    yield "|---|--:|--:|--:|--:|--:|"
    sure, right = [], []
    for task in [task for task in BOXED if task in formed]:
        said_, expected_ = [], []
        for q, said in zip(bench.by_task[task], formed[task].said, strict=True):
            wanted = _boxes(task, q.source["answer"])
            for box, known in zip(_boxes(task, said.text), weighed(said, bench.engine.stops.pieces), strict=False):
                said_.append(max(iou(box, other) for other in wanted))
                expected_.append(max(iou(known.expected, other) for other in wanted))
                sure.append(known.confidence)
                right.append(said_[-1] >= RIGHT)
        if not said_:
            continue
        both = [np.array(said_), np.array(expected_)]
        means = " | ".join(f"{x.mean():.3f}" for x in both)
        close = " | ".join(f"{(x >= CLOSE).mean():.0%}" for x in both)
        yield f"| {task} | {len(said_)} | {means} | {close} |"
    at, was = np.array(sure), np.array(right)
    yield ""
    if was.all() or not was.any():
        yield f"{len(at)} boxes, {'all' if was.any() else 'none'} with an IoU of at least {RIGHT}"
        return
    surer = at >= np.median(at)
    yield (
        f"{len(at)} boxes: area under the curve {area(at, was):.2f}; of the surer half {was[surer].mean():.0%} have an "
        f"IoU of at least {RIGHT}, of the other {was[~surer].mean():.0%}"
    )


def area(sure: np.ndarray, right: np.ndarray) -> float:
    """Of a right one and a wrong one, how often the right one is surer (the area under the curve of ROC)."""
    return float(roc_auc_score(right, sure))


def _boxes(task: str, text: str) -> list[Box]:
    found = parse_answer(task, text)
    return [found] if isinstance(found, Box) else list(found or [])


def _eight_bits(bench: Bench) -> str:
    """Of questions drawn at random: what is said, and how likely the right answer is, with a cache in 8 bits."""
    by_task = [q for asked in bench.by_task.values() for q in asked]
    drawn = random.Random(0).sample(by_task, min(JUDGED, len(by_task)))
    config = bench.model.config
    few = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, cache="int8"))
    requests = bench.requests(drawn)
    texts = [bench.model.encode_prompt(request.prompt) for request in requests]
    longer = [
        bench.model.encode_prompt(f"{request.prompt} {q.source['answer']}")
        for request, q in zip(requests, drawn, strict=True)
    ]
    losses, answers = [], []
    for engine in (bench.engine, Engine(Sphinx(few, bench.model.leaves, bench.run.tokenizer), bench.engine.slots)):
        chances = engine.score(longer, [len(text) for text in texts], [request.image for request in requests])
        losses.append(-float(np.mean(np.concatenate(chances))))
        answers.append([said.text for (said,) in engine.map(requests)])
    sources = [q.source for q in drawn]
    scores = [
        np.mean([METRICS[s["task"]].fn(text, s["answer"]) for s, text in zip(sources, said, strict=True)])
        for said in answers
    ]
    same = np.mean([a == b for a, b in zip(*answers, strict=True)])
    return (
        f"{len(drawn)} questions, keys and values whole and in 8 bits: {losses[0]:.4f} and {losses[1]:.4f} nats a "
        f"token of the right answers, scores {scores[0]:.3f} and {scores[1]:.3f}, {same:.0%} of the answers the same"
    )
