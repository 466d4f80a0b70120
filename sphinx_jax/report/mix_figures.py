"""Pictures of the search for a mix: losses over one or two coefficients, learnt coefficients by module and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.report.plots import MARKERS, WIDTH, figure_style, new_figure, to_png


def search_figure(result: Mapping[str, Any], names: Sequence[str]) -> bytes | None:
    """PNG of what `mix_choice.choose` found; None where a table says it all.

    Args:
      names: of the checkpoints.
    """
    if "coefficients" in result:
        return _coefficients(result["coefficients"], names)
    curve = result.get("curve")
    if not curve:
        return None
    metric = f"{result['metric'].replace('_', ' ')} (lower is better)"
    return (_curve if len(names) == 2 else _surface)(curve, result["domains"], names, metric)


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


def _surface(curve: Sequence[Mapping[str, Any]], domains: Sequence[str], names: Sequence[str], metric: str) -> bytes:
    values = sorted({point["at"][0] for point in curve})
    grid = np.array([np.mean([point[domain] for domain in domains]) for point in curve])
    grid = grid.reshape(len(values), len(values)).T  # the first coefficient to the right, the second upwards
    with figure_style() as paint:
        figure = new_figure(WIDTH, 5.2)
        axes = figure.add_subplot()
        # far out the loss explodes; the colours are for the valley
        shown = axes.pcolormesh(values, values, grid, cmap="viridis_r", vmax=np.quantile(grid, 0.8), shading="nearest")
        row, column = np.unravel_index(grid.argmin(), grid.shape)
        axes.plot(values[column], values[row], marker="*", markersize=14, color=paint["ground"], markeredgecolor="k")
        axes.set_title(f"best: {values[column]:g}, {values[row]:g} with {grid.min():.3f}")
        axes.set_xlabel(f"weight of {names[0]}")
        axes.set_ylabel(f"weight of {names[1]}; the rest is {names[2]}")
        axes.grid(False)
        figure.colorbar(shown, label=f"mean {metric}", extend="max")
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
