"""How a benchmark's files become questions: forms that are tried one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.data.formats.files import BadData, read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.question import BadBenchmark, Question, Read, Rule, Score, Unread, there

LEGACY = "_legacy"  # ends names of tables that VLMEvalKit has written anew
SHOWN = 3  # keys that a message names


@dataclass(frozen=True)
class Found:
    """Files that may hold a benchmark.

    Attributes:
      path: what was asked for, a file or a folder.
      files: in it.
      root: the folder that pictures' paths begin from, if it was said.
      notes: what is to be known of the files; what reads them adds to it.
      unread: parquet files that are damaged, as `rows` comes upon them.
    """

    path: Path
    files: Sequence[Path]
    root: Path | None = None
    notes: list[str] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)

    def named(self, *patterns: str) -> list[Path]:
        return f.named(self.files, *patterns)

    def table(self) -> Path | None:
        """The only table there is, but for older copies that have pictures twice.

        Raises BadBenchmark where there are several: which of them is meant cannot be told.
        """
        paths = f.named(self.files, "*.tsv")
        paths = [p for p in paths if not (p.stem.endswith(LEGACY) and _without_legacy(p) in paths)]
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise BadBenchmark(f"{self.path} has {len(paths)} tables, {names}: give one file, or a folder to each")
        return next(iter(paths), None)

    def parquets(self) -> list[Path]:
        """Those of training apart, where there are others."""
        paths = f.named(self.files, "*.parquet")
        return [path for path in paths if not path.name.startswith("train")] or paths

    def rows(
        self, paths: Iterable[Path], needs: Sequence[str], content: Callable[[dict[str, Any]], Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of parquet files as `files.read_parquet` has them, without those that are damaged."""
        for path in paths:
            try:
                yield from f.read_parquet(path, needs, content)
            except f.Damaged as error:
                self.unread.append(Unread(path.name, error.rows, str(error)))

    def lists(self) -> list[Path]:
        return list(f.lists(self.files))

    def beside(self) -> Found:
        """The same with what lies around a single file, or in the root."""
        if self.root is not None:
            return replace(self, files=[*self.files, *f.files_of(self.root)])
        folder = self.path if self.path.is_dir() else self.path.parent
        around = folder.parent if folder.name == "annotations" else folder
        return replace(self, files=[*self.files, *f.files_of(around)])


def _without_legacy(path: Path) -> Path:
    return path.with_name(path.name.replace(LEGACY, ""))


# the questions in some files, or None where these are not in that form
Form = Callable[[Found], Sequence[Question] | None]


class ForJudge(NamedTuple):
    """What the judge of a benchmark takes.

    Attributes:
      file: its name.
      write: the file of questions, of what was said to those that were answered, and of the model's name.
    """

    file: str
    write: Callable[[Sequence[Question], Mapping[int | str, str], str], bytes]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as its files have it, and how it is scored.

    Attributes:
      forms: name of a form -> what reads it, the most telling first.
      rules: protocol -> what scores.
      numbered: forms without ids, whose predictions are told apart by number.
      counts: rows of each of the paper's splits.
      results: protocol -> what scores results in a form of the benchmark's own, as COCO has one.
      for_judge: of one that a judge scores, and no rule.
    """

    title: str
    forms: Mapping[str, Form]
    rules: Mapping[str, Rule]
    numbered: Sequence[str] = ()
    counts: Mapping[str, int] | None = None
    results: Mapping[str, Callable[[Sequence[Question], Sequence[Any]], Score]] = field(default_factory=dict)
    for_judge: ForJudge | None = None

    def read(self, path: Path, root: Path | None = None, in_part: bool = False) -> Read:
        """The questions of a file or folder.

        Args:
          in_part: those of files that are whole, where some are damaged; questions that have no ids of their own are
            then numbered as if there were no others.

        Raises BadBenchmark, or BadData for a file that cannot be read.
        """
        path = path.absolute()
        found = Found(path, f.files_of(path), root and root.absolute())
        for form, reader in self.forms.items():
            try:
                questions = reader(found)
            except BadData:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
                what = f"{type(error).__name__}: {error}"
                raise BadBenchmark(f"{path} is not {self.title} as its {form} has it ({what[:120]})") from None
            if found.unread and not (in_part and questions):
                raise BadBenchmark(found.unread[0].why)
            if questions:
                return self._fit(found, form, questions)
        kinds = ", ".join(self.forms)
        raise BadBenchmark(f"{path} does not hold {self.title} in a form that is known ({kinds})")

    def _fit(self, found: Found, form: str, questions: Sequence[Question]) -> Read:
        """Questions that can be scored apart from the others.  Raises BadBenchmark where none can, or one is twice."""
        fit, broken, blank = list[Question](), list[Question](), list[Question]()
        seen: set[int | str] = set()
        for question in questions:
            if question.key in seen:
                raise BadBenchmark(
                    f"{found.path} has question {question.key} twice; if it holds several splits, give one file"
                )
            seen.add(question.key)
            answered = any(map(there, question.answers)) or question.box is not None
            scored = self.rules and not self.results
            (broken if question.unfit else blank if scored and not answered else fit).append(question)
        if not fit and not broken:
            raise BadBenchmark(
                f"{found.path} has no answer to a question of {self.title}; is it a split without answers?"
            )
        if not fit:
            raise BadBenchmark(f"{found.path} has no question of {self.title} that can be read: {broken[0].unfit}")
        notes = list(found.notes)
        if broken:
            more = f"; so are {len(broken) - 1} more" if len(broken) > 1 else ""
            notes.append(f"{broken[0].unfit}: the question is left out and counted as missing{more}")
        if blank:
            notes.append(
                f"{len(blank)} of {len(questions)} questions of {self.title} have no answer to score by; they are left "
                f"out and counted as missing: {some([q.key for q in blank])}"
            )
        unfit = [*broken, *blank]
        return Read(fit, form, form in self.numbered, unfit, [q.key for q in questions], notes, found.unread)


def some(keys: Sequence[int | str]) -> str:
    return ", ".join(map(str, keys[:SHOWN])) + (", …" if len(keys) > SHOWN else "")


def listed(found: Found, question: Callable[[int, dict[str, Any]], Question]) -> list[Question] | None:
    """Questions of the lists of the reference evaluation."""
    rows = [row for path in found.lists() for row in read_json(path)]
    return [question(number, row) for number, row in enumerate(rows)] or None


def listed_with_release(release: Form, of: str) -> Form:
    """Reads the reference's lists that have one answer `of` more; all are in the release beside them or in the root."""

    def read(found: Found) -> list[Question] | None:
        rows = [row for path in found.lists() for row in read_json(path)]
        if not rows:
            return None
        answered = release(found.beside())
        if not answered:
            raise BadBenchmark(f"{found.lists()[0]} has one answer of {of}; --root names the folder of the release")
        known = {q.key: q for q in answered}
        unknown = [row["question_id"] for row in rows if row["question_id"] not in known]
        if unknown:
            raise BadBenchmark(f"the release has no answers to question {unknown[0]} of {found.lists()[0]}")
        return [known[row["question_id"]] for row in rows]

    return read


def tabled(
    found: Found, needs: Sequence[str], question: Callable[[int, dict[str, Any]], Question]
) -> list[Question] | None:
    """Questions of the table; a row that holds none is one that cannot be scored."""
    if (path := found.table()) is None:
        return None
    return [_of_row(path, i, row, question) for i, row in enumerate(f.read_table(path, needs))]


def _of_row(
    path: Path, number: int, row: dict[str, Any], question: Callable[[int, dict[str, Any]], Question]
) -> Question:
    unfit = row.pop(f.UNFIT, "")
    try:
        found = question(number, row)
    except (LookupError, TypeError, ValueError, AttributeError, BadData) as error:
        unfit = unfit or f"{path}: row {number + 1} is no question ({type(error).__name__}: {error})"
        return Question(f"row {number + 1}", "", unfit=unfit)
    return replace(found, unfit=unfit) if unfit else found


def parquet_rows(found: Found, needs: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of all parquet files, which must have these columns, in the order of the files' names."""
    return list(found.rows(found.parquets(), needs))


def choices_of(row: Mapping[str, Any], letters: str = "ABCDE", missing: str = "") -> tuple[str, ...]:
    """The choices in columns A, B, … up to the last that there is."""
    texts = [row.get(letter) for letter in letters]
    while texts and texts[-1] in (None, missing):
        texts.pop()
    return tuple("" if text is None else str(text) for text in texts)
