"""How a benchmark's files become questions: forms that are tried one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.data.formats.files import BadData, read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.question import BadBenchmark, Question, Read, Rule, Score, Unread


@dataclass(frozen=True)
class Found:
    """Files that may hold a benchmark.

    Attributes:
      path: what was asked for, a file or a folder.
      files: in it.
      root: the folder that pictures' paths begin from, if it was said.
      unread: parquet files that are damaged, as `rows` comes upon them.
    """

    path: Path
    files: Sequence[Path]
    root: Path | None = None
    unread: list[Unread] = field(default_factory=list)

    def named(self, *patterns: str) -> list[Path]:
        return f.named(self.files, *patterns)

    def tables(self) -> list[Path]:
        return f.named(self.files, "*.tsv")

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
            return Found(self.path, [*self.files, *f.files_of(self.root)], self.root, self.unread)
        folder = self.path if self.path.is_dir() else self.path.parent
        around = folder.parent if folder.name == "annotations" else folder
        return Found(self.path, [*self.files, *f.files_of(around)], unread=self.unread)


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
                self._check(path, questions)
                return Read(questions, form, form in self.numbered, found.unread)
        kinds = ", ".join(self.forms)
        raise BadBenchmark(f"{path} does not hold {self.title} in a form that is known ({kinds})")

    def _check(self, path: Path, questions: Sequence[Question]) -> None:
        seen: set[int | str] = set()
        for question in questions:
            if question.key in seen:
                raise BadBenchmark(
                    f"{path} has question {question.key} twice; if it holds several splits, give one file"
                )
            seen.add(question.key)
            if self.rules and not self.results and not question.answers and question.box is None:
                raise BadBenchmark(f"{path} has no answer to question {question.key}; is it a split without answers?")


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
    """Questions of the first table."""
    paths = found.tables()[:1]
    return [question(i, row) for path in paths for i, row in enumerate(f.read_table(path, needs))] or None


def parquet_rows(found: Found, needs: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of all parquet files, which must have these columns, in the order of the files' names."""
    return list(found.rows(found.parquets(), needs))


def choices_of(row: Mapping[str, Any], letters: str = "ABCDE", missing: str = "") -> tuple[str, ...]:
    """The choices in columns A, B, … up to the last that there is."""
    texts = [row.get(letter) for letter in letters]
    while texts and texts[-1] in (None, missing):
        texts.pop()
    return tuple("" if text is None else str(text) for text in texts)
