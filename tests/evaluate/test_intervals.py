"""Intervals of MME's score, held to loops that draw pictures one by one and score them by the benchmark's own rule."""

import json
import random

import numpy as np
import pytest

from sphinx_jax.evaluate import card
from sphinx_jax.evaluate.question import Question
from sphinx_jax.evaluate.rules import yes_no
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


def test_an_interval_of_mme_stands_where_the_protocol_pairs_by_pictures():
    """Protocol reference takes neighbours as pairs: where one is missing, those are of two pictures."""
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
    assert first.low is None and first.missing == 1 and second.low is not None


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
