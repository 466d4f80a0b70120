"""The text-only stream: real prose, conversations about the same world, descriptions of imagined scenes.

It goes along with pictures, as RefinedWeb went along with SPHINX's, so that the decoder keeps its language.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.playground.photos import SPLITS, pick
from sphinx_jax.data.playground.prose import prose
from sphinx_jax.data.playground.questions import article, listing, sentence, where
from sphinx_jax.data.playground.scene import PLACES
from sphinx_jax.data.playground.scenes_text import WORDS
from sphinx_jax.data.playground.things import COLOURS, NAMES, SHAPES, plural
from sphinx_jax.data.tasks import Point, format_point

__all__ = ["Stream", "descriptions", "dialogue", "documents", "prose", "stream"]

LENGTHS = {"train": 6000, "validation": 300, "test": 300}
"""Entries of a stream: a third each of prose, conversations and descriptions."""

Pair = tuple[str, str]

FACTS = {
    "grass": "green",
    "the sky on a clear day": "blue",
    "snow": "white",
    "coal": "black",
    "a ripe tomato": "red",
    "a lemon": "yellow",
    "a carrot": "orange",
    "a grape": "purple",
    "blood": "red",
    "milk": "white",
    "a banana": "yellow",
    "the night": "black",
    "a leaf in spring": "green",
    "a pumpkin": "orange",
    "a plum": "purple",
    "the sea": "blue",
}
MIXES = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple"}
OPPOSITES = {
    "left": "right",
    "top": "bottom",
    "above": "below",
    "black": "white",
    "top left": "bottom right",
    "top right": "bottom left",
    "yes": "no",
}


def _rng(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    if split not in SPLITS:
        raise ValueError(f"unknown playground split {split!r}: give one of {', '.join(SPLITS)}")
    return np.random.default_rng([seed, SPLITS.index(split), index, stream, 7])


def _flip(rng: np.random.Generator, pair: Pair) -> Pair:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _spell(rng: np.random.Generator) -> Pair:
    word = pick(rng, WORDS + SHAPES + tuple(COLOURS))
    if rng.random() < 0.5:
        return f"How do you spell {word}?", " ".join(word)
    return f"Which word is spelled {' '.join(word)}?", word


def _letters(rng: np.random.Generator) -> Pair:
    word = pick(rng, WORDS + SHAPES + tuple(COLOURS))
    match rng.integers(3):
        case 0:
            return f"How many letters does {word} have?", str(len(word))
        case 1:
            return f"What is the first letter of {word}?", word[0]
    return f"What is the last letter of {word}?", word[-1]


def _colour_fact(rng: np.random.Generator) -> Pair:
    if rng.random() < 0.25:
        mixed = list(MIXES)[int(rng.integers(len(MIXES)))]
        first, second = _flip(rng, mixed)
        return f"What colour do {first} and {second} make?", MIXES[mixed]
    thing = pick(rng, tuple(FACTS))
    return f"What colour is {thing}?", FACTS[thing]


def _compare_numbers(rng: np.random.Generator) -> Pair:
    a, b = (int(v) for v in rng.choice(21, 2, replace=False))
    larger = rng.random() < 0.5
    return f"Which is {'larger' if larger else 'smaller'}, {a} or {b}?", str(max(a, b) if larger else min(a, b))


def _compare_points(rng: np.random.Generator) -> Pair:
    (ax, bx), (ay, by) = (rng.choice(101, 2, replace=False) / 100 for _ in range(2))
    a, b = Point(float(ax), float(ay)), Point(float(bx), float(by))
    question, first = (
        ("further left", a.x < b.x),
        ("further right", a.x > b.x),
        ("higher", a.y < b.y),
        ("lower", a.y > b.y),
    )[int(rng.integers(4))]
    one, two = format_point(a), format_point(b)
    return f"Which is {question}, {one} or {two}?", one if first else two


def _arithmetic(rng: np.random.Generator) -> Pair:
    a, b = (int(v) for v in rng.integers(0, 11, 2))
    if rng.random() < 0.5:
        return f"What is {a} plus {b}?", str(a + b)
    a, b = max(a, b), min(a, b)
    return f"What is {a} minus {b}?", str(a - b)


def _count_on(rng: np.random.Generator) -> Pair:
    start = int(rng.integers(0, 18))
    if rng.random() < 0.5:
        return f"Which number comes after {start}?", str(start + 1)
    return f"Continue: {start}, {start + 1}, {start + 2}.", str(start + 3)


def _repeat(rng: np.random.Generator) -> Pair:
    words = [pick(rng, WORDS + SHAPES + tuple(COLOURS)) for _ in range(int(rng.integers(1, 5)))]
    if rng.random() < 0.4:
        words = [format_point(Point(*(float(v) / 100 for v in rng.integers(0, 101, 2))))]
    return f"Repeat: {' '.join(words)}", " ".join(words)


def _kind_of(rng: np.random.Generator) -> Pair:
    group = (("colour", tuple(COLOURS)), ("shape", SHAPES), ("number", tuple(map(str, range(10)))))
    name, members = group[int(rng.integers(3))]
    asked, _ = group[int(rng.integers(3))] if rng.random() < 0.5 else (name, members)
    return f"Is {pick(rng, members)} a {asked}?", "yes" if asked == name else "no"


def _opposite(rng: np.random.Generator) -> Pair:
    a, b = _flip(rng, list(OPPOSITES.items())[int(rng.integers(len(OPPOSITES)))])
    return f"What is the opposite of {a}?", b


def _plural(rng: np.random.Generator) -> Pair:
    name = pick(rng, (*SHAPES, "person", "thing", "number"))
    return f"What is the plural of {name}?", plural(name)


def _imagine(rng: np.random.Generator, most: int = 4) -> list[tuple[str, str, str]]:
    """Colour, name and place of some different things at different places."""
    count = int(rng.integers(1, most + 1))
    places = [PLACES[i] for i in rng.permutation(len(PLACES))[:count]]
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:count]]
    colours = [tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count]]
    return list(zip(colours, names, places, strict=True))


def _told(rng: np.random.Generator) -> Pair:
    """A scene in words, and a question about it."""
    scene = _imagine(rng, 3)
    told = " ".join(sentence(f"{article(f'{c} {n}')} is {where(p)}") for c, n, p in scene)
    colour, name, place = scene[int(rng.integers(len(scene)))]
    question, answer = (
        (f"What is {where(place)}?", name),
        (f"What colour is the {name}?", colour),
        (f"Where is the {colour} {name}?", place),
        (f"What is the {colour} thing?", name),
        ("How many things are there?", str(len(scene))),
    )[int(rng.integers(5))]
    return f"{told} {question}", answer


_ASKS: tuple[Callable[[np.random.Generator], Pair], ...] = (
    _spell,
    _letters,
    _colour_fact,
    _compare_numbers,
    _compare_points,
    _arithmetic,
    _count_on,
    _repeat,
    _kind_of,
    _opposite,
    _plural,
    _told,
    _told,
)


def dialogue(seed: int, split: str, index: int) -> list[Pair]:
    """Four to seven questions and answers about words, numbers, colours and told scenes."""
    rng = _rng(seed, split, index, 0)
    pairs = [_ASKS[int(rng.integers(len(_ASKS)))](rng) for _ in range(int(rng.integers(4, 8)))]
    return list(dict(pairs).items())


def descriptions(seed: int, split: str, index: int) -> str:
    """Two or three imagined scenes in the style of the captions, one a paragraph."""
    rng = _rng(seed, split, index, 1)
    paragraphs = []
    for _ in range(int(rng.integers(2, 4))):
        scene = _imagine(rng)
        if rng.random() < 0.4:
            paragraphs.append(sentence(listing([article(f"{c} {n}") for c, n, _ in scene])))
            continue
        count = f"There {'is 1 thing' if len(scene) == 1 else f'are {len(scene)} things'}."
        told = (sentence(f"{article(f'{c} {n}')} is {where(p)}") for c, n, p in scene)
        paragraphs.append(" ".join([count, *told]))
    return "\n".join(paragraphs)


class Stream(Sequence):
    """The text of a split, by index: prose and descriptions (str) and conversations (`Item`) in turn."""

    def __init__(self, seed: int, split: str):
        self.seed, self.split = seed, split
        self.prose = prose(split)

    def __len__(self) -> int:
        return LENGTHS[self.split]

    def __getitem__(self, index: int) -> Item | str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        kind, number = index % len(self) % 3, index % len(self) // 3
        if kind == 0:
            return self.prose[number % len(self.prose)]
        if kind == 1:
            return descriptions(self.seed, self.split, number)
        turns = tuple(dialogue(self.seed, self.split, number))
        return Item(None, turns, ("text",) * len(turns), id=f"text-{self.split}-{self.seed}-{number:06d}")


@functools.lru_cache(maxsize=8)
def stream(seed: int, split: str) -> Stream:
    """The text-only stream of a split."""
    return Stream(seed, split)


def documents(split: str, seed: int = 0) -> list[str | list[Pair]]:
    """All of a split's text: documents, and conversations as lists of (question, answer)."""
    return [entry if isinstance(entry, str) else list(entry.turns) for entry in stream(seed, split)]
