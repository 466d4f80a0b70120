"""Charts and documents: ChartQA, DocVQA, InfographicsVQA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, listed_with_release, parquet_rows, tabled
from sphinx_jax.evaluate.question import BadBenchmark, Question, Rule, one_answer
from sphinx_jax.evaluate.rules import documents

HALVES = ("human", "augmented")


def _charts(rows: Sequence[tuple[Any, ...]]) -> list[Question] | None:
    """(half, question, answer, picture, what tells it from others, and why it cannot be scored where that is so) ->
    questions, numbered within each half."""
    at = dict.fromkeys(HALVES, 0)
    questions = []
    for half, text, answer, picture, seen, *unfit in sorted(rows, key=lambda row: HALVES.index(row[0])):
        key = f"{half}:{at[half]}"
        at[half] += 1
        labels, same = {"split": half}, (half, seen, text)
        answers = one_answer(answer)
        questions.append(Question(key, text, picture, answers, labels=labels, same=same, unfit="".join(unfit)))
    return questions or None


def _half(name: str) -> str:
    found = next((half for half in HALVES if half in name), "")
    if not found:
        raise BadBenchmark(f"{name} is neither of ChartQA's halves, human and augmented")
    return found


def _chart_release(found: Found) -> list[Question] | None:
    paths = found.named("test_human.json", "test_augmented.json")
    return _charts(
        [
            (
                _half(path.name),
                row["query"],
                row["label"],
                str(path.parent / "png" / row["imgname"]),
                row["imgname"],
            )
            for path in paths
            for row in read_json(path)
        ]
    )


def _told_apart(picture: dict[str, Any]) -> Any:
    return picture.get("path") or hash(picture["bytes"])


def _chart_parquet(found: Found) -> list[Question] | None:
    rows = [
        (row, row["content"])
        for row in found.rows(found.parquets(), ("type", "question", "answer", "image"), _told_apart)
    ]
    return _charts([(_half(row["type"]), row["question"], row["answer"], row["image"], seen) for row, seen in rows])


def _chart_table(found: Found) -> list[Question] | None:
    table = found.table()
    rows = [] if table is None else f.read_table(table, ("question", "answer", "split"))
    halves, lost = [], []
    for number, row in enumerate(rows, 1):
        unfit = row.get(f.UNFIT, "")
        if unfit and not row["split"]:
            lost.append(Question(f"row {number}", "", unfit=unfit))
            continue
        answer, picture = f.listed(row["answer"])[:1], row["image"]
        halves.append((_half(row["split"]), row["question"], "".join(answer), picture, picture and picture.row, unfit))
    return [*(_charts(halves) or ()), *lost] or None


def _chart_list(found: Found) -> list[Question] | None:
    return _charts(
        [
            (_half(row["dataset_name"]), row["question"], row["gt_answers"], row["image_path"], row["image_path"])
            for path in found.lists()
            for row in read_json(path)
        ]
    )


CHARTQA = Benchmark(
    "ChartQA",
    {"release": _chart_release, "parquet": _chart_parquet, "table": _chart_table, "list": _chart_list},
    {"official": documents.chart, "reference": documents.chart_reference},
    counts={"human": 1250, "augmented": 1250},
)


# what InfographicsVQA calls the kinds of a question, and as which its server reports them
KINDS = {"answer_types": "answer_type", "evidence_types": "evidence", "operation_types": "operation/reasoning"}
NAMED = {
    "image span": "Image-Span",
    "question span": "Question-Span",
    "multiple spans": "Multi-Span",
    "non span": "None span",
    "table/list": "Table/list",
    "textual": "Text",
    "photo/pciture/visual_objects": "Visual/Layout",
    "figure": "Figure",
    "map": "Map",
    "comparison": "Sorting",
    "arithmetic": "Arithmetic",
    "counting": "Counting",
}


def _document(key: Any, text: str, picture: Any, answers: Any, row: dict[str, Any] | None = None) -> Question:
    labels = {}
    for kind, column in KINDS.items():
        named = (row or {}).get(column)
        if named:
            names = [named] if isinstance(named, str) else named
            labels[kind] = tuple(NAMED.get(name.lower(), name) for name in names)
    return Question(int(key) if str(key).isdigit() else key, text, picture, tuple(answers or ()), labels=labels)


def _document_release(*names: str):
    def read(found: Found) -> list[Question] | None:
        for path in found.named(*names):
            held = read_json(path)
            if isinstance(held, dict) and "data" in held:
                return [
                    _document(
                        row["questionId"],
                        row["question"],
                        row.get("image") or row.get("image_local_name"),
                        row["answers"],
                        row,
                    )
                    for row in held["data"]
                ]
        return None

    return read


def _document_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("questionId", "question", "answers"))
    return [
        _document(row["questionId"], row["question"], row.get("image"), row["answers"], row) for row in rows
    ] or None


def _document_table(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        return _document(number, row["question"], row["image"], f.listed(row["answer"]))

    return tabled(found, ("question", "answer"), one)


def _benchmark(title: str, rules: dict[str, Rule], *names: str, counts: dict[str, int]) -> Benchmark:
    release = _document_release(*names)
    forms = {
        "release": release,
        "parquet": _document_parquet,
        "table": _document_table,
        "list": listed_with_release(release, "several"),
    }
    return Benchmark(title, forms, rules, numbered=("table",), counts=counts)


DOCVQA = _benchmark(
    "DocVQA", {"official": documents.anls, "reference": documents.anls_reference}, "val_v1*.json", counts={"val": 5349}
)
INFOVQA = _benchmark(
    "InfographicsVQA",
    # the authors' evaluation only saves its answers, for the benchmark's own server
    {"official": documents.anls, "reference": documents.anls},
    "infographicsVQA_val_*.json",
    "*VQA_val*.json",
    counts={"val": 2801},
)
