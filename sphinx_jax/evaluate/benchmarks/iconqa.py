"""IconQA (Lu et al. 2021): diagrams, of which a text is chosen or a blank filled.

The questions whose choices are pictures are left out.  No file of it was at hand: the release's fields and the numbers
of questions are from memory, as are the parquet copy's columns of keys and answers; its others lmms-eval reads.
"""

from __future__ import annotations

from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.benchmarks.star import names_choice
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, parquet_rows
from sphinx_jax.evaluate.question import Question, letter_at, one_answer
from sphinx_jax.evaluate.rules import exact

CHOSEN, FILLED = "choose_txt", "fill_in_blank"  # kinds of questions that are read
COUNTS = {CHOSEN: 6316, FILLED: 3638}


def _question(
    key: int | str, row: dict[str, Any], answers: tuple[str, ...], choices: tuple[str, ...], picture: Any
) -> Question:
    labels = {"split": row["ques_type"]}
    return Question(key, row["question"], picture, answers, choices, labels=labels)


def _release(found: Found) -> list[Question] | None:
    for path in found.named("problems.json"):
        problems, splits = read_json(path), read_json(path.parent / "pid_splits.json")
        questions = []
        for name in splits["test"]:
            row = problems[name]
            if row["ques_type"] not in COUNTS:
                continue
            choices = tuple(map(str, row["choices"] or ())) if row["ques_type"] == CHOSEN else ()
            answers = letter_at(row["answer"], choices) if choices else one_answer(row["answer"])
            picture = path.parent / "iconqa" / "test" / row["ques_type"] / str(name) / "image.png"
            questions.append(_question(name, row, answers, choices, str(picture)))
        return questions
    return None


def _parquet(found: Found) -> list[Question] | None:
    """Choices are one text with commas between them, and the answer is one of them."""
    questions = []
    for number, row in enumerate(parquet_rows(found, ("question", "ques_type", "choices", "answer", "query_image"))):
        key = str(row.get("question_id", number))
        if row["ques_type"] not in COUNTS:
            continue
        answer = "".join(one_answer(row["answer"])).strip()
        choices = tuple(text.strip() for text in row["choices"].split(",")) if row["ques_type"] == CHOSEN else ()
        if choices:
            answers = letter_at(choices.index(answer), choices) if answer in choices else ()
        else:
            answers = one_answer(row["answer"])
        questions.append(_question(key, row, answers, choices, row["query_image"]))
    return questions or None


ICONQA = Benchmark(
    "IconQA",
    {"release": _release, "parquet": _parquet},
    {"official": exact.official("accuracy", names_choice, "split")},
    counts=COUNTS,
)
