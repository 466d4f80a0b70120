"""Questions of a benchmark, asked through the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.image import BadImage
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.evaluate.answers import Said
from sphinx_jax.evaluate.benchmarks.asking import Ask
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.question import Joined, Question
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import Engine, Request, Settings
from sphinx_jax.progress import progress

_log = logging.getLogger(__name__)

TOLD = 5  # questions that are not asked and named in the log one by one
# how each protocol chooses tokens: the authors' evaluation draws them, lmms-eval takes the likeliest
SAMPLING: dict[str, Settings] = {
    "reference": {"temperature": 0.1, "top_p": 0.75, "seed": 1},
    "official": {"temperature": 0.0},
}


def in_files(engine: Engine, pictures: Pictures) -> Callable[[Question], Picture]:
    """What finds the picture of a question where a benchmark's files have it; raises BadImage."""
    return lambda question: engine.pictures.picture(pictures.find(question.picture))


def tell_of_joined(questions: Sequence[Question]) -> None:
    """Log how many questions show several pictures."""
    several = sum(isinstance(q.picture, Joined) for q in questions)
    if several:
        _log.warning(
            "%d of %d questions are about several pictures: they are shown side by side", several, len(questions)
        )


def ask(
    engine: Engine,
    questions: Sequence[Question],
    how: Ask,
    sampling: Settings,
    look: Callable[[Question], Picture],
    answers: Said,
    bar: str = "",
) -> None:
    """Put the answers of all that are not answered yet on record, as they come.

    Pictures are read by threads, some questions ahead; those that cannot be read, or whose question does not fit into
    the model, are named in the log and have no answer.

    Args:
      look: finds the picture of a question; raises BadImage.
      bar: what the progress bar is called; "" shows none.
    """
    left = [q for q in questions if q.key not in answers.texts]
    numbers, unasked = list[int | str](), list[int | str]()

    def requests() -> Iterator[Request]:
        for question, picture in zip(left, read_ahead(look, left), strict=True):
            text, _ = render([(how.text(question), None)], SYSTEM)
            try:
                request = Request(text + how.begin, picture.result(), max_new_tokens=how.most, **sampling)
                engine.fitted(request.prompt, True, how.most)
            except (BadImage, BadArgument) as error:
                unasked.append(question.key)
                if len(unasked) <= TOLD:
                    _log.warning("question %s is not asked: %s", question.key, error)
                shown.update()
                continue
            numbers.append(question.key)
            yield request

    done = len(questions) - len(left)
    with progress(total=len(questions), initial=done, desc=bar, unit="q", disable=not bar) as shown:
        for place, (said,) in engine.as_completed(requests()):
            answers.add(numbers[place], said.text)
            shown.update()
    if len(unasked) > TOLD:
        _log.warning("so are %d more, question %s the last", len(unasked) - TOLD, unasked[-1])
