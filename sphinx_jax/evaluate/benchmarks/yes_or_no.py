"""Questions to be answered by yes or no: POPE and MME."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, listed, parquet_rows, tabled
from sphinx_jax.evaluate.question import BadBenchmark, Question, one_answer
from sphinx_jax.evaluate.rules import yes_no

SPLITS = ("random", "popular", "adversarial")
PICTURES = (".jpg", ".png", ".jpeg")


def _pope(split: str, number: Any, text: str, answer: str | None, picture: Any, unfit: str = "") -> Question:
    answers = one_answer(answer and answer.lower())
    return Question(f"{split}:{number}", text, picture, answers, labels={"split": split}, unfit=unfit)


def _pope_release(found: Found) -> list[Question] | None:
    paths = [path for split in SPLITS for path in found.named(f"*pope_{split}.json")]
    return [
        _pope(path.stem.rpartition("_")[2], row["question_id"], row["text"], row["label"], row["image"])
        for path in paths
        for row in read_json(path)
    ] or None


def _pope_parquet(found: Found) -> list[Question] | None:
    paths = found.parquets()
    whole = [path for path in paths if path.parent.name != "Full"]
    rows = list(found.rows(whole or paths, ("question_id", "question", "answer", "category")))
    rows.sort(key=lambda row: SPLITS.index(row["category"]))
    return [
        _pope(row["category"], row["question_id"], row["question"], row["answer"], row.get("image")) for row in rows
    ] or None


def _pope_table(found: Found) -> list[Question] | None:
    """Each pair of a picture and a question is there once: a positive one counts in every split.

    Those of no are numbered as those of the first split, between the same of yes.
    """
    table = found.table()
    rows = [] if table is None else f.read_table(table, ("question", "answer", "category"))
    questions = []
    for number, row in enumerate(rows, 1):
        unknown = set(row["category"].split(",")) - set(SPLITS)
        if unknown and (unfit := row.get(f.UNFIT)):
            questions.append(Question(f"row {number}", "", unfit=unfit))
        elif unknown:
            raise BadBenchmark(f"{table} has a category {unknown.pop()!r}, which POPE does not")
    of_split = {split: [row for row in rows if split in row["category"].split(",")] for split in SPLITS}
    for split, own in of_split.items():
        answered = {answer: iter([r for r in own if _says_yes(r) == answer]) for answer in (True, False)}
        order = [_says_yes(row) for row in of_split[SPLITS[0]]]
        if sorted(order) != sorted(map(_says_yes, own)):
            order = [_says_yes(row) for row in own]
        for number, answer in enumerate(order, 1):
            row = next(answered[answer])
            unfit = row.get(f.UNFIT, "")
            questions.append(_pope(split, number, row["question"], row["answer"], row["image"], unfit))
    return questions or None


def _says_yes(row: dict[str, Any]) -> bool:
    return row["answer"].lower() == "yes"


POPE = Benchmark(
    "POPE",
    {"release": _pope_release, "parquet": _pope_parquet, "table": _pope_table},
    {"official": yes_no.pope},
    counts={"all": 9000},
)


def _mme(number: int | str, category: str, text: str, answer: str, picture: Any, name: str) -> Question:
    return Question(number, text, picture, one_answer(answer), labels={"category": category}, same=(category, name))


def _mme_release(found: Found) -> list[Question] | None:
    """Two questions a picture, in a text file of the same name; categories in the order of the paper.

    A key is category/picture:0 or 1, as the order of the other files cannot be told from these.
    """
    paths = [path for path in found.named("*.txt") if (_category(path)) in yes_no.MME]
    paths.sort(key=lambda path: yes_no.MME.index(_category(path)))
    asked: list[tuple[str, ...]] = []
    for path in paths:
        folder = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
        picture = next((p for kind in PICTURES if (p := folder / f"{path.stem}{kind}").exists()), folder / path.stem)
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        for number, line in enumerate(lines):
            text, tab, answer = line.strip().rpartition("\t")
            if not tab:
                raise BadBenchmark(f"{path} has a line without a question, a tab and an answer: {line[:60]!r}")
            key = f"{_category(path)}/{path.stem}:{number}"
            asked.append((key, _category(path), text, answer, str(picture), path.stem))
    return [_mme(*question) for question in asked] or None


def _category(path: Path) -> str:
    folder = path.parent
    return folder.parent.name if folder.name == "questions_answers_YN" else folder.name


def _mme_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question_id", "question", "answer", "category"))
    return [
        _mme(i, row["category"], row["question"], row["answer"], row.get("image"), row["question_id"])
        for i, row in enumerate(rows)
    ] or None


def _mme_table(found: Found) -> list[Question] | None:
    def one(i: int, row: dict[str, Any]) -> Question:
        return _mme(i, row["category"], row["question"], row["answer"], row["image"], row["image_path"])

    return tabled(found, ("category", "question", "answer", "image_path"), one)


def _mme_list(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        folders = re.split(r"[/\\]", row["image_path"])
        category = next((name for name in folders if name in yes_no.MME), "")
        if not category:
            raise BadBenchmark(f"{row['image_path']} lies in no category of MME")
        return _mme(
            row["question_id"], category, row["question"], row["gt_answers"], row["image_path"], row["image_path"]
        )

    questions = listed(found, one)
    return questions and sorted(questions, key=lambda q: q.key)


MME = Benchmark(
    "MME",
    {"parquet": _mme_parquet, "table": _mme_table, "list": _mme_list, "release": _mme_release},
    {"official": yes_no.mme, "reference": yes_no.mme_reference},
    counts={"all": 2374},
)
