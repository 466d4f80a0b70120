"""Intervals of MME's score, held to loops that draw pictures one by one and score them by the benchmark's own rule."""

import json
import random

import numpy as np
import pytest

from sphinx_jax.evaluate import card
from sphinx_jax.evaluate.question import Question, Score
from sphinx_jax.evaluate.rules import yes_no
from sphinx_jax.report.card import markdown_differences
from sphinx_jax.report.card_files import differences

CATEGORIES = {"existence": 12, "count": 7, "OCR": 5, "code_reasoning": 9, "text_translation": 6}
DRAWN = 1200


def of_mme(seed: int, known: float) -> tuple[list[Question], list[str]]:
    """Two questions about each picture, of some pictures one, with answers that go together."""
    rng, questions, said = random.Random(seed), [], []
    shape = random.Random(0)
    for category, count in CATEGORIES.items():
        for picture in range(count):
            both = rng.random() < known
            for n, answer in enumerate(("Yes", "No")[: 1 if shape.random() < 0.2 else 2]):
                right = both or rng.random() < 0.4
                # as in parquet files each row has a picture of its own
                questions.append(
                    Question(
                        f"{category}/{picture}:{n}",
                        "",
                        f"{category} {picture} {n}.png",
                        (answer,),
                        labels={"category": category},
                        same=(category, picture),
                    )
                )
                said.append(answer if right else {"Yes": "No", "No": "Yes"}[answer])
    return questions, said


def one_by_one(questions: list[Question], *said: list[str]) -> list[list[dict[str, float]]]:
    """The parts of the score of each model, for pictures drawn anew within each category, the same for all models."""
    rng, found = random.Random(1), []
    for _ in range(DRAWN):
        drawn, at = [], []
        for category in CATEGORIES:
            pictures = sorted({q.same for q in questions if q.labels["category"] == category})
            for copy in range(len(pictures)):
                chosen = rng.choice(pictures)
                for i, q in enumerate(questions):
                    if q.same == chosen:
                        drawn.append(Question(q.key, "", None, q.answers, labels=q.labels, same=(category, copy)))
                        at.append(i)
        found.append([yes_no.mme(drawn, [of[i] for i in at]).parts for of in said])
    return found


def test_the_interval_of_mme_is_that_of_pictures_drawn_one_by_one():
    questions, said = of_mme(3, 0.3)
    score = yes_no.mme(questions, said)
    drawn = one_by_one(questions, said)
    lines = {line.split: line for line in card.lines("mme", "official", score, questions)}
    assert set(lines) == {"Perception", "Cognition"}
    for part, line in lines.items():
        values = [parts[part] for (parts,) in drawn]
        low, high = np.quantile(values, [0.025, 0.975])
        assert line.score == pytest.approx(score.parts[part]) and line.low < line.score < line.high
        assert (line.low, line.high) == pytest.approx((low, high), abs=0.3 * np.std(values)), part


def test_an_interval_of_mme_stands_where_an_answer_is_missing():
    questions, said = [], []
    for category in yes_no.MME:
        for picture in range(4):
            for n, answer in enumerate(("Yes", "No")):
                labels, same = {"category": category}, (category, picture)
                questions.append(Question(f"{category} {picture} {n}", "", "", (answer,), labels=labels, same=same))
                said.append("" if (picture, n) in ((1, 1), (2, 0)) else answer)
    whole = yes_no.mme_reference(questions, said)
    for line in card.lines("mme", "reference", whole, questions):
        assert line.low < line.score < line.high
    lacking = yes_no.mme_reference(questions[1:], said[1:])
    first, second = card.lines("mme", "reference", lacking, questions[1:], questions[:1])
    assert first.low < first.score < first.high and first.missing == 1 and second.low is not None
    assert first.score == pytest.approx(whole.parts["Perception"] + 100 * (5 / 7 - 6 / 8) + 100 * (1 / 3 - 2 / 4))


def test_two_models_differ_in_points_of_mme(tmp_path):
    questions, said = of_mme(3, 0.3)
    _, better = of_mme(3, 0.95)
    scores = [yes_no.mme(questions, of) for of in (said, better)]
    for name, score, texts in zip("ab", scores, (said, better), strict=True):
        folder = tmp_path / name / "benchmarks"
        (folder / "mme").mkdir(parents=True)
        made = [line.as_json() for line in card.lines("mme", "official", score, questions)]
        (folder / "card.json").write_text(json.dumps(made))
        rows = card.items(score, questions, {q.key: text for q, text in zip(questions, texts, strict=True)})
        (folder / "mme" / card.ITEMS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = differences(tmp_path / "a", tmp_path / "b")
    drawn = one_by_one(questions, said, better)
    assert set(found) == {"mme Perception", "mme Cognition"}
    for part in ("Perception", "Cognition"):
        one, values = found[f"mme {part}"], [b[part] - a[part] for a, b in drawn]
        assert one["difference"] == pytest.approx(scores[1].parts[part] - scores[0].parts[part])
        low, high = np.quantile(values, [0.025, 0.975])
        assert (one["low"], one["high"]) == pytest.approx((low, high), abs=0.3 * np.std(values)), part
        assert one["p"] < 0.05 and one["alone"] == 0
    assert {one["p"] for one in differences(tmp_path / "a", tmp_path / "a").values()} == {1.0}


SIZES = {"colour": 60, "count": 12, "sport": 25}


def of_kinds(seed: int, known: float) -> tuple[list[Question], list[float]]:
    """Questions of several kinds about each picture, and what each counts."""
    rng, questions, values = random.Random(seed), [], []
    for kind, count in SIZES.items():
        for n in range(count):
            labels = {"question_type": kind}
            questions.append(Question(f"{kind} {n}", "", f"{n % 20}.png", ("x",), labels=labels))
            values.append(float(rng.random() < known / (1 + (kind == "colour"))))
    return questions, values


def over_kinds(questions: list[Question], values: list[float], at: list[int]) -> float:
    by_kind: dict[str, list[float]] = {}
    for i in at:
        by_kind.setdefault(questions[i].labels["question_type"], []).append(values[i])
    return 100 * float(np.mean([np.mean(of_kind) for of_kind in by_kind.values()]))


def test_a_mean_over_kinds_is_drawn_and_compared_as_such(tmp_path):
    (questions, values), (_, better) = of_kinds(1, 0.5), of_kinds(2, 0.9)
    everything = list(range(len(questions)))
    scores = [over_kinds(questions, of, everything) for of in (values, better)]
    for name, of, value in zip("ab", (values, better), scores, strict=True):
        score = Score("mean accuracy over kinds of questions", value / 100, of)
        (line,) = card.lines("tdiuc", "official", score, questions)
        folder = tmp_path / name / "benchmarks" / "tdiuc"
        folder.mkdir(parents=True)
        (folder.parent / "card.json").write_text(json.dumps([line.as_json()]))
        rows = card.items(score, questions, {q.key: "x" for q in questions})
        (folder / card.ITEMS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name == "a":
            own = line
    about = {number: [i for i in everything if questions[i].picture == f"{number}.png"] for number in range(20)}
    rng, drawn = random.Random(3), []
    for _ in range(DRAWN):
        at = [i for number in rng.choices(range(20), k=20) for i in about[number]]
        drawn.append([over_kinds(questions, of, at) for of in (values, better)])
    first, second = np.array(drawn).T
    low, high = np.quantile(first, [0.025, 0.975])
    assert (own.low, own.high) == pytest.approx((low, high), abs=0.3 * np.std(first))
    found = differences(tmp_path / "a", tmp_path / "b")["tdiuc"]
    assert found["difference"] == pytest.approx(scores[1] - scores[0])
    low, high = np.quantile(second - first, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.3 * np.std(second - first))


def test_what_has_no_scores_by_question_is_said_not_to_be_compared(tmp_path):
    for name in "ab":
        folder = tmp_path / name / "benchmarks" / "coco_detection"
        folder.mkdir(parents=True)
        line = card.Line("coco_detection", "", "official", "AP", 3, 0, 50.0)
        (folder.parent / "card.json").write_text(json.dumps([line.as_json()]))
        (folder / card.ITEMS).write_text("")
    told = markdown_differences(differences(tmp_path / "a", tmp_path / "b"))
    assert told == "Not compared, without scores by question: coco_detection.\n"
