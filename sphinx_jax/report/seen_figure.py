"""What training stages have seen, as a figure: rows of each data set, items and learnt tokens of each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.report.plots import WIDTH, figure_style, new_figure, to_png
from sphinx_jax.train.tally import Seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 0.21  # inches of a bar
SETS, TASKS = 12, 30  # bars that are drawn at most
OTHER = "no domain"


def seen_figure(seen: Mapping[str, Seen], dark: bool = False) -> bytes | None:
    """A line of panels for each stage; None where no stage says what it has seen."""
    stages = {stage: one for stage, one in seen.items() if any(one.values())}
    if not stages:
        return None
    parts = {stage: (sets_of(one), tasks_of(one)) for stage, one in stages.items()}
    bars = [max(3, min(len(sets), SETS), min(len(tasks), TASKS)) for sets, tasks in parts.values()]
    heights = [LINE * count + 0.6 for count in bars]
    with figure_style(dark) as paint:
        figure = new_figure(WIDTH, sum(heights) + 0.3)
        cells = figure.add_gridspec(len(stages), 3, height_ratios=heights)
        tones = {domain: paint[domain] for domain in DOMAINS} | {OTHER: "#8a929b"}
        shown: set[str] = set()
        for place, (stage, (sets, tasks)) in enumerate(parts.items()):
            of_sets, items, tokens = (figure.add_subplot(cells[place, column]) for column in range(3))
            _draw_sets(of_sets, sets, paint["text"], paint["ground"])
            names = sorted(tasks, key=lambda name: sum(one["tokens"] for one in tasks[name].values()), reverse=True)
            for axes, key in ((items, "items"), (tokens, "tokens")):
                shown |= _draw_tasks(axes, {name: tasks[name] for name in names[:TASKS]}, key, tones)
            tokens.set_yticklabels([])
            for axes in (of_sets, items, tokens):  # bars of one height, be they few or many
                axes.set_ylim(bars[place] - 0.5, -0.5)
            of_sets.set_title(f"{stage.replace('_', ' ')}: rows", parse_math=False)
            items.set_title("items")
            tokens.set_title("tokens learnt")
        domains = [domain for domain in tones if domain in shown]
        if len(domains) > 1:
            from matplotlib.patches import Patch

            handles = [Patch(color=tones[domain], label=domain) for domain in domains]
            figure.legend(handles=handles, loc="outside lower right", ncols=len(domains))
        return to_png(figure)


def sets_of(seen: Seen) -> dict[str, tuple[int, int]]:
    """Rows of each data set, those that were of use and those that were not; the largest first."""
    found: dict[str, tuple[int, int]] = {}
    for of_kind in seen.values():
        for name, one in of_kind.items():
            rows, skipped = found.get(name, (0, 0))
            found[name] = rows + one["rows"], skipped + one["skipped"]
    return dict(sorted(found.items(), key=lambda pair: pair[1], reverse=True))


def tasks_of(seen: Seen) -> dict[str, dict[str, dict[str, int]]]:
    """Task -> domain -> items and tokens, over all data sets."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for of_kind in seen.values():
        for one in of_kind.values():
            for task, domains in one["tasks"].items():
                for domain, counts in domains.items():
                    place = found.setdefault(task, {}).setdefault(
                        domain if domain in DOMAINS else OTHER, {"items": 0, "tokens": 0}
                    )
                    for key in place:
                        place[key] += counts[key]
    return found


def _draw_sets(axes: Axes, sets: Mapping[str, tuple[int, int]], colour: str, ground: str) -> None:
    names = list(sets)[:SETS]
    used, skipped = [sets[name][0] for name in names], [sets[name][1] for name in names]
    axes.barh(range(len(names)), used, color=colour, alpha=0.75)
    axes.barh(range(len(names)), skipped, left=used, color="#b3001b")
    axes.set_yticks(range(len(names)), [_short(name) for name in names], parse_math=False)
    most = max(map(sum, sets.values()))
    for place, (rows, lost) in enumerate(zip(used, skipped, strict=True)):
        text = f"{rows:,}" + (f", {lost:,} skipped" if lost else "")
        inside = rows + lost > most / 2
        axes.annotate(
            text,
            (0 if inside else rows + lost, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=ground if inside else colour,
        )
    _as_lines(axes)


def _draw_tasks(axes: Axes, tasks: Mapping[str, Any], key: str, tones: Mapping[str, str]) -> set[str]:
    starts, shown = [0] * len(tasks), set()
    for domain, tone in tones.items():
        values = [one.get(domain, {}).get(key, 0) for one in tasks.values()]
        if any(values):
            shown.add(domain)
            axes.barh(range(len(tasks)), values, left=starts, color=tone)
            starts = [a + b for a, b in zip(starts, values, strict=True)]
    axes.set_yticks(range(len(tasks)), [name.replace("_", " ") for name in tasks], parse_math=False)
    _as_lines(axes)
    return shown


def _as_lines(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


def told(seen: Seen) -> str:
    """One line: rows of each data set, and the tokens learnt."""
    sets = sets_of(seen)
    tokens = sum(c["tokens"] for of_task in tasks_of(seen).values() for c in of_task.values())
    rows = ", ".join(
        f"{used:,} of {name}" + (f" ({skipped:,} skipped)" if skipped else "")
        for name, (used, skipped) in list(sets.items())[:SETS]
    )
    more = f" and {len(sets) - SETS} more data sets" if len(sets) > SETS else ""
    return f"rows seen: {rows}{more}; {tokens:,} tokens learnt"
