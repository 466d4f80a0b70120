"""What a benchmark asks, whichever file it was read from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sphinx_jax.data.formats.files import BadData

LETTERS = "ABCDEFGHI"  # of choices


class BadBenchmark(BadData):
    """Files that do not hold the benchmark they were said to."""


class InTable(NamedTuple):
    """A picture in a file of many, read when it is needed: row `row` of `file`."""

    file: str
    row: int
    column: str = "image"


Picture = str | InTable | None  # a path, or where it lies


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
      key: what predictions call it; its number where the benchmark's files agree on nothing better.
      text: as the benchmark has it, without instructions.
      picture: of which it is asked.
      answers: what counts as right (with one that counts, the first).
      choices: of which A, B, … is one.
      box: x1, y1, x2, y2 in pixels of a picture of `size` (width, height).
      labels: by what scores are split: `{"answer_type": "number"}`; several values of one are a tuple.
      same: equal for those of which protocol reference keeps the first.
    """

    key: int | str
    text: str
    picture: Picture = None
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    hint: str = ""
    box: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    same: Hashable = None

    @property
    def letter(self) -> str:
        """That of the right choice."""
        return self.answers[0]


class Read(NamedTuple):
    """The questions that some files hold; `numbered` where these have no ids, and keys are numbers of rows."""

    questions: Sequence[Question]
    form: str
    numbered: bool = False


@dataclass(frozen=True)
class Score:
    """What a protocol makes of predictions.

    Attributes:
      metric: the name of the headline number.
      score: the number; None where the benchmark has none over all parts.
      items: of each question what it counts, or the label that was read; None where the protocol leaves it out.
      parts: scores by category, split, type.
      more: what else the protocol has to say.
    """

    metric: str
    score: float | None
    items: Sequence[Any] | None
    parts: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


# of questions and what was said to each
Rule = Callable[[Sequence[Question], Sequence[str]], Score]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def means_by(questions: Sequence[Question], values: Sequence[float | None], *labels: str) -> dict[str, float]:
    """Means of the values by each of these labels, those without it left out."""
    found: dict[str, list[float]] = {}
    for label in labels:
        for question, value in zip(questions, values, strict=True):
            named = question.labels.get(label)
            if value is not None and named is not None:
                for name in named if isinstance(named, tuple) else (named,):
                    found.setdefault(name, []).append(value)
    return {name: mean(of_name) for name, of_name in found.items()}
