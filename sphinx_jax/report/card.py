"""The score card as lines of a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sphinx_jax.evaluate.card import Line

HEADS = ("benchmark", "split", "questions", "protocol", "score", "95 %", "published", "difference")
LEGEND = (
    "Scores in percent, of captions CIDEr's, which may pass 100, of MME its own points; intervals of a bootstrap over "
    "pictures."
)


class Card(NamedTuple):
    """A card as a report shows it; `page` has answers too, named from where the report lies."""

    lines: Sequence[Line]
    page: str


def cells(line: Line) -> tuple[str, ...]:
    """A line of the card, as texts; ▼ and ▲ where what was published lies outside the interval."""
    if line.left_out:
        return line.benchmark, line.split, "", "", f"left out: {line.left_out}", "", "", ""
    number = f"needs a judge: {line.judge}" if line.score is None else f"{line.score:.1f}"
    interval = "" if line.low is None else f"{line.low:.1f} to {line.high:.1f}"
    published = "" if line.published is None else f"{line.published:.1f}"
    difference = ""
    if line.difference is not None:
        difference = f"{line.difference:+.1f}" + ("" if not line.outside else " ▲" if line.difference > 0 else " ▼")
    lost = [f"{line.missing} missing"] if line.missing else []
    lost += [f"without {line.without}"] if line.without else []
    count = str(line.count) + (f" ({'; '.join(lost)})" if lost else "")
    return line.benchmark, line.split, count, line.protocol, number, interval, published, difference


def markdown(card: Sequence[Line]) -> str:
    told = ([cell.replace("|", "\\|") for cell in cells(line)] for line in card)
    rows = [HEADS, ("---",) * len(HEADS), *told]
    legend = (
        f"{LEGEND} ▼ and ▲: what was published lies outside. Questions without an answer are counted as missing, and "
        "no score is over them.\n"
    )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n" + legend


def terminal(card: Sequence[Line]) -> str:
    rows = [HEADS, *map(cells, card)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown_differences(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    heads = ("benchmark", "questions", "of one alone", "difference", "95 %", "p")
    rows = [
        (
            name,
            str(one["count"]),
            str(one["alone"]),
            f"{one['difference']:+.1f}",
            f"{one['low']:+.1f} to {one['high']:+.1f}",
            f"{one['p']:.3f}",
        )
        for name, one in found.items()
        if one is not None
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in (heads, ("---",) * len(heads), *rows)) if rows else ""
    left_out = [name for name, one in found.items() if one is None]
    said = f"Not compared, without scores by question: {', '.join(left_out)}.\n" if left_out else ""
    return table + "\n" * bool(table and said) + said
