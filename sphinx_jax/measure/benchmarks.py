"""A benchmark asked through the engine, beside its questions answered one after the other."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sphinx_jax import from_pretrained
from sphinx_jax.evaluate.answers import Answers
from sphinx_jax.evaluate.asked import SAMPLING, ask, in_files, worded
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.benchmarks.asking import OFFICIAL
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.question import Question
from sphinx_jax.generate.engine import SLOTS, Engine
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.measure.peers.sides import Pair


def measure(checkpoint: Path, name: str, path: Path, count: int, rounds: int) -> Iterator[str]:
    """Lines of the table; greedy answers to the first `count` questions, everything compiled before.

    Both read the pictures anew each round.
    """
    model = from_pretrained(checkpoint)
    questions = BENCHMARKS[name].read(path).questions[:count]
    pair = Pair(f"{len(questions)} of {name}", [], [], "respond, one after the other")
    same = 0
    for round_ in range(rounds + 1):  # the first compiles
        ours, texts = _through_engine(model, name, path, questions)
        theirs, others = _in_a_loop(model, name, path, questions)
        same = sum(a == b for a, b in zip(texts, others, strict=True))
        if round_:
            pair.ours.append(ours)
            pair.theirs.append(theirs)
    yield f"{pair.line()}; {len(questions) / min(pair.ours):.1f} questions a second, {same} answers are the same"


def _through_engine(model: Sphinx, name: str, path: Path, questions: Sequence[Question]) -> tuple[float, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        answers = Answers(Path(folder), {})
        begun = time.perf_counter()
        engine = Engine(model, slots=SLOTS)
        word = worded(OFFICIAL[name], SAMPLING["official"])
        ask(engine, questions, word, in_files(engine, Pictures(path)), answers)
        spent = time.perf_counter() - begun
        answers.close()
    return spent, [answers.texts[q.key] for q in questions]


def _in_a_loop(model: Sphinx, name: str, path: Path, questions: Sequence[Question]) -> tuple[float, list[str]]:
    # of its own, so that no picture is remembered from the round before
    model = Sphinx(model.config, model.leaves, model.tokenizer, model.mesh)
    how, find, texts = OFFICIAL[name], Pictures(path).find, []
    begun = time.perf_counter()
    for question in questions:
        image = find(question.picture)
        turns = [[how.text(question), None]]
        texts.append(
            model.respond(
                turns,
                image=os.fspath(image) if isinstance(image, Path) else image,
                max_new_tokens=how.most,
                temperature=0.0,
            )
        )
    return time.perf_counter() - begun, texts
