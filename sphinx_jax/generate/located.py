"""Answers with places in the picture, as values: boxes, people's poses, texts and parts of a page."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from numbers import Real
from reprlib import repr as short
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sphinx_jax.data.conversation import clean, render
from sphinx_jax.data.image import load_image
from sphinx_jax.data.tasks import (
    Box,
    GrammarError,
    LayoutRegion,
    PaddedSquare,
    Pose,
    TextRegion,
    instruct,
    parse_answer,
)
from sphinx_jax.generate.arguments import BadArgument, check_filled, check_text, check_vision
from sphinx_jax.generate.batching.pictures import Detail
from sphinx_jax.generate.request import Said

Frame = Literal["pixels", "padded"]
LENGTH = 1024  # tokens of an answer, at most
NEAR = 0.1  # of a number: those farther away are of other things, and their mean lies between the two

_PHRASE = re.compile(rb"<p>.*?</p>")
_NUMBER = rb"0\.\d\d|1\.00"
_BOX = re.compile(rb"[\[;]" + rb",".join([rb" ?(%b)" % _NUMBER] * 4) + rb"(?=[\];]|$)")


class Question(NamedTuple):
    """What is asked about a picture whose answer has places in it."""

    task: str
    text: str
    square: PaddedSquare
    frame: str


def question(task: str, image: Any, frame: str, **fields: Any) -> tuple[Question, Any]:
    """The question, and the picture as it was read.

    Raises:
      BadArgument, BadImage, TaskError: in one line.
    """
    if frame not in get_args(Frame):
        raise BadArgument(f"frame must be pixels (of the picture) or padded (0 to 1, of its square), not {frame!r}")
    if "phrase" in fields:
        check_filled(
            "phrase, which follows the image,", check_text("phrase, which follows the image,", fields["phrase"])
        )
    if "box" in fields:
        fields["box"] = _box(fields["box"])
    picture = load_image(image)
    square = PaddedSquare(*picture.size)
    moved = {n: square.from_pixels(v) if frame == "pixels" and isinstance(v, Box) else v for n, v in fields.items()}
    try:
        text = instruct(task, **moved)
    except GrammarError:
        of = (
            f"{square.width} x {square.height} pixels"
            if frame == "pixels"
            else 'square, 0 to 1; frame="pixels" has others'
        )
        box = fields["box"]
        raise BadArgument(f"box {(box.x1, box.y1, box.x2, box.y2)} is not within the picture's {of}") from None
    return Question(task, text, square, frame), picture


def _box(given: Any) -> Box:
    """A box, from one or from its four numbers."""
    if isinstance(given, Box):
        return given
    numbers = list(given) if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str | bytes) else []
    if len(numbers) != 4 or not all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers):
        raise BadArgument(f"box must be a Box or four numbers, left, top, right and bottom, not {short(given)}")
    try:
        return Box(*map(float, numbers))
    except GrammarError as error:
        raise BadArgument(str(error)) from None


def places(asked: Question, said: Said, pieces: Sequence[bytes]) -> list[Any]:
    """The typed values of an answer, its boxes with what is known of them, in the frame that was asked for."""
    value = parse_answer(asked.task, said.text)
    known = list(weighed(said, pieces))

    def sure(box: Box) -> Box:
        return dataclasses.replace(box, **(known.pop(0)._asdict() if known else {}))

    def place(one: Any) -> Any:
        if isinstance(one, Box):
            one = sure(one)
        elif not isinstance(one, Pose):
            one = dataclasses.replace(one, box=sure(one.box))
        return asked.square.to_pixels(one, clip=True) if asked.frame == "pixels" else one

    if value is None:  # cut off
        return []
    return [place(one) for one in (value if isinstance(value, list) else [value])]


class Weighed(NamedTuple):
    """How likely a box is, and its neighbours."""

    confidence: float  # geometric mean of the probabilities of its tokens that were chosen, among those that fit
    expected: Box


def weighed(said: Said, pieces: Sequence[bytes]) -> Iterator[Weighed]:
    """What the probabilities of an answer's tokens say of each of its boxes, in order."""
    begins, text = [], b""
    for token in said.tokens:
        begins.append(len(text))
        text += pieces[token]

    def chosen(start: int, end: int) -> list[int]:
        """The numbers of the tokens of a part of the text that could have been others: forced ones say nothing."""
        inside = [i for i, begin in enumerate(begins) if begin < end and begin + len(pieces[said.tokens[i]]) > start]
        return [i for i in inside if said.logprobs[i] != 0.0]

    def mean(start: int, end: int) -> float:
        """Of the numbers near this one that its last token could have made of it, each as likely as it is."""
        number, inside = float(text[start:end]), chosen(start, end)
        last = inside[-1] if inside else 0
        # where forced ones follow, others would have been followed by others
        if last not in said.others or begins[last] + len(pieces[said.tokens[last]]) < end:
            return number
        total = share = 0.0
        for token, chance in zip(*said.others[last], strict=True):
            other = _number(text[: begins[last]] + pieces[token], text[:start])
            if other is not None and abs(other - number) < NEAR:
                total, share = total + math.exp(chance) * other, share + math.exp(chance)
        return total / share if share else number

    # of a phrase, whatever it spells, nothing is a box
    for found in _BOX.finditer(_PHRASE.sub(lambda phrase: b" " * len(phrase[0]), text)):
        chances = [said.logprobs[i] for i in chosen(found.start(1), found.end(4))]
        x1, y1, x2, y2 = (mean(*found.span(number)) for number in range(1, 5))
        # each is the mean for the others as they were said
        expected = Box(x1, y1, max(x1, x2), max(y1, y2))
        yield Weighed(math.exp(sum(chances) / len(chances)) if chances else 1.0, expected)


def _number(text: bytes, before: bytes) -> float | None:
    """The number that a text goes on with after what stood before it, if it is whole."""
    found = re.match(_NUMBER, text[len(before) :]) if text.startswith(before) else None
    return float(found[0]) if found else None


class Located:
    """The questions whose answers are places; a part of `Sphinx`.

    `frame` says whether boxes and points are given and returned in "pixels" of the picture, or relative to the square
    it is padded to ("padded", 0 to 1, as answers have them).  Boxes have a `confidence`, from 0 to 1, and
    an `expected` box, whose numbers lie between those that can be said.  `detail` is as `Request` has it.
    """

    def ground(self, image: Any, phrase: str, frame: Frame = "pixels", detail: Detail = "high") -> list[Box]:
        """Where what a phrase describes is: one box."""
        return self._places("rec", image, frame, detail, phrase=phrase)

    def detect(self, image: Any, phrase: str, frame: Frame = "pixels", detail: Detail = "high") -> list[Box]:
        """Where all things of a kind are."""
        return self._places("detection", image, frame, detail, phrase=phrase)

    def pose(
        self, image: Any, box: Box | Sequence[float], frame: Frame = "pixels", detail: Detail = "high"
    ) -> list[Pose]:
        """The 17 COCO keypoints of the person in a box, or within its four numbers: left, top, right, bottom."""
        return self._places("pose", image, frame, detail, box=box)

    def read(self, image: Any, frame: Frame = "pixels", detail: Detail = "high") -> list[TextRegion]:
        """All texts in the picture, and where they are."""
        return self._places("text_spotting", image, frame, detail)

    def layout(self, image: Any, frame: Frame = "pixels", detail: Detail = "high") -> list[LayoutRegion]:
        """The parts of a page, and where they are."""
        return self._places("layout", image, frame, detail)

    def _places(self, task: str, image: Any, frame: str, detail: str, **fields: Any) -> list[Any]:
        asked, picture = question(task, image, frame, **fields)
        model: Any = self
        config = model.config
        check_vision(config)
        positions, prompt = config.decoder.max_positions, render([(clean(asked.text), None)])[0]
        room = positions - config.image_positions - len(model.encode_prompt(prompt))
        most, least = min(LENGTH, room), max(1, model.engine.most_tokens(task))
        if most < least:
            raise BadArgument(
                f"an answer of {least} tokens may be needed, and the picture and the question leave "
                f"{max(room, 0)} of the model's {positions} positions"
            )
        settings = {"task": task, "temperature": 0.0, "max_new_tokens": most, "logprobs": True, "detail": detail}
        said = model.respond([[asked.text, None]], picture, **settings)
        return places(asked, said, model.engine.stops.pieces)
