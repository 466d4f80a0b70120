"""Answers with places in the picture, as values: boxes, people's poses, texts and parts of a page."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from sphinx_jax.data.image import load_image
from sphinx_jax.data.tasks import Box, LayoutRegion, PaddedSquare, Pose, TextRegion, instruct, parse_answer
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.engine import Said

Frame = Literal["pixels", "padded"]
LENGTH = 1024  # tokens of an answer, at most

_LIST = re.compile(rb"\[([^\[\]]*)(?:\]|$)")


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
    picture = load_image(image)
    square = PaddedSquare(*picture.size)
    if frame == "pixels":
        fields = {name: square.from_pixels(v) if isinstance(v, Box) else v for name, v in fields.items()}
    return Question(task, instruct(task, **fields), square, frame), picture


def places(asked: Question, said: Said, pieces: Sequence[bytes]) -> list[Any]:
    """The typed values of an answer, its boxes with confidences, in the frame that was asked for."""
    value = parse_answer(asked.task, said.text)
    chances = list(confidences(said, pieces))

    def sure(box: Box) -> Box:
        return dataclasses.replace(box, confidence=chances.pop(0) if chances else None)

    def place(one: Any) -> Any:
        if isinstance(one, Box):
            one = sure(one)
        elif not isinstance(one, Pose):
            one = dataclasses.replace(one, box=sure(one.box))
        return asked.square.to_pixels(one, clip=True) if asked.frame == "pixels" else one

    if value is None:  # cut off
        return []
    return [place(one) for one in (value if isinstance(value, list) else [value])]


def confidences(said: Said, pieces: Sequence[bytes]) -> Iterator[float]:
    """Of each box of an answer, in order: the geometric mean of the probabilities of the tokens that its numbers were
    chosen with, among those that could stand there."""
    begins, text = [], b""
    for token in said.tokens:
        begins.append(len(text))
        text += pieces[token]
    for found in _LIST.finditer(text):
        start = found.start(1)
        for item in found[1].split(b";"):
            end = start + len(item)
            inside = [
                chance
                for begin, token, chance in zip(begins, said.tokens, said.logprobs, strict=True)
                if begin < end and begin + len(pieces[token]) > start and chance != 0.0  # forced ones say nothing
            ]
            if item.count(b",") == 3:
                yield math.exp(sum(inside) / len(inside)) if inside else 1.0
            start = end + 1


class Located:
    """The questions whose answers are places; a part of `Sphinx`.

    `frame` says whether boxes and points are given and returned in "pixels" of the picture, or relative to the square
    it is padded to ("padded", 0 to 1, as answers have them).  Boxes have a `confidence`, from 0 to 1.
    """

    def ground(self, image: Any, phrase: str, frame: Frame = "pixels") -> list[Box]:
        """Where what a phrase describes is: one box."""
        return self._places("rec", image, frame, phrase=phrase)

    def detect(self, image: Any, phrase: str, frame: Frame = "pixels") -> list[Box]:
        """Where all things of a kind are."""
        return self._places("detection", image, frame, phrase=phrase)

    def pose(self, image: Any, box: Box, frame: Frame = "pixels") -> list[Pose]:
        """The 17 COCO keypoints of the person in a box."""
        return self._places("pose", image, frame, box=box)

    def read(self, image: Any, frame: Frame = "pixels") -> list[TextRegion]:
        """All texts in the picture, and where they are."""
        return self._places("text_spotting", image, frame)

    def layout(self, image: Any, frame: Frame = "pixels") -> list[LayoutRegion]:
        """The parts of a page, and where they are."""
        return self._places("layout", image, frame)

    def _places(self, task: str, image: Any, frame: str, **fields: Any) -> list[Any]:
        asked, picture = question(task, image, frame, **fields)
        model: Any = self
        config = model.config
        most = min(LENGTH, (config.decoder.max_positions - config.image_positions) // 2)
        settings = {"task": task, "temperature": 0.0, "max_new_tokens": most, "logprobs": True}
        said = model.respond([[asked.text, None]], picture, **settings)
        return places(asked, said, model.engine.stops.pieces)
