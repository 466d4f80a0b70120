"""Predictions of a benchmark, scored without the model that made them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.config import unknown
from sphinx_jax.data.formats.files import open_binary
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark, Benchmark, Question, Score
from sphinx_jax.evaluate.forms.reading import some

PROTOCOLS = ("official", "reference")


@dataclass(frozen=True)
class Scored:
    """A score, and what is to be known of it.

    Attributes:
      form: in which the questions were found.
      asked: how many there are.
      missing: keys of those that no prediction answers, or that cannot be scored; the score is of the others.
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
    questions, notes = list(read.questions), list(read.notes)
    given = _read(predictions)
    results = [row for _, row in given.rows]
    if benchmark.results and any(map(_is_result, results)):
        if given.unread:
            number = min(given.unread)
            raise BadBenchmark(f"{given.place(predictions, number)} is not JSON: {given.unread[number]}")
        score = _rule(benchmark, benchmark.results, protocol)(questions, results)
        seen = {row["image_id"] for row in results}
        pictures = {q.source.get("image_id", q.key) for q in questions}
        if empty := pictures - seen:
            notes.append(f"{len(empty)} of {len(pictures)} pictures have no result")
        return Scored(score, read.form, len(pictures), [], notes)
    answers, said_of = _answers(predictions, given)
    notes += said_of
    keys, unfit = {_plain(q.key) for q in questions}, {_plain(q.key) for q in read.unfit}
    matched = list(answers)
    if read.numbered and len(answers) == len(read.keys) and not keys.issubset(matched):
        notes.append(f"the {read.form} has no ids: predictions are matched by their order")
        matched = [_plain(key) for key in read.keys]
    elif keys.isdisjoint(matched):
        raise BadBenchmark(
            f"{predictions} answers none of the {len(questions)} questions of {path} (it begins with "
            f"{matched[0]!r}, they with {questions[0].key!r}); is it of another split?"
        )
    said = dict(zip(matched, answers.values(), strict=True))
    strangers = [key for key in said if key not in keys and key not in unfit]
    if strangers:
        notes.append(f"{len(strangers)} predictions are of no question here and were left out: {some(strangers)}")
    silent = [q.key for q in questions if _plain(q.key) not in said]
    if silent:
        notes.append(
            f"{len(silent)} of {len(read.keys)} questions have no prediction, and the score is of the others: "
            f"{some(silent)}"
        )
    missing, asked = [*silent, *(q.key for q in read.unfit)], len(read.keys)
    if benchmark.for_judge is not None:
        file = benchmark.for_judge.file
        notes += counted(benchmark, [*questions, *read.unfit])
        notes.append(f"{benchmark.title} needs a judge, which takes {file} of the folder that the model was asked in")
        return Scored(Score("needs a judge", None, None), read.form, asked, missing, notes)
    answered = [q for q in questions if _plain(q.key) in said]
    score = _rule(benchmark, benchmark.rules, protocol)(answered, [said[_plain(q.key)] for q in answered])
    if halves := score.more.get("half_answered"):
        notes.append(f"{halves} pictures have one answer of two: it counts for accuracy, and they leave accuracy+")
    notes += counted(benchmark, [*questions, *read.unfit])
    return Scored(_in_order(score, answered, matched), read.form, asked, missing, notes)


def _is_result(row: Any) -> bool:
    return isinstance(row, dict) and "image_id" in row and "prediction" not in row


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


class _Given(NamedTuple):
    """Predictions, or results in a form of the benchmark's own, as their file has them.

    Attributes:
      rows: with the line of each, or its place in a list.
      unread: lines that are no JSON, and why.
      whole: whether the file is one list.
    """

    rows: Sequence[tuple[int, Any]]
    unread: Mapping[int, str]
    whole: bool

    def place(self, path: Path, number: int) -> str:
        return f"{path}, entry {number}" if self.whole else f"{path}:{number}"


def _read(path: Path) -> _Given:
    """Raises BadBenchmark where nothing can be read."""
    with open_binary(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    rows, unread = list[tuple[int, Any]](), dict[int, str]()
    if whole := content.lstrip().startswith(b"["):
        try:
            rows = list(enumerate(json.loads(content), 1))
        except ValueError as error:
            raise BadBenchmark(f"{path} is not a list in JSON: {error}") from None
    else:
        # nothing else parts lines: U+2028 and U+0085 stand inside of texts
        for number, line in enumerate(content.split(b"\n"), 1):
            try:
                rows += [(number, json.loads(line))] if line.strip() else []
            except ValueError as error:
                unread[number] = str(error)
    if not rows and not unread:
        raise BadBenchmark(f"{path} has no prediction")
    return _Given(rows, unread, whole)


def _answers(path: Path, given: _Given) -> tuple[dict[str, str], list[str]]:
    """Key -> text, of a key that comes twice the last, which a run that went on wrote; and what is to be said of the
    file.

    Raises BadBenchmark where it holds no prediction.
    """
    texts, twice = dict[str, str](), set[str]()
    wrong = {number: f"not JSON, {why}" for number, why in given.unread.items()}
    for number, row in given.rows:
        known = isinstance(row, dict) and isinstance(row.get("key"), int | str)
        if not known or not isinstance(row.get("prediction"), str):
            wrong[number] = 'not {"key": …, "prediction": "text"}'
            continue
        key = _plain(row["key"])
        twice |= {key} & texts.keys()
        texts[key] = row["prediction"]
    notes = list[str]()
    if wrong:
        first = min(wrong)
        said = f"{given.place(path, first)} is {wrong[first]}"
        if not texts:
            raise BadBenchmark(said)
        rest = sorted(wrong)[1:]
        more = f"; so were {len(rest)} more: {some([given.place(path, n) for n in rest])}" if rest else ""
        notes.append(f"{said}, and was passed over{more}")
    if twice:
        notes.append(f"{len(twice)} keys come more than once, and the last prediction of each counts: {some([*twice])}")
    return texts, notes


def _plain(key: int | str) -> str:
    return str(key)
