"""Questions about a scene and their exact answers, for every task.

Which of the many possible questions of a picture are asked is drawn so that no kind can be answered from its
wording alone: truth is drawn before a yes/no question is worded, false ones differ from the picture in a
single word, and questions whose usual answer would be "1" are mostly left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sphinx_jax.data.playground.scene import PLACES, Scene
from sphinx_jax.data.playground.things import COLOURS, NAMES, NUMBERS, SHAPES, Thing, plural
from sphinx_jax.data.tasks import PaddedSquare, format_answer, ground, instruct


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `kind`: the sort of vqa question; the task's own name for other tasks."""

    task: str
    kind: str
    question: str
    answer: str


FEWEST_TURNS, MOST_TURNS = 6, 12


class Asker:
    """Words questions about one scene."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng
        self.square = PaddedSquare(scene.width, scene.height)
        self.things = sorted(scene.things, key=lambda thing: thing.centre)

    def relative(self, value: Any) -> Any:
        """A box, pose or region in pixels, as answers give it."""
        return self.square.from_pixels(value)

    def choose(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def turn(self, task: str, value: Any, kind: str | None = None, **fields: Any) -> Turn:
        return Turn(task, kind or task, instruct(task, **fields), format_answer(task, value))

    def vqa(self, kind: str, question: str, answer: str) -> Turn:
        return self.turn("vqa", answer, kind, question=question)

    # --- what identifies a thing

    def alone(self, thing: Thing, attribute: str) -> bool:
        """Whether no other thing has the same name or colour."""
        value = getattr(thing, attribute)
        return sum(getattr(other, attribute) == value for other in self.things) == 1

    def alone_at(self, thing: Thing) -> str | None:
        """The clear place that only this thing is near."""
        place = self.scene.clear_place(thing.box)
        near = sum(self.scene.place(other.box) == place for other in self.things)
        return place if place and near == 1 else None

    def names_of(self, thing: Thing) -> list[str]:
        """Phrases that point to this thing only, by what it looks like."""
        phrases = [thing.phrase] if sum(other.phrase == thing.phrase for other in self.things) == 1 else []
        if len(self.things) > 1:
            phrases += [thing.name] if self.alone(thing, "name") else []
            if self.scene.kind == "things" and self.alone(thing, "colour"):
                phrases.append(f"{thing.colour} thing")
        return phrases

    def places_of(self, thing: Thing) -> list[str]:
        """Phrases that point to this thing only, by where it is among others."""
        phrases = []
        if len(self.things) > 1 and (place := self.alone_at(thing)):
            phrases.append(f"{thing.name} {where(place)}")
            phrases += [f"thing {where(place)}"] if self.scene.kind == "things" else []
        same = [other for other in self.things if other.name == thing.name]
        if len(same) == 2 and abs(same[0].centre[0] - same[1].centre[0]) > 0.12 * self.square.side:
            phrases.append(f"{thing.name} on the {'left' if same[0] is thing else 'right'}")
        return phrases


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def listing(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def where(place: str) -> str:
    """`at the top left`, `in the centre`, `on the left`."""
    return {"centre": "in the centre", "left": "on the left", "right": "on the right"}.get(place, f"at the {place}")


# --- visual question answering


def ask_what(asker: Asker) -> Turn | None:
    thing = asker.choose(asker.things)
    questions = []
    if asker.alone(thing, "colour"):
        questions.append(f"What is the {thing.colour} thing?")
    if place := asker.alone_at(thing):
        questions.append(f"What is {where(place)}?")
    if not questions:
        return None
    return asker.vqa("what", asker.choose(questions), thing.name)


def ask_colour(asker: Asker) -> Turn | None:
    thing = asker.choose(asker.things)
    questions = []
    if asker.alone(thing, "name"):
        questions += [f"What colour is the {thing.name}?"] * 2
    if asker.scene.kind == "things" and (place := asker.alone_at(thing)):
        questions.append(f"What colour is the thing {where(place)}?")
    return asker.vqa("colour", asker.choose(questions), thing.colour) if questions else None


def ask_where(asker: Asker) -> Turn | None:
    thing = asker.choose(asker.things)
    place = asker.scene.clear_place(thing.box)
    if place is None:
        return None
    phrases = asker.names_of(thing)
    return asker.vqa("where", f"Where is the {asker.choose(phrases)}?", place) if phrases else None


# A group of one is what most pictures have: asking for all of them would make "1" the answer.
_ASK_FOR_ONE = 0.3
_SURPLUS = {1: 0.8, 2: 0.55, 3: 0.8, 4: 1.0}


def ask_count(asker: Asker) -> Turn | None:
    things = asker.things
    if asker.rng.random() < 0.45:
        if asker.rng.random() > _SURPLUS[len(things)]:
            return None
        return asker.vqa("count", "How many things are there?", str(len(things)))
    thing = asker.choose(things)
    group, label = asker.choose(
        [
            ([other for other in things if other.name == thing.name], plural(thing.name)),
            ([other for other in things if other.colour == thing.colour], f"{thing.colour} things"),
            (
                [other for other in things if (other.name in NUMBERS) == (thing.name in NUMBERS)],
                "numbers" if thing.name in NUMBERS else "shapes",
            ),
        ]
    )
    if len(group) == 1 and asker.rng.random() > _ASK_FOR_ONE:
        return None
    return asker.vqa("count", f"How many {label} are there?", str(len(group)))


def ask_yes_no(asker: Asker) -> Turn | None:
    truth = bool(asker.rng.random() < 0.5)
    if len(asker.things) > 1 and asker.rng.random() < 0.4:
        question = _ask_side(asker, truth)
    else:
        question = _ask_presence(asker, truth)
    return asker.vqa("yes_no", question, "yes" if truth else "no") if question else None


def _ask_presence(asker: Asker, truth: bool) -> str:
    thing = asker.choose(asker.things)
    phrase = thing.phrase
    if not truth:
        # one word of a phrase that is there, changed; from another thing of the picture if that is possible
        colours = [other.colour for other in asker.things] * 4 + list(COLOURS)
        names = [other.name for other in asker.things] * 4 + list(SHAPES)
        there = {other.phrase for other in asker.things}
        while phrase in there:
            if asker.rng.random() < 0.5:
                phrase = f"{asker.choose(colours)} {thing.name}"
            else:
                phrase = f"{thing.colour} {asker.choose(names)}"
    return f"Is there {article(phrase)}?"


def _ask_side(asker: Asker, truth: bool) -> str | None:
    pairs = list(relations(asker))
    if not pairs:
        return None
    subject, words, other = asker.choose(pairs)
    if not truth:
        subject, other = other, subject
    words = {"left of": "to the left of", "right of": "to the right of"}.get(words, words)
    return f"Is the {subject.phrase} {words} the {other.phrase}?"


def ask_read(asker: Asker) -> Turn | None:
    numbers = [thing for thing in asker.things if thing.name in NUMBERS]
    if len(numbers) == 1:
        question = "What number is shown?"
    else:
        numbers = [thing for thing in numbers if asker.alone(thing, "colour")]
        if not numbers:
            return None
        question = None
    thing = asker.choose(numbers)
    question = question or f"What is the {thing.colour} number?"
    return asker.vqa("read", question, thing.name.removeprefix("number "))


def ask_multiple_choice(asker: Asker) -> Turn | None:
    ask = asker.choose((ask_what, ask_colour, ask_where))
    asked = ask(asker)
    if asked is None:
        return None
    if ask is ask_what:
        options = NUMBERS if asked.answer in NUMBERS and asker.rng.random() < 0.5 else NAMES
        near = [other.name for other in asker.things]
    elif ask is ask_colour:
        options, near = tuple(COLOURS), [other.colour for other in asker.things]
    else:
        options, near = PLACES, []
    wrong = [value for value in dict.fromkeys(near) if value != asked.answer][:2]
    others = [value for value in options if value != asked.answer and value not in wrong]
    wrong += [others[i] for i in asker.rng.permutation(len(others))[: 3 - len(wrong)]]
    choices = [wrong[i] for i in asker.rng.permutation(3)]
    right = int(asker.rng.integers(4))
    choices.insert(right, asked.answer)
    question = asked.question.split("\n")[0]
    return asker.turn("multiple_choice", "ABCD"[right], question=question, choices=choices)


# --- captions


def ask_short_caption(asker: Asker) -> Turn:
    return asker.turn("short_caption", sentence(listing([article(thing.phrase) for thing in asker.things])))


def ask_detailed_caption(asker: Asker) -> Turn:
    count = len(asker.things)
    parts = ["There is 1 thing." if count == 1 else f"There are {count} things."]
    for thing in asker.things:
        parts.append(sentence(f"{article(thing.phrase)} is {where(asker.scene.place(thing.box))}"))
    return asker.turn("detailed_caption", " ".join(parts))


def ask_grounded_caption(asker: Asker) -> Turn:
    phrases = []
    for thing in asker.things:
        located = ground(thing.phrase, [asker.relative(thing.box)])
        phrases.append(article(thing.phrase).removesuffix(thing.phrase) + located)
    return asker.turn("grounded_caption", sentence(listing(phrases)))


# --- places of things


def ask_rec(asker: Asker) -> Turn | None:
    """By look or by place, each as often as the other: people say where things are too (RefCOCO, Yu et al. 2016)."""
    thing = asker.choose(asker.things)
    ways = [phrases for phrases in (asker.names_of(thing), asker.places_of(thing)) if phrases]
    if not ways:
        return None
    return asker.turn("rec", asker.relative(thing.box), phrase=asker.choose(asker.choose(ways)))


def ask_reg(asker: Asker) -> Turn:
    thing = asker.choose(asker.things)
    return asker.turn("reg", thing.phrase, box=asker.relative(thing.box))


def ask_detection(asker: Asker) -> Turn:
    thing = asker.choose(asker.things)
    group, phrase = asker.choose(
        [
            ([other for other in asker.things if other.name == thing.name], plural(thing.name)),
            ([other for other in asker.things if other.colour == thing.colour], f"{thing.colour} things"),
            (asker.things, "things"),
        ]
    )
    return asker.turn("detection", [asker.relative(other.box) for other in group], phrase=phrase)


def relations(asker: Asker) -> Iterator[tuple[Thing, str, Thing]]:
    """Pairs of things that clearly lie beside or above one another."""
    clear = 0.16 * asker.square.side
    for subject in asker.things:
        for other in asker.things:
            dx, dy = (a - b for a, b in zip(subject.centre, other.centre, strict=True))
            if abs(dx) > max(clear, 1.3 * abs(dy)):
                yield subject, "left of" if dx < 0 else "right of", other
            elif abs(dy) > max(clear, 1.3 * abs(dx)):
                yield subject, "above" if dy < 0 else "below", other


def ask_relation(asker: Asker) -> Turn | None:
    pairs = list(relations(asker))
    if not pairs:
        return None
    subject, words, other = asker.choose(pairs)
    phrase = f"{subject.phrase} {words} {other.phrase}"
    return asker.turn("relation", asker.relative(subject.box), phrase=phrase)


def ask_classification(asker: Asker) -> Turn:
    return asker.turn("classification", asker.things[0].name)


# --- which questions a scene gets

Ask = Callable[[Asker], Turn | None]

_VQA: tuple[Ask, ...] = (ask_what, ask_colour, ask_where, ask_count, ask_read)
_OTHERS: tuple[Ask, ...] = (
    ask_multiple_choice,
    ask_short_caption,
    ask_detailed_caption,
    ask_reg,
    ask_detection,
    ask_relation,
)

_ALWAYS_POSSIBLE: tuple[Ask, ...] = (
    ask_reg,
    ask_detailed_caption,
    ask_short_caption,
    ask_grounded_caption,
    ask_rec,
)


def things_plan(rng: np.random.Generator) -> list[Ask]:
    """Six vqa, at most one of them yes/no, two rec, a grounded caption (all boxes), three of the others.

    Some will find nothing to ask.
    """
    vqa = [_VQA[i] for i in rng.permutation(len(_VQA))] + [ask_count if rng.random() < 0.5 else ask_what]
    vqa += [ask_yes_no] if rng.random() < 0.75 else [ask_colour]
    others = [_OTHERS[i] for i in rng.permutation(len(_OTHERS))[:3]]
    return [*vqa[-6:], ask_rec, ask_rec, ask_grounded_caption, *others]


def single_plan(rng: np.random.Generator) -> list[Ask]:
    others = (
        ask_what_single,
        ask_colour_single,
        ask_yes_no,
        ask_rec,
        ask_reg,
        ask_short_caption,
        ask_grounded_caption,
    )
    kept = [others[i] for i in rng.permutation(len(others))[:5]]
    return [ask_classification, *kept]


def ask_what_single(asker: Asker) -> Turn:
    return asker.vqa("what", "What is shown?", asker.things[0].name)


def ask_colour_single(asker: Asker) -> Turn:
    return asker.vqa("colour", "What colour is it?", asker.things[0].colour)


def ask_all(scene: Scene, rng: np.random.Generator, plan: Sequence[Ask]) -> tuple[Turn, ...]:
    """The turns of a plan, shuffled: no question twice, `FEWEST_TURNS` to `MOST_TURNS` of them."""
    asker = Asker(scene, rng)
    asked: dict[str, Turn] = {}

    def add(ask: Ask) -> None:
        turn = ask(asker)
        if turn is not None:
            asked.setdefault(turn.question, turn)

    for ask in plan:
        add(ask)
    for ask in _ALWAYS_POSSIBLE:
        if len(asked) < FEWEST_TURNS:
            add(ask)
    turns = list(asked.values())[:MOST_TURNS]
    return tuple(turns[i] for i in rng.permutation(len(turns)))
