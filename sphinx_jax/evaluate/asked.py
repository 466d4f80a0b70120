"""Questions about pictures, asked through the engine."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.image import BadImage
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.distributed import share
from sphinx_jax.evaluate.answers import Said
from sphinx_jax.evaluate.benchmarks.asking import Ask
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.question import Joined, Question
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.request import Request, Settings
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.progress import progress
from sphinx_jax.sharding import platform

_log = logging.getLogger(__name__)

CACHED = 2**24  # bytes of weights that stay in a processor's caches
# questions a second even where one takes several
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
TOLD = 20  # pictures whose questions are not asked that are named in the log one by one
# how each protocol chooses tokens: the authors' evaluation draws them, lmms-eval takes the likeliest
SAMPLING: dict[str, Settings] = {
    "reference": {"temperature": 0.1, "top_p": 0.75, "seed": 1},
    "official": {"temperature": 0.0},
}
# a question, with its picture or without, as the engine takes it
Worded = Callable[[Question, Picture | None], Request]


def slots_for(model: Sphinx, many: int) -> int:
    """How many answers are given at once where a stage does not say: `many`, or one.

    One where a CPU's caches hold all weights: to read them once for several answers saves nothing then, and programs
    for many rows take longer to compile than to run.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.leaves))
    return 1 if platform() == "cpu" and size <= CACHED else many


def in_files(engine: Engine, pictures: Pictures) -> Callable[[Question], Picture]:
    """What finds the picture of a question where a benchmark's files have it; raises BadImage."""
    return lambda question: engine.pictures.picture(pictures.find(question.picture))


def worded(how: Ask, sampling: Settings) -> Worded:
    """What words the questions of a benchmark."""

    def request(question: Question, picture: Picture | None) -> Request:
        text, _ = render([(how.text(question), None)], SYSTEM)
        return Request(text + how.begin, picture, max_new_tokens=how.most, **sampling)

    return request


def tell_of_joined(questions: Sequence[Question]) -> None:
    """Log how many questions show several pictures."""
    several = sum(isinstance(q.picture, Joined) for q in questions)
    if several:
        _log.warning(
            "%d of %d questions are about several pictures: they are shown side by side", several, len(questions)
        )


def own(questions: Sequence[Question], process: int, count: int) -> list[Question]:
    """Those that one of so many processes asks: all about a picture, or none."""
    return [questions[n] for n in share([q.picture or q.key for q in questions], process, count)]


def ask(
    engine: Engine,
    questions: Sequence[Question],
    word: Worded,
    look: Callable[[Question], Picture] | None,
    answers: Said,
    bar: str = "",
) -> None:
    """Put the answers of all that are not answered yet on record, as they come.

    Pictures are read by threads, some questions ahead, and one picture once for all questions about it, wherever they
    stand; those that cannot be read, or whose question does not fit into the model, are named in the log and have no
    answer.

    Args:
      look: finds the picture of a question; raises BadImage.  None asks without pictures.
      bar: what the progress bar is called; "" shows none.
    """
    left = [q for q in questions if q.key not in answers.texts]
    about: dict[Any, list[Question]] = {}
    for question in left:
        about.setdefault(question.picture or question.key, []).append(question)
    groups = list(about.values())
    numbers, unasked = list[int | str](), list[list[Question]]()
    looked, begun = 0, time.perf_counter()

    def leave_out(group: list[Question], error: Exception) -> None:
        unasked.append(group)
        if len(unasked) <= TOLD:
            more = f", nor are {len(group) - 1} more about its picture" if len(group) > 1 else ""
            _log.warning("question %s is not asked%s: %s", group[0].key, more, error)
        progressed.update(len(group))

    def requests() -> Iterator[Request]:
        nonlocal looked
        shown = itertools.repeat(None) if look is None else read_ahead(look, [group[0] for group in groups])
        for group, picture in zip(groups, shown, strict=False):
            try:
                image = picture and picture.result()
            except BadImage as error:
                leave_out(group, error)
                continue
            looked += 1
            for question in group:
                try:
                    request = word(question, image)
                    engine.room(look is not None, request.max_new_tokens)
                except BadArgument as error:
                    leave_out([question], error)
                    continue
                numbers.append(question.key)
                yield request

    done = len(questions) - len(left)
    shape = {"bar_format": BAR, "unit": " questions"}
    with progress(total=len(questions), initial=done, desc=bar, disable=not bar, **shape) as progressed:
        for place, (said,) in engine.as_completed(requests()):
            answers.add(numbers[place], said.text)
            if look is not None:
                rate = looked / (time.perf_counter() - begun)
                progressed.set_postfix_str(f"{rate:.2f} pictures/s", refresh=False)
            progressed.update()
    if rest := [question for group in unasked[TOLD:] for question in group]:
        _log.warning("so are %d more, question %s the last", len(rest), rest[-1].key)


def ask_blind(engine: Engine, questions: Sequence[Question], word: Worded, answers: Said, bar: str = "") -> None:
    """The same without pictures, where many questions are one: each request is answered once, for all who have it."""
    alike: dict[Any, list[Question]] = {}
    for question in questions:
        try:
            same: Any = word(question, None)
        except BadArgument:  # which is told where it is asked
            same = question.key
        alike.setdefault(same, []).append(question)
    ask(engine, [first for first, *_ in alike.values()], word, None, answers, bar)
    for first, *others in alike.values():
        for question in others:
            if question.key not in answers.texts and first.key in answers.texts:
                answers.add(question.key, answers.texts[first.key])
