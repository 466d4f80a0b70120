"""Score cards as tables: aligned for a terminal, and as Markdown.

A score card is the content of `scores.json`:

    {"tasks": {task: {"metric", "value", "baseline_majority", "baseline_blind", "count",
                      "real": {the same, but metric} or null, "synthetic": likewise}},
     "vqa_kinds": {kind: likewise},                                                          # may be absent
     "beta": {"values", "metric", "names", "real", "synthetic", "chosen",                     # or benchmarks, as named
              "test": {"chosen" | "0" | "1": {"real", "synthetic", "mean"}}},                # may be null
     "seconds": float}

The majority baseline is the best constant answer, the blind one a model that does not see the picture. A
metric whose name ends in `loss` or `error` is better when lower.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sphinx_jax.data.tasks import DOMAINS

GROUPS = ("all", *DOMAINS)
NOT_BETTER = "▼"
MISSING = "–"
LEGEND = f"{NOT_BETTER} not better than the better of its two baselines"

_RED, _DIM, _BOLD, _PLAIN = "\x1b[31m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


class ReportError(ValueError):
    """A score card or history that cannot be shown."""


@dataclass(frozen=True)
class Cell:
    """One score with its two baselines (None: not measured), over `count` questions (None: unknown)."""

    value: float | None
    majority: float | None
    blind: float | None
    count: int | None
    lower_is_better: bool = False

    @property
    def baseline(self) -> float | None:
        """The better of the two baselines."""
        known = [value for value in (self.majority, self.blind) if value is not None]
        if not known:
            return None
        return min(known) if self.lower_is_better else max(known)

    @property
    def beats_baseline(self) -> bool:
        """Whether the score is strictly better than the better baseline; True with nothing to compare."""
        if self.value is None or self.baseline is None:
            return True
        return self.value < self.baseline if self.lower_is_better else self.value > self.baseline


@dataclass(frozen=True)
class Row:
    """A task, or a kind of question of the task above it (`is_kind`), with a cell of each of `GROUPS`."""

    name: str
    metric: str
    cells: Mapping[str, Cell | None]
    is_kind: bool = False


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name falls as a model gets better."""
    return metric.endswith(("loss", "error"))


def finite(value: Any) -> float | None:
    """A number as a float; None for null, NaN, infinities and what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: float | None) -> str:
    """A score as it is printed everywhere: three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def _cell(entry: Mapping[str, Any] | None, name: str, metric: str) -> Cell | None:
    if entry is None:
        return None
    if "value" not in entry:
        raise ReportError(f"scores of {name!r} have no 'value': run the evaluate stage again")
    count = finite(entry.get("count"))
    return Cell(
        finite(entry["value"]),
        finite(entry.get("baseline_majority")),
        finite(entry.get("baseline_blind")),
        None if count is None else int(count),
        lower_is_better(metric),
    )


def _row(name: str, entry: Mapping[str, Any], is_kind: bool = False) -> Row:
    metric = str(entry.get("metric", ""))
    domains = {domain: _cell(entry.get(domain), f"{name}, {domain}", metric) for domain in DOMAINS}
    return Row(name, metric, {"all": _cell(entry, name, metric)} | domains, is_kind)


def score_rows(scores: Mapping[str, Any]) -> list[Row]:
    """The rows of a score card: its tasks in order, the kinds of VQA question below vqa.

    ReportError if the card has no `tasks` or an entry has no `value`.
    """
    tasks = scores.get("tasks")
    if not isinstance(tasks, Mapping):
        raise ReportError("scores have no 'tasks': run the evaluate stage before the show stage")
    rows = []
    for task, entry in tasks.items():
        rows.append(_row(task, entry))
        if task == "vqa":
            kinds = (scores.get("vqa_kinds") or {}).items()
            rows.extend(_row(kind, values, is_kind=True) for kind, values in kinds)
    return rows


@dataclass(frozen=True)
class MixRow:
    """What one β scored on the test split, by domain or benchmark and in the mean."""

    name: str
    beta: float
    parts: Mapping[str, float | None]
    mean: float | None
    is_chosen: bool = False


def mixed_over(beta: Mapping[str, Any]) -> Sequence[str]:
    """The domains, or benchmarks, that a mix was judged by."""
    return beta.get("names") or DOMAINS


def mix_rows(beta: Mapping[str, Any] | None) -> list[MixRow]:
    """The scores of the chosen mix and of its two ends on the test split; [] where there are none."""
    if not beta or not beta.get("test"):
        return []
    chosen = finite(beta.get("chosen"))
    named = (
        ("0", "synthetic only", 0.0),
        ("chosen", "chosen mix", math.nan if chosen is None else chosen),
        ("1", "real only", 1.0),
    )
    rows = []
    for key, name, value in named:
        scored = beta["test"].get(key)
        if scored:
            parts = {part: finite(scored.get(part)) for part in mixed_over(beta)}
            rows.append(MixRow(name, value, parts, finite(scored.get("mean")), is_chosen=key == "chosen"))
    return rows


def metric_words(metric: str) -> str:
    """A metric's name for reading: `caption_loss` is "caption loss, lower is better"."""
    way = "lower" if lower_is_better(metric) else "higher"
    return f"{metric.replace('_', ' ')}, {way} is better"


def format_table(scores: Mapping[str, Any], colour: bool = False, width: int = 120) -> str:
    """The score card as aligned text: task, metric, count; score, majority and blind in all and by domain.

    One line a task where that fits in `width` columns, otherwise one line for each domain. `colour` adds ANSI
    escapes: red for a score that is not better than a baseline, dim for the baselines. ReportError as
    `score_rows`.
    """
    rows = score_rows(scores)
    table = _side_by_side(rows)
    if max(len(line.text) for line in table) > width:
        table = _stacked(rows)
    lines = [line.coloured if colour else line.text for line in table]
    if any(cell and not cell.beats_baseline for row in rows for cell in row.cells.values()):
        lines += ["", LEGEND]
    mixes = mix_rows(scores.get("beta"))
    if mixes:
        lines += ["", f"mix of weights: {metric_words(str(scores['beta'].get('metric', '')))}; test split"]
        lines += [line.coloured if colour else line.text for line in _mix_lines(mixes)]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Line:
    """A line with and without ANSI escapes."""

    text: str
    coloured: str


def _line(parts: Iterable[tuple[str, str]], gap: str = " ") -> _Line:
    """A line of (text padded to its column, its escape or "")."""
    parts = list(parts)
    text = gap.join(part for part, _ in parts).rstrip()
    coloured = gap.join(f"{style}{part}{_PLAIN}" if style and part.strip() else part for part, style in parts)
    return _Line(text, coloured.rstrip())


def _label(row: Row) -> str:
    return f"  {row.name}" if row.is_kind else row.name


def _widths(rows: Sequence[Row]) -> tuple[int, int]:
    names = max([len(_label(row)) for row in rows] + [len("  synthetic")])
    metrics = max([len(row.metric) for row in rows if not row.is_kind] + [len("metric")])
    return names, metrics


def _scored(cell: Cell | None) -> list[tuple[str, str]]:
    if cell is None:
        return [(f"{MISSING:>5} ", _DIM), (f"{MISSING:>5}", _DIM), (f"{MISSING:>5}", _DIM)]
    score = f"{number(cell.value):>5}" + (" " if cell.beats_baseline else NOT_BETTER)
    baselines = [(f"{number(value):>5}", _DIM) for value in (cell.majority, cell.blind)]
    return [(score, _BOLD if cell.beats_baseline else _RED), *baselines]


def _count(cell: Cell | None) -> tuple[str, str]:
    return (f"{MISSING if cell is None or cell.count is None else cell.count:>6}", _DIM)


_HEADINGS = [("score ", ""), (" maj.", ""), ("blind", "")]
_SPACE = ("", "")


def _side_by_side(rows: Sequence[Row]) -> list[_Line]:
    names, metrics = _widths(rows)
    groups = [part for group in GROUPS for part in (_SPACE, (f"{group:<18}", _BOLD))]
    lines = [
        _line([(" " * (names + metrics + 8), ""), *groups]),
        _line(
            [
                (f"{'task':<{names}}", ""),
                (f"{'metric':<{metrics}}", ""),
                (f"{'n':>6}", ""),
                *[part for _ in GROUPS for part in (_SPACE, *_HEADINGS)],
            ]
        ),
    ]
    for row in rows:
        metric = "" if row.is_kind else row.metric
        cells = [part for group in GROUPS for part in (_SPACE, *_scored(row.cells[group]))]
        lines.append(
            _line(
                [
                    (f"{_label(row):<{names}}", ""),
                    (f"{metric:<{metrics}}", ""),
                    _count(row.cells["all"]),
                    *cells,
                ]
            )
        )
    return lines


def _stacked(rows: Sequence[Row]) -> list[_Line]:
    names, metrics = _widths(rows)
    heading = [
        (f"{'task':<{names}}", ""),
        (f"{'metric':<{metrics}}", ""),
        (f"{'n':>6}", ""),
        _SPACE,
        *_HEADINGS,
    ]
    lines = [_line(heading)]
    for row in rows:
        for group in GROUPS:
            if row.cells[group] is None or (row.is_kind and group != "all"):
                continue
            name = _label(row) if group == "all" else f"  {group}"
            metric = row.metric if group == "all" and not row.is_kind else ""
            lines.append(
                _line(
                    [
                        (f"{name:<{names}}", "" if group == "all" else _DIM),
                        (f"{metric:<{metrics}}", ""),
                        _count(row.cells[group]),
                        _SPACE,
                        *_scored(row.cells[group]),
                    ]
                )
            )
    return lines


def _mix_lines(mixes: Sequence[MixRow]) -> list[_Line]:
    widths = {part: max(5, len(part)) for part in mixes[0].parts}
    heads = [(f"{part:>{width}}", "") for part, width in widths.items()]
    lines = [_line([(f"{'':<26}", ""), *heads, (" mean", "")])]
    for mix in mixes:
        parts = [(f"{mix.name + f' (β = {mix.beta:.2f})':<26}", "")]
        parts += [(f"{number(mix.parts[part]):>{width}}", "") for part, width in widths.items()]
        parts += [(f"{number(mix.mean):>5}", _BOLD if mix.is_chosen else "")]
        lines.append(_line(parts))
    return lines


def markdown_table(scores: Mapping[str, Any]) -> str:
    """The same table in Markdown, each cell `**score** / majority / blind`; ReportError as `score_rows`."""
    rows = score_rows(scores)
    lines = [
        "| task | metric | n | all: **score** / majority / blind | real | synthetic |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        cell = row.cells["all"]
        count = MISSING if cell is None or cell.count is None else str(cell.count)
        name = f"{row.name} (vqa)" if row.is_kind else row.name
        cells = [_markdown_cell(row.cells[group]) for group in GROUPS]
        texts = [_markdown_text(name), _markdown_text(row.metric), count, *cells]
        lines.append("| " + " | ".join(texts) + " |")
    if any(NOT_BETTER in line for line in lines):
        lines += ["", LEGEND]
    mixes = mix_rows(scores.get("beta"))
    if mixes:
        metric = metric_words(str(scores["beta"].get("metric", "")))
        names = list(mixes[0].parts)
        lines += ["", f"| mix ({metric}) | β | {' | '.join(names)} | mean |", f"|---|--:|{'--:|' * len(names)}--:|"]
        for mix in mixes:
            mean = f"**{number(mix.mean)}**" if mix.is_chosen else number(mix.mean)
            values = " | ".join([f"{mix.beta:.2f}", *map(number, mix.parts.values()), mean])
            lines.append(f"| {mix.name} | {values} |")
    return "\n".join(lines)


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    mark = "" if cell.beats_baseline else f" {NOT_BETTER}"
    return f"**{number(cell.value)}**{mark} / {number(cell.majority)} / {number(cell.blind)}"
