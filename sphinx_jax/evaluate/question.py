"""What a benchmark asks, whichever file it was read from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sphinx_jax.data.formats.files import BadData

LETTERS = "ABCDEFGHI"  # of choices


class BadBenchmark(BadData):
    """Files that do not hold the benchmark they were said to."""


class InTable(NamedTuple):
    """A picture in a file of many, read when it is needed: row `row` of `file`, there the one at `place` of several.

    `name` is what the file calls it, where it does.
    """

    file: str
    row: int
    column: str = "image"
    place: int = 0
    name: str = ""


@dataclass(frozen=True)
class Joined:
    """Several pictures of one question, which are shown side by side in this order."""

    pictures: tuple[str | InTable, ...]


Picture = str | InTable | Joined | None  # a path, or where it lies


def joined(pictures: Iterable[str | InTable | None]) -> Picture:
    """Of those that are there."""
    there = tuple(picture for picture in pictures if picture is not None)
    return Joined(there) if len(there) > 1 else next(iter(there), None)


def picture_as_json(picture: Picture) -> Any:
    if isinstance(picture, Joined):
        return {"joined": [picture_as_json(one) for one in picture.pictures]}
    return picture if isinstance(picture, str) else list(picture or ())


def picture_of_json(value: Any) -> Picture:
    """What `picture_as_json` was given."""
    if isinstance(value, dict):
        return Joined(tuple(one if isinstance(one, str) else InTable(*one) for one in value["joined"]))
    return value if isinstance(value, str) else InTable(*value) if value else None


def there(answer: Any) -> bool:
    """Whether an answer is one: neither missing nor blank nor what a table writes for a number that is missing."""
    return answer is not None and str(answer).strip().lower() not in ("", "nan")


def one_answer(answer: Any) -> tuple[str, ...]:
    """The answer as a text, or none where it is not there."""
    return (str(answer),) if there(answer) else ()


def letter_of(answer: Any, choices: Sequence[str] = ()) -> tuple[str, ...]:
    """The letter of a choice, or none where the answer is no letter of these choices."""
    letter = str(answer).strip().upper()
    return (letter,) if len(letter) == 1 and letter in LETTERS[: len(choices) or None] else ()


def letter_at(place: Any, choices: Sequence[str]) -> tuple[str, ...]:
    """The letter of the choice at a place, which may be a number in a text, or none where there is no such choice."""
    try:
        at = int(place)
    except (TypeError, ValueError):
        return ()
    return (LETTERS[at],) if 0 <= at < min(len(choices), len(LETTERS)) else ()


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
      source: what its file says of it, where a judge wants that back with the answer.
      unfit: why it cannot be scored, where its file has it wrong.
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
    source: Mapping[str, Any] = field(default_factory=dict)
    unfit: str = ""

    @property
    def letter(self) -> str:
        """That of the right choice."""
        return self.answers[0]


class Unread(NamedTuple):
    """A file that is damaged; `rows` is how many it has, where that is known."""

    file: str
    rows: int | None
    why: str


class Read(NamedTuple):
    """The questions that some files hold.

    Attributes:
      numbered: the files have no ids, and keys are numbers of rows.
      unfit: questions that cannot be scored, as they have no answer or their rows are broken.
      keys: of all, in the order of the files.
      notes: what is to be known of the files, one line each.
      without: files whose questions are not there.
    """

    questions: Sequence[Question]
    form: str
    numbered: bool = False
    unfit: Sequence[Question] = ()
    keys: Sequence[int | str] = ()
    notes: Sequence[str] = ()
    without: Sequence[Unread] = ()


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
