"""Predictions of a benchmark, scored without the model that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx_jax.config import unknown
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark, Benchmark, Question, Score

SHOWN = 3  # keys that a message names
PROTOCOLS = ("official", "reference")


@dataclass(frozen=True)
class Scored:
    """A score, and what is to be known of it.

    Attributes:
      form: in which the questions were found.
      asked: how many there are.
      missing: keys of those that no prediction answers; the score is of the others.
      notes: one line each.
    """

    score: Score
    form: str
    asked: int
    missing: Sequence[int | str]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        score = self.score
        said = {"metric": score.metric, "score": score.score, "per_item": score.items, "parts": dict(score.parts)}
        more = {"form": self.form, "questions": self.asked, "missing": list(self.missing), "notes": list(self.notes)}
        return said | dict(score.more) | more


def score_predictions(name: str, path: Path, predictions: Path, protocol: str, root: Path | None = None) -> Scored:
    """Score predictions of benchmark `name`, whose files are at `path`.

    `per_item` is in the order of the predictions, but for groups of them that count together.

    Args:
      predictions: lines of {"key", "prediction"}; of detection and key points COCO's own results too.
      root: what else belongs to the benchmark (a release beside the reference's list) lies there.

    Raises:
      BadBenchmark: files or predictions that cannot be used, in one line.
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    read = benchmark.read(path, root)
    questions, notes = list(read.questions), list[str]()
    given = _read(predictions)
    if benchmark.results and all(isinstance(row, dict) and "image_id" in row for row in given):
        score = _rule(benchmark, benchmark.results, protocol)(questions, given)
        seen = {row["image_id"] for row in given}
        pictures = {q.source.get("image_id", q.key) for q in questions}
        if empty := pictures - seen:
            notes.append(f"{len(empty)} of {len(pictures)} pictures have no result")
        return Scored(score, read.form, len(pictures), [], notes)
    answers = _answers(predictions, given)
    keys = {_plain(q.key) for q in questions}
    matched = [_plain(key) for key in answers]
    if read.numbered and len(answers) == len(questions) and not keys.issubset(matched):
        notes.append(f"the {read.form} has no ids: predictions are matched by their order")
        matched = [_plain(q.key) for q in questions]
    elif keys.isdisjoint(matched):
        raise BadBenchmark(
            f"{predictions} answers none of the {len(questions)} questions of {path} (it begins with "
            f"{next(iter(answers))!r}, they with {questions[0].key!r}); is it of another split?"
        )
    said = dict(zip(matched, answers.values(), strict=True))
    strangers = [key for key in said if key not in keys]
    if strangers:
        notes.append(f"{len(strangers)} predictions are of no question here and were left out: {_some(strangers)}")
    missing = [q.key for q in questions if _plain(q.key) not in said]
    if missing:
        notes.append(
            f"{len(missing)} of {len(questions)} questions have no prediction, and the score is of the others: "
            f"{_some(missing)}"
        )
    if benchmark.for_judge is not None:
        file = benchmark.for_judge.file
        notes += counted(benchmark, questions)
        notes.append(f"{benchmark.title} needs a judge, which takes {file} of the folder that the model was asked in")
        return Scored(Score("needs a judge", None, None), read.form, len(questions), missing, notes)
    answered = [q for q in questions if _plain(q.key) in said]
    score = _rule(benchmark, benchmark.rules, protocol)(answered, [said[_plain(q.key)] for q in answered])
    return Scored(
        _in_order(score, answered, matched), read.form, len(questions), missing, notes + counted(benchmark, questions)
    )


def _rule(benchmark: Benchmark, rules: Mapping[str, Any], protocol: str) -> Any:
    if protocol not in rules:
        has = ", ".join(rules) or "none that takes such predictions"
        raise BadBenchmark(f"{benchmark.title} has no protocol {protocol!r}, only {has}")
    return rules[protocol]


def _in_order(score: Score, questions: Sequence[Question], keys: Sequence[int | str]) -> Score:
    """The same, items in the order of the predictions, where there is one for each question."""
    if score.items is None or len(score.items) != len(questions):
        return score
    place = {_plain(q.key): i for i, q in enumerate(questions)}
    order = [place[key] for key in keys if key in place]

    def turned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: turned(one) for name, one in value.items()}
        return [value[i] for i in order] if isinstance(value, list) and len(value) == len(order) else value

    each = ("per_item", "tokenised")  # of these there is one for every question
    more = {name: turned(value) if name.startswith(each) else value for name, value in score.more.items()}
    return Score(score.metric, score.score, turned(list(score.items)), score.parts, more)


def counted(benchmark: Benchmark, questions: Sequence[Question]) -> list[str]:
    """A line where the files hold another number of questions than each of the paper's splits."""
    counts = benchmark.counts or {}
    found: dict[str, int] = {}
    for question in questions:
        split = str(question.labels.get("split"))
        split = split if split in counts else ""
        found[split] = found.get(split, 0) + 1
    if not counts or (len(found) == 1 and next(iter(found.values())) in counts.values()):
        return []
    wrong = {split: n for split, n in found.items() if n != counts.get(split)}
    have = ", ".join(f"{n} {split}".strip() for split, n in wrong.items())
    theirs = ", ".join(f"{n} {split}" for split, n in counts.items())
    return (
        [f"these are not the published splits of {benchmark.title}: {have} questions here, {theirs} there"]
        if wrong
        else []
    )


def _read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise BadBenchmark(f"{path} is not lines of JSON: {error}") from None
    if not rows:
        raise BadBenchmark(f"{path} has no prediction")
    return rows


def _answers(path: Path, rows: Sequence[Any]) -> dict[Any, str]:
    """Key -> text; of a key that comes twice the last, which a run that went on wrote."""
    for number, row in enumerate(rows, 1):
        known = isinstance(row, dict) and isinstance(row.get("key"), int | str)
        if not known or not isinstance(row.get("prediction"), str):
            raise BadBenchmark(f'{path}: line {number} is not {{"key": …, "prediction": "text"}}')
    return {row["key"]: row["prediction"] for row in rows}


def _plain(key: int | str) -> str:
    return str(key)


def _some(keys: Sequence[int | str]) -> str:
    return ", ".join(map(str, keys[:SHOWN])) + (", …" if len(keys) > SHOWN else "")
