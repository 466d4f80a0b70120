"""The figures of a report as PNG bytes: losses over training, scores over β, scores over baselines.

Every function takes `dark=True` for light text on a dark ground. Colours are of the Okabe-Ito palette, which
colour-blind readers tell apart; the domains keep theirs in every figure, and differ in marker as well.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.report.score_table import Cell, Row, finite, lower_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, SYNTHETIC = "#0072B2", "#D55E00"
REAL_DARK, SYNTHETIC_DARK = "#56B4E9", "#E69F00"
MARKERS = {"real": "o", "synthetic": "s", "all": "D"}
# Inches; narrow, so that the text is still legible where a phone shrinks the figure.
WIDTH = 6.6
DOTS_PER_INCH = 200
# A y axis that spans more than this factor is logarithmic.
LOG_FACTOR = 5.0
# Shorter curves are drawn as they are; longer ones as a mean over this share of their points.
SMOOTH_FROM, SMOOTH_SHARE = 20, 25

History = Sequence[Mapping[str, Any]]
HELD_OUT = "held_out/loss"  # of a history's rows


def colours(dark: bool = False) -> dict[str, str]:
    """The colours of the domains, of `all` (both), of text, of faint lines and of the ground."""
    if dark:
        domains = {"real": REAL_DARK, "synthetic": SYNTHETIC_DARK}
        return domains | {"all": "#e6e6e6", "text": "#d5d9de", "faint": "#3a4049", "ground": "#1b1f24"}
    domains = {"real": REAL, "synthetic": SYNTHETIC}
    return domains | {"all": "#222222", "text": "#333a42", "faint": "#dfe3e8", "ground": "#ffffff"}


@contextmanager
def figure_style(dark: bool = False) -> Iterator[dict[str, str]]:
    """Draws in the style of the figures; gives their `colours`."""
    import matplotlib

    paint = colours(dark)
    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": paint["text"],
        "axes.labelcolor": paint["text"],
        "axes.titlecolor": paint["text"],
        "axes.facecolor": paint["ground"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": paint["faint"],
        "grid.linewidth": 0.8,
        "figure.facecolor": paint["ground"],
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "text.color": paint["text"],
        "xtick.color": paint["text"],
        "ytick.color": paint["text"],
    }
    with matplotlib.rc_context(settings):
        yield paint


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, its sides in inches."""
    # Without pyplot there is no global figure to close and no window system to ask for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _plain_log(axes: "Axes", values: np.ndarray) -> None:
    """A logarithmic y axis with plain numbers, if the values span enough to need one."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > LOG_FACTOR * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving mean over 1/25 of the points; short curves come back as they are. NaNs are left out.

    values: (n,) float; returns (n,) float, NaN where no value is near.
    """
    if len(values) < SMOOTH_FROM:
        return values
    window = np.ones(2 * max(1, len(values) // (2 * SMOOTH_SHARE)) + 1)
    known = np.isfinite(values)
    totals = np.convolve(np.where(known, values, 0.0), window, mode="same")
    counts = np.convolve(known.astype(float), window, mode="same")
    return np.divide(totals, counts, out=np.full(len(values), np.nan), where=counts > 0)


def curves(history: History) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The loss curves of one stage: by domain where they were logged so, otherwise one, `all`.

    Returns name -> (steps, losses); losses that are not finite are NaN, rows without a step are left out.
    """
    found = {}
    for name, key in (("real", "loss/real"), ("synthetic", "loss/synthetic"), ("all", "loss")):
        pairs = [(row["step"], finite(row[key])) for row in history if key in row and "step" in row]
        if name == "all" and found:
            break
        if any(loss is not None for _, loss in pairs):
            steps, losses = zip(*pairs, strict=True)
            found[name] = np.array(steps, float), np.array(losses, float)
    return found


def held_out(history: History) -> tuple[np.ndarray, np.ndarray] | None:
    """The held-out losses of one stage as (steps, losses), NaN where not finite; None if it looked at none."""
    pairs = [(row["step"], finite(row[HELD_OUT])) for row in history if HELD_OUT in row and "step" in row]
    if not any(loss is not None for _, loss in pairs):
        return None
    steps, losses = zip(*pairs, strict=True)
    return np.array(steps, float), np.array(losses, float)


def loss_figure(histories: Mapping[str, History], dark: bool = False) -> bytes | None:
    """One panel for each stage with losses, raw behind smoothed; None if no stage has any."""
    stages = {stage: curves(history) for stage, history in histories.items()}
    stages = {stage: found for stage, found in stages.items() if found}
    if not stages:
        return None
    columns = min(2, len(stages))
    rows = -(-len(stages) // columns)
    with figure_style(dark) as paint:
        figure = new_figure(WIDTH, 2.6 * rows + 0.3)
        cells = figure.add_gridspec(rows, columns)
        shown = {}
        for place, (stage, found) in enumerate(stages.items()):
            row, column = divmod(place, columns)
            is_last = place == len(stages) - 1
            axes = figure.add_subplot(cells[row, column:] if is_last else cells[row, column])
            shown |= _draw_losses(axes, found, held_out(histories[stage]), paint)
            axes.set_title(stage.replace("_", " "))
            axes.set_xlabel("step")
            if column == 0:
                axes.set_ylabel("loss (nats per token)")
        if set(shown) != {"all"}:
            names = [name for name in (*DOMAINS, "all", HELD_OUT) if name in shown]
            whole = "both domains" if any(name in DOMAINS for name in names) else "training"
            labels = [{"all": whole, HELD_OUT: "held out"}.get(name, name) for name in names]
            handles = [shown[name] for name in names]
            figure.legend(handles, labels, loc="outside upper right", ncols=len(names))
        return to_png(figure)


def _draw_losses(
    axes: "Axes",
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    held: tuple[np.ndarray, np.ndarray] | None,
    paint: Mapping[str, str],
) -> dict[str, Any]:
    """The curves of one stage, each ending in its last value; the line of each, by name."""
    lines = {}
    ends = {}
    smoothed = {name: smooth(losses) for name, (_, losses) in found.items()}
    for name, (steps, losses) in found.items():
        if len(losses) >= SMOOTH_FROM:
            axes.plot(steps, losses, color=paint[name], alpha=0.22, linewidth=0.8)
        (lines[name],) = axes.plot(steps, smoothed[name], color=paint[name], label=name)
        known = np.isfinite(smoothed[name])
        ends[name] = steps[known][-1], smoothed[name][known][-1]
    for name, (step, loss) in ends.items():
        # Ends may lie close together: the upper value is written upwards, the lower one downwards.
        others = [value for other, (_, value) in ends.items() if other != name]
        place = "center" if not others else "bottom" if loss >= max(others) else "top"
        axes.annotate(
            f"{loss:.2f}",
            (step, loss),
            xytext=(4, 0),
            textcoords="offset points",
            color=paint[name],
            va=place,
            fontsize=8.5,
            annotation_clip=False,
        )
    drawn = list(smoothed.values())
    if held is not None:
        steps, losses = held
        drawn.append(losses)
        style = {"color": paint["text"], "linestyle": "--", "linewidth": 1.2, "marker": MARKERS["all"], "markersize": 4}
        (lines[HELD_OUT],) = axes.plot(steps, losses, **style)
        best = np.nanargmin(losses)
        axes.annotate(
            f"{losses[best]:.2f}",
            (steps[best], losses[best]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=paint["text"],
        )
    _plain_log(axes, np.concatenate(drawn))
    axes.margins(x=0.02)
    return lines


def beta_figure(beta: Mapping[str, Any] | None, dark: bool = False) -> bytes | None:
    """Both domains and their mean over β, the chosen one marked; None if there is no such curve."""
    if not beta or not beta.get("values"):
        return None
    values = np.array(beta["values"], float)
    order = np.argsort(values)
    sides = {name: _aligned(beta, name, len(values))[order] for name in DOMAINS}
    values = values[order]
    mean = (sides["real"] + sides["synthetic"]) / 2
    metric = str(beta.get("metric", "score"))
    better = "lower" if lower_is_better(metric) else "higher"
    with figure_style(dark) as paint:
        figure = new_figure(WIDTH, 3.9)
        axes = figure.add_subplot()
        for name, curve in sides.items():
            axes.plot(values, curve, color=paint[name], marker=MARKERS[name], markersize=5, label=name)
        axes.plot(values, mean, color=paint["all"], marker="D", markersize=4, linestyle="--", label="mean of both")
        _plain_log(axes, np.concatenate([*sides.values(), mean]))
        chosen = finite(beta.get("chosen"))
        if chosen is not None:
            axes.axvline(chosen, color=paint["all"], linewidth=1.0, linestyle=":")
            to_the_right = chosen < 0.7
            axes.annotate(
                f"chosen: β = {chosen:g}",
                (chosen, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(5 if to_the_right else -5, -4),
                textcoords="offset points",
                ha="left" if to_the_right else "right",
                va="top",
                fontweight="bold",
            )
        inner = [tick for tick in (0.2, 0.4, 0.6, 0.8) if values.min() < tick < values.max()]
        ends = {0.0: "0\nsynthetic only", 1.0: "1\nreal only"}
        ticks = [0.0, *inner, 1.0]
        axes.set_xticks(ticks, [ends.get(tick, f"{tick:g}") for tick in ticks])
        axes.set_xlim(-0.06, 1.06)
        axes.set_xlabel("β, the share of the real weights")
        axes.set_ylabel(f"{metric.replace('_', ' ')} ({better} is better)")
        figure.legend(loc="outside upper left", ncols=3)
        return to_png(figure)


def _aligned(beta: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    """A curve over β of the length of its values; NaN where it was not measured."""
    curve = [finite(value) for value in beta.get(name) or ()]
    return np.array([*curve, *[None] * length][:length], float)


def score_figure(rows: Sequence[Row], dark: bool = False) -> bytes | None:
    """Every task's score against its better baseline, by domain; None if nothing is between 0 and 1.

    Kinds of question and losses are left out. A score that is not better than its baseline is a cross.
    """
    bars = []
    for row in rows:
        domains = [(name, row.cells[name]) for name in DOMAINS if row.cells[name]] or [("all", row.cells["all"])]
        cells = [(name, cell) for name, cell in domains if cell and cell.value is not None]
        if cells and not row.is_kind and not lower_is_better(row.metric):
            bars.append((row, cells))
    if not bars:
        return None
    with figure_style(dark) as paint:
        figure = new_figure(WIDTH, 0.44 * len(bars) + 1.1)
        axes = figure.add_subplot()
        for place, (_, cells) in enumerate(bars):
            for offset, (name, cell) in zip((-0.19, 0.19) if len(cells) == 2 else (0.0,), cells, strict=True):
                _draw_score(axes, place + offset, name, cell, paint)
        names = [f"{row.name.replace('_', ' ')}\n{row.metric.replace('_', ' ')}" for row, _ in bars]
        axes.set_yticks(range(len(bars)), names, fontsize=8.5, linespacing=1.1)
        axes.set_ylim(len(bars) - 0.45, -0.55)
        axes.set_xlim(-0.07, 1.1)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("score")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        used = [name for name in (*DOMAINS, "all") if any(name == found for _, cells in bars for found, _ in cells)]
        _score_legend(figure, used, paint)
        return to_png(figure)


def _draw_score(axes: "Axes", y: float, name: str, cell: Cell, paint: Mapping[str, str]) -> None:
    colour = paint[name]
    if cell.baseline is not None:
        axes.plot([cell.baseline, cell.value], [y, y], color=colour, alpha=0.45, linewidth=2.5)
        axes.plot([cell.baseline], [y], marker="|", markersize=9, color=colour, markeredgewidth=2)
    marker = MARKERS[name] if cell.beats_baseline else "X"
    axes.plot([cell.value], [y], marker=marker, markersize=7, color=colour, linestyle="none")
    axes.annotate(
        f"{cell.value:.2f}",
        (cell.value, y),
        xytext=(8 if cell.beats_baseline else -8, 0),
        textcoords="offset points",
        ha="left" if cell.beats_baseline else "right",
        va="center_baseline",
        fontsize=8,
        color=colour,
    )


def _score_legend(figure: "Figure", names: Sequence[str], paint: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str, size: float, label: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=size, label=label)

    handles = [mark(MARKERS[name], paint[name], 7, name) for name in names]
    handles.append(mark("|", paint["text"], 10, "better baseline"))
    handles.append(mark("X", paint["text"], 7, "not better than it"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), columnspacing=1.2)
