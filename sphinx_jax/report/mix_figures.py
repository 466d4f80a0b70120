"""Pictures of the search for a mix: losses over one or two coefficients, learnt coefficients by module and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.report.plots import MARKERS, WIDTH, figure_style, new_figure, to_png
from sphinx_jax.report.score_table import lower_is_better, metric_words


def search_figure(result: Mapping[str, Any], names: Sequence[str]) -> bytes | None:
    """PNG of what `mix_choice.choose` found; None where a table says it all.

    Args:
      names: of the checkpoints.
    """
    if "coefficients" in result:
        return _coefficients(result["coefficients"], names)
    curve = result.get("curve")
    if not curve or len(curve) < 2:
        return None
    metric = result["metric"]
    if len(names) == 3:
        return _surface(curve, result["domains"], names, metric)
    if set(result["domains"]) <= {*DOMAINS, "*"}:
        return _curve(curve, result["domains"], names, f"{metric.replace('_', ' ')} (lower is better)")
    sides = {name: [point[name] for point in curve] for name in result["domains"]}
    return gain_figure([point["at"][0] for point in curve], sides, metric, names)


def _curve(curve: Sequence[Mapping[str, Any]], domains: Sequence[str], names: Sequence[str], metric: str) -> bytes:
    x = [point["at"][0] for point in curve]
    sides = {domain: np.array([point[domain] for point in curve]) for domain in domains}
    mean = np.mean(list(sides.values()), axis=0)
    with figure_style() as paint:
        figure = new_figure(WIDTH, 3.9)
        axes = figure.add_subplot()
        for domain, losses in sides.items():
            axes.plot(x, losses, color=paint.get(domain, paint["all"]), marker=MARKERS.get(domain, "o"), label=domain)
        if len(sides) > 1:
            axes.plot(x, mean, color=paint["all"], marker="D", markersize=4, linestyle="--", label="mean")
        best = x[int(mean.argmin())]
        axes.axvline(best, color=paint["all"], linewidth=1, linestyle=":")
        axes.annotate(
            f"best: {best:g}",
            (best, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5, -4),
            textcoords="offset points",
            va="top",
            fontweight="bold",
        )
        axes.set_xlabel(f"weight of {names[0]}; the rest is {names[1]}")
        axes.set_ylabel(metric)
        figure.legend(loc="outside upper left", ncols=3)
        return to_png(figure)


def gain_figure(
    weights: Sequence[float],
    sides: Mapping[str, Sequence[float]],
    metric: str,
    names: Sequence[str],
    chosen: float | None = None,
    dark: bool = False,
) -> bytes:
    """What each benchmark gains on the second model alone as the weight of the first grows: who gains from which.

    Args:
      weights: of the first model, the smallest of which is what the others are compared with.
      sides: of each benchmark, by weight.
      names: of the two models.
      chosen: the weight that is marked; None, the best of the mean.
    """
    order = np.argsort(weights)
    x = np.array(weights, float)[order]
    sign = -1 if lower_is_better(metric) else 1
    gains = {name: sign * (np.array(own, float)[order] - np.array(own, float)[order[0]]) for name, own in sides.items()}
    mean = np.mean(list(gains.values()), axis=0)
    best = float(x[int(np.nanargmax(mean))]) if chosen is None else chosen
    with figure_style(dark) as paint:
        figure = new_figure(WIDTH, 4.6)
        axes = figure.add_subplot()
        lines = [axes.plot(x, own, marker="o", markersize=3.5, linewidth=1.4)[0] for own in gains.values()]
        ends = {
            name: (float(own[-1]), line.get_color()) for (name, own), line in zip(gains.items(), lines, strict=True)
        }
        axes.plot(x, mean, color=paint["all"], marker="D", markersize=4, linestyle="--", linewidth=2.2)
        ends["mean"] = float(mean[-1]), paint["all"]
        axes.axhline(0, color=paint["all"], linewidth=0.8)
        axes.axvline(best, color=paint["all"], linewidth=1, linestyle=":")
        axes.set_title(f"{'best of the mean' if chosen is None else 'chosen'}: {best:g}", loc="left", fontsize=10)
        low, high = axes.get_ylim()
        for name, at, (value, colour) in _apart(ends, 0.055 * (high - low)):
            axes.annotate(
                name.replace("_", " "),
                (x[-1], value),
                xytext=(x[-1] + 0.035 * (x[-1] - x[0]), at),
                color=colour,
                va="center",
                fontsize=9,
                fontweight="bold" if name == "mean" else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
                annotation_clip=False,
            )
        axes.set_xlabel(f"weight of {names[0]}; the rest is {names[1]}")
        unit = "" if sign < 0 else ", points"
        axes.set_ylabel(f"{metric.replace('_', ' ')}{unit}: better than at {x[0]:g}")
        axes.set_xticks([tick for tick in axes.get_xticks() if x[0] - 1e-9 <= tick <= x[-1] + 1e-9])
        # room for the names
        axes.set_xlim(x[0] - 0.02 * (x[-1] - x[0]), x[-1] + 0.28 * (x[-1] - x[0]))
        return to_png(figure)


def _apart(ends: Mapping[str, tuple[float, str]], gap: float) -> list[tuple[str, float, tuple[float, str]]]:
    """Heights for names at the ends of lines, in their order and so far apart that all can be read."""
    order = sorted(ends, key=lambda name: ends[name][0])
    heights = [ends[name][0] for name in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    # as much below as above where the lines end
    shift = float(np.mean([height - ends[name][0] for name, height in zip(order, heights, strict=True)]))
    return [(name, height - shift, ends[name]) for name, height in zip(order, heights, strict=True)]


def _surface(curve: Sequence[Mapping[str, Any]], domains: Sequence[str], names: Sequence[str], metric: str) -> bytes:
    values = sorted({point["at"][0] for point in curve})
    grid = np.array([np.mean([point[domain] for domain in domains]) for point in curve])
    grid = grid.reshape(len(values), len(values)).T  # the first coefficient to the right, the second upwards
    worth = grid if lower_is_better(metric) else -grid
    with figure_style() as paint:
        figure = new_figure(WIDTH, 5.2)
        axes = figure.add_subplot()
        # far out the loss explodes; the colours are for the valley
        limit = {"vmax": np.quantile(grid, 0.8)} if worth is grid else {"vmin": np.quantile(grid, 0.2)}
        colours = "viridis_r" if worth is grid else "viridis"
        shown = axes.pcolormesh(values, values, grid, cmap=colours, shading="nearest", **limit)
        row, column = np.unravel_index(worth.argmin(), grid.shape)
        axes.plot(values[column], values[row], marker="*", markersize=14, color=paint["ground"], markeredgecolor="k")
        axes.set_title(f"best: {values[column]:g}, {values[row]:g} with {grid[row, column]:.3f}")
        axes.set_xlabel(f"weight of {names[0]}")
        axes.set_ylabel(f"weight of {names[1]}; the rest is {names[2]}")
        axes.grid(False)
        figure.colorbar(shown, label=f"mean {metric_words(metric)}", extend="max" if worth is grid else "min")
        return to_png(figure)


def _coefficients(found: Mapping[str, Sequence[Any]], names: Sequence[str]) -> bytes:
    """Modules down, layers to the right, a panel for each checkpoint but the last."""
    stacked = {pattern: np.array(own) for pattern, own in found.items() if np.ndim(own) == 2}
    alone = {pattern: np.array(own) for pattern, own in found.items() if np.ndim(own) == 1}
    layers = max((own.shape[1] for own in stacked.values()), default=1)
    table = np.full((len(names) - 1, len(found), layers + 1), np.nan)
    for row, own in enumerate([*stacked.values(), *alone.values()]):
        for panel in range(len(names) - 1):
            if own.ndim == 2:
                table[panel, row, : own.shape[1]] = own[panel]
            else:
                table[panel, row, layers] = own[panel]
    labels = [pattern.removesuffix("/*").replace("/blocks/", " ") for pattern in [*stacked, *alone]]
    with figure_style():
        figure = new_figure(WIDTH, 0.9 + 0.36 * len(labels) * (len(names) - 1))
        panels = figure.subplots(len(names) - 1, squeeze=False)[:, 0]
        spread = np.nanmax(np.abs(table - 0.5), initial=0.5)
        for name, axes, values in zip(names, panels, table, strict=False):
            shown = axes.imshow(values, cmap="RdBu", vmin=0.5 - spread, vmax=0.5 + spread, aspect="auto")
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    dark = abs(value - 0.5) > 0.6 * spread
                    axes.text(
                        column,
                        row,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if dark else "black",
                    )
            axes.set_yticks(range(len(labels)), labels)
            axes.set_xticks(range(layers + 1), [*(f"layer {i}" for i in range(layers)), "no layer"])
            axes.grid(False)
            axes.set_title(f"learnt weight of {name}; the rest is {names[-1]}")
        figure.colorbar(shown, ax=list(panels))
        return to_png(figure)
