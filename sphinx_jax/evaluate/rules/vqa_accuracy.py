"""Soft accuracy of open questions with ten answers (Antol et al. 2015), slips of the public script included."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sphinx_jax.evaluate.question import Question, Score, mean, means_by
from sphinx_jax.evaluate.rules import texts

MARKS = ';/[]"{}()=+\\_-><@`,?!'
STOPS = 32  # full stops that go, at most: the script passes a flag where it means a count
NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {word: str(max(0, i - 1)) for i, word in enumerate(NUMBERS)}
ARTICLES = {"a", "an", "the"}
# those that are found without their apostrophe
SINGLE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're "
    "you've"
)
# those that are found with one apostrophe missing
DOUBLE = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've you'd've 'ow's'at y'all'd've"
)


def _without_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, mark in enumerate(word) if mark == "'"]


CONTRACTIONS = {word.replace("'", ""): word for word in SINGLE.split()}
CONTRACTIONS |= {missing: word for word in DOUBLE.split() for missing in _without_one(word)}
CONTRACTIONS |= {"yall'll": "y'all'll", "y'allll": "y'all'll", "somebody'd": "somebodyd"}


def punctuation(text: str) -> str:
    """Marks go, or become blanks; so do full stops that no digit follows."""
    numbers = re.search(r"\d,\d", text)
    out = text
    for mark in MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside or numbers else " ")
    return re.sub(r"\.(?!\d)", "", out, count=STOPS)


def words(text: str) -> str:
    """Number words as digits, no articles, apostrophes where they belong."""
    found = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in found if word not in ARTICLES)


def _lined(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


def normal(text: str) -> str:
    return words(punctuation(_lined(text).strip()))


def eval_ai(text: str) -> str:
    """As the processor of answers of EvalAI does it."""
    return normal(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def agreement(said: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(1, others who said it / 3)."""
    matches = [answer == said for answer in answers]
    total = sum(matches)
    return mean([min(1.0, (total - match) / 3) for match in matches])


def _in_public_script(said: str, answers: Sequence[str]) -> float:
    answers = [_lined(answer).strip() for answer in answers]
    said = _lined(said).strip()
    if len(set(answers)) > 1:
        answers, said = [words(punctuation(answer)) for answer in answers], words(punctuation(said))
    return agreement(said, answers)


def _in_eval_ai(said: str, answers: Sequence[str]) -> float:
    return agreement(eval_ai(said), [eval_ai(answer) for answer in answers])


def _in_reference(said: str, answers: Sequence[str]) -> float:
    differ = len(set(answers)) > 1
    return agreement(normal(said), [punctuation(answer) for answer in answers] if differ else answers)


def _percent(name: Callable[[str], str], rule: Callable[[str, Sequence[str]], float]):
    def score(questions: Sequence[Question], said: Sequence[str]) -> Score:
        items = [rule(name(text), q.answers) for q, text in zip(questions, said, strict=True)]
        parts = {
            f"{label}:{part}": round(100 * value, 2)
            for label in ("answer_type", "question_type")
            for part, value in means_by(questions, items, label).items()
        }
        return Score("VQA accuracy (percent, 2 decimals)", round(100 * mean(items), 2), items, parts)

    return score


public_script = _percent(texts.official, _in_public_script)
reference = _percent(texts.reference, _in_reference)


def by_eval_ai(*labels: str):
    """Accuracy with EvalAI's processor, as fractions, in parts by these labels."""

    def score(questions: Sequence[Question], said: Sequence[str]) -> Score:
        items = [_in_eval_ai(texts.official(text), q.answers) for q, text in zip(questions, said, strict=True)]
        metric = "exact_match (VQA accuracy with the EvalAI answer processor; fraction)"
        return Score(metric, mean(items), items, means_by(questions, items, *labels))

    return score
