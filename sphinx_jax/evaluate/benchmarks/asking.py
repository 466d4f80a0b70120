"""How questions are put to a model, by protocol: instructions, what an answer begins with, how long it is.

Protocol reference asks as the authors' evaluation does (SPHINX's own release, `accessory/eval_mm`); official as
lmms-eval, which most published numbers come from.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sphinx_jax.data.tasks import Box, PaddedSquare, format_answer
from sphinx_jax.evaluate.question import LETTERS, BadBenchmark, Question

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CHINESE = "\n请直接使用所提供的选项字母作为答案回答。"
LETTER_REFERENCE = '\nAnswer with the option"s letter from the given choices directly.'
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
YES_OR_NO = " Please answer yes or no."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: {}"
FRAME = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1. "
)
CAPTION = "Provide a one-sentence caption for the provided image."
ICONS = "Given a set of images and a question, please provide the answer to the question."
PEOPLE = "Detect all people shown in the image."


def right(question: Question) -> str:
    """The answer that most people gave, or the box in the padded square; "" where there is none in words."""
    if question.box is not None and question.size is not None:
        return format_answer("rec", PaddedSquare(*question.size).from_pixels(Box(*question.box)))
    (most, _), *_ = collections.Counter(question.answers).most_common(1) or [("", 0)]
    return most.strip()


@dataclass(frozen=True)
class Ask:
    """How one benchmark is asked.

    Attributes:
      text: what the human says.
      most: tokens of an answer at most.
      begin: what the answer begins with, which is no part of it.
      right: what would be right to say.
    """

    text: Callable[[Question], str]
    most: int = 10
    begin: str = ""
    right: Callable[[Question], str] = right


def short(question: Question) -> str:
    return question.text + SHORT


def _lettered(question: Question) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))


def _letter(question: Question) -> str:
    hint = f"{question.hint}\n" if question.hint else ""
    return f"{hint}{question.text}\n{_lettered(question)}{LETTER}"


def _several(question: Question) -> str:
    """MMBench's, whose choices end with an empty line."""
    hint = f"{question.hint} " if question.hint else ""
    return f"{hint}{question.text} There are several options:\n{_lettered(question)}\n{LETTER}"


def _several_chinese(question: Question) -> str:
    hint = f"{question.hint} " if question.hint else ""
    return f"{hint}{question.text} 有如下几个选项：\n{_lettered(question)}\n{LETTER_CHINESE}"


def _college(question: Question) -> str:
    if not question.choices:
        return f"{question.text}\n{SHORT}"
    return f"{question.text}\n{_lettered(question)}\n{LETTER}"


def _context(question: Question) -> str:
    """ScienceQA's in the reference, whose context may be empty."""
    return f"Context:\n{question.hint}\n{_asked(question)}"


def _asked(question: Question) -> str:
    return f"Question:\n{question.text}\nChoices:\n{_lettered(question)}{LETTER_REFERENCE}"


def _joined(question: Question) -> str:
    """AI2D's in the reference: texts of the choices, the first right behind the question."""
    return question.text + "\n".join(question.choices) + SHORT


def _chosen(question: Question) -> str:
    return question.choices[LETTERS.index(question.letter)]


def _seen(question: Question) -> str:
    """BLINK's, whose choices stand in brackets."""
    letters = LETTERS[: len(question.choices)]
    choices = "\n".join(f"({letter}) {choice}" for letter, choice in zip(letters, question.choices, strict=True))
    only = f"Note: You only need to respond with {', '.join(letters)} without providing any additional information.\n"
    return f"{only}{question.text}\nSelect from the following choices.\n{choices}"


def _icons(question: Question) -> str:
    asked = f"{ICONS}\nQuestion: {question.text}.\n"
    if not question.choices:
        return f"{asked}Please answer the question using a single word or phrase."
    letter = "Please answer with the option letter from the given choices directly."
    return f"{asked}Options:\n{_lettered(question)}\n{letter}"


REFERENCE: dict[str, Ask] = {
    **dict.fromkeys(("vqav2", "okvqa", "gqa", "textvqa", "mme", "chartqa"), Ask(short)),
    "vizwiz": Ask(lambda q: f"{q.text} {UNANSWERABLE}{SHORT}"),
    "ocrvqa": Ask(short, 20),
    "docvqa": Ask(short, 32),
    "infovqa": Ask(short, 25),
    "ai2d": Ask(_joined, right=_chosen),
    "scienceqa": Ask(_context, begin=" The answer is"),
    "seed": Ask(_asked),
    "vsr": Ask(lambda q: q.text),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), Ask(lambda q: REGION.format(q.text) + ".", 30)),
}
OFFICIAL: dict[str, Ask] = {
    **dict.fromkeys(("vqav2", "gqa", "textvqa", "pope", "tdiuc", "hallusionbench"), Ask(short)),
    **dict.fromkeys(("okvqa", "vizwiz"), Ask(lambda q: f"{q.text}\n{UNANSWERABLE}{SHORT}")),
    "ocrvqa": Ask(short, 20),
    **dict.fromkeys(("docvqa", "infovqa"), Ask(short, 32)),
    "chartqa": Ask(lambda q: f"{q.text}\nAnswer the question with a single word.", 16),
    "mme": Ask(lambda q: q.text.removesuffix(YES_OR_NO) + SHORT),
    **dict.fromkeys(("scienceqa", "seed", "ai2d"), Ask(_letter)),
    **dict.fromkeys(("mmbench", "ccbench"), Ask(_several)),
    "mmbench_cn": Ask(_several_chinese),
    "mmmu": Ask(_college, 16),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), Ask(lambda q: FRAME + REGION.format(q.text), 30)),
    **dict.fromkeys(("mmstar", "realworldqa"), Ask(lambda q: _letter(q) if q.choices else short(q))),
    "ocrbench": Ask(lambda q: q.text, 64),
    "blink": Ask(_seen),
    "iconqa": Ask(_icons, 32),
    **dict.fromkeys(("mmvet", "llava_bench", "mathvista"), Ask(lambda q: q.text, 512)),
    **dict.fromkeys(("coco_caption", "flickr30k_caption", "nocaps"), Ask(lambda q: CAPTION, 64)),
    "coco_detection": Ask(lambda q: PEOPLE, 512),
    "coco_keypoints": Ask(lambda q: q.text, 512),
}
ASKS: Mapping[str, Mapping[str, Ask]] = {"reference": REFERENCE, "official": OFFICIAL}


class Protocol(NamedTuple):
    """A protocol that a benchmark is asked by."""

    name: str
    how: Ask


def asked_by(benchmark: str, title: str, rules: Container[str], wanted: str) -> Protocol:
    """The protocol that is wanted, or the other where a benchmark has not this one.

    Args:
      rules: names of the protocols that score it.

    Raises:
      BadBenchmark: it has no form in words.
    """
    for name in (wanted, *ASKS):
        if name in rules and benchmark in ASKS[name]:
            return Protocol(name, ASKS[name][benchmark])
    raise BadBenchmark(f"{title} has no form in words")
