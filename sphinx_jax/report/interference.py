"""Interference as files and text: all numbers as JSON, heat maps as a picture, the worst places as a table."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sphinx_jax.report.plots import figure_style, new_figure, to_png
from sphinx_jax.report.score_table import MISSING
from sphinx_jax.weight_mix.interference import Interference, Pair, Sums, measure, pair_name
from sphinx_jax.weight_mix.sources import short_names
from sphinx_jax.weight_mix.write import new_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

WORST = 12  # places of the table
PAIRS_DRAWN = 3  # more than these are drawn as their mean
OUTSIDE_DRAWN = 40  # rows of what lies outside the layers, the most conflicting
NUMBERED_LAYERS = 12  # with more, cells are too narrow for their numbers
WIDE_CELL, NARROW_CELL = 0.42, 0.17  # inches
# measure: its name, colours and lowest value, and how to read it
MAPS = {
    "cosine": ("cosine", "RdBu", -1, "cosine (0: unrelated)"),
    "conflict": ("sign conflict", "Oranges", 0, "sign conflict (0.5: by chance)"),
}
# Natural where the alphabet is not.
LEAF_ORDER = ("q", "k", "v", "o", "gate", "up", "down")


def write(
    sources: Sequence[str], base: str | None, out: str | Path, *, quiet: bool = False, **rules: Any
) -> Interference:
    """Measures, and writes `interference.json` and `interference.png` into the new folder `out`.

    `rules` are `missing` and `allow`, as of `measure`.

    Raises:
      BadCheckpoint, ConfigError: as `measure`, or `out` exists or lies in a source.
    """
    out = new_folder(out, [*sources, *filter(None, [base])])
    found = measure(sources, base, out.with_name(f"{out.name}.scratch-{os.getpid()}"), quiet=quiet, **rules)
    numbers, picture = json.dumps(found.to_json(), indent=2, allow_nan=False), figure(found)
    out.mkdir(parents=True)
    (out / "interference.json").write_text(numbers)
    (out / "interference.png").write_bytes(picture)
    return found


def table(found: Interference) -> str:
    """The most conflicting places, then each kind of module, as aligned text."""
    worst = sorted(
        ((cell, pair) for cell in found.cells for pair in found.pairs if cell.sums.conflict(pair) is not None),
        key=lambda at: (-at[0].sums.conflict(at[1]), at[0].sums.cosine(at[1])),
    )[:WORST]
    kinds = [(kind, sums, pair) for kind, sums in found.totals().items() for pair in found.pairs]
    several = len(found.pairs) > 1

    def row(name: str, sums: Sums, pair: Pair) -> list[str]:
        sizes = [_share(sums.relative_norm(i)) for i in pair]
        numbers = [_signed(sums.cosine(pair)), _share(sums.conflict(pair)), _share(sums.cancelled(pair)), *sizes]
        return [name, *[pair_name(pair)] * several, *numbers, f"{sums.entries:,}"]

    head = ["most conflicting", *["pair"] * several, "cosine", "conflict", "cancelled"]
    head += ["first/base", "second/base", "entries"] if several else ["1/base", "2/base", "entries"]
    rows = [head, *(row(str(cell), cell.sums, pair) for cell, pair in worst)]
    rows += [[], ["by kind"], *(row(kind, sums, pair) for kind, sums, pair in kinds)]
    lines = [f"{i}: {name}" for i, name in enumerate(found.sources, 1)] + [f"base: {found.base}"]
    if found.unchanged:
        lines.append(f"unchanged: {', '.join(found.unchanged)}")
    if found.left_out:
        lines.append(f"left out, not in every checkpoint or no floats: {', '.join(found.left_out)}")
    return "\n".join([*lines, "", *_aligned(rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(max(map(len, rows)))]
    padded = ([f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+z.3f}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class _Panel:
    """The cells of a stack, or of what lies outside the layers, as rows of modules and columns of layers."""

    stack: str
    title: str
    modules: Sequence[str]
    layers: int
    cells: dict[tuple[str, int], Sums]

    def values(self, measure: str, pairs: Sequence[Pair]) -> np.ndarray:
        """float64 (modules, layers): a measure's mean over pairs, NaN where it has no value."""
        values = np.full((len(self.modules), self.layers), np.nan)
        for row, module in enumerate(self.modules):
            for layer in range(self.layers):
                sums = self.cells.get((module, layer))
                known = [x for pair in pairs if sums and (x := getattr(sums, measure)(pair)) is not None]
                if known:
                    values[row, layer] = np.mean(known)
        return values


def figure(found: Interference) -> bytes:
    """Heat maps of cosine and sign conflict over modules and layers as a PNG, a panel for each stack that changed.

    Up to three pairs of sources have panels of their own, more are drawn as their mean.
    """
    panels = _panels(found)
    each = {f", {pair_name(pair)}": [pair] for pair in found.pairs}
    if len(each) > PAIRS_DRAWN:
        each = {f", mean of {len(each)} pairs": found.pairs}
    elif len(each) == 1:
        each = {"": found.pairs}
    rows = [(panel, title, pairs) for panel in panels for title, pairs in each.items()]
    layers = max(panel.layers for panel in panels)
    numbered = layers <= NUMBERED_LAYERS
    room = max(2.2, layers * (WIDE_CELL if numbered else NARROW_CELL))
    width = 2.6 + 2 * room
    heights = [*(0.24 * len(panel.modules) for panel, _, _ in rows), 0.12]
    said = [f"{i}  {name}" for i, name in enumerate(short_names(found.sources), 1)]
    if found.unchanged:
        said += textwrap.wrap(f"unchanged: {', '.join(found.unchanged)}", int(14 * width))
    with figure_style():
        drawing = new_figure(width, sum(heights) + 0.65 * len(heights) + 0.17 * len(said))
        drawing.suptitle("\n".join(["Interference of task vectors", *said]), x=0.01, ha="left", fontsize=9)
        grid = drawing.add_gridspec(len(heights), 2, height_ratios=heights)
        for column, (measure, (name, colours, low, key)) in enumerate(MAPS.items()):
            for place, (panel, title, pairs) in enumerate(rows):
                axes = drawing.add_subplot(grid[place, column])
                columns = layers if panel.stack else room / WIDE_CELL
                image = _draw(axes, panel.values(measure, pairs), colours, low, numbered or not panel.stack)
                axes.set_xlim(-0.5, columns - 0.5)
                axes.set_yticks(range(len(panel.modules)), panel.modules if column == 0 else [])
                axes.set_title(f"{panel.title}{title}: {name}" if column == 0 else name)
                if panel.stack:
                    axes.set_xlabel("layer", loc="left", fontsize=7.5)
            drawing.colorbar(image, cax=drawing.add_subplot(grid[-1, column]), orientation="horizontal", label=key)
        return to_png(drawing)


def _panels(found: Interference) -> list[_Panel]:
    """Those of the stacks, then that of what lies outside the layers; modules that no source changed are left out."""
    changed = {(cell.stack, cell.module) for cell in found.cells if cell.sums.changed()}
    panels = []
    for stack in sorted({stack for stack, _ in changed}, key=lambda stack: (not stack, stack)):
        modules = [module for at, module in changed if at == stack]
        cells = {(c.module, c.layer or 0): c.sums for c in found.cells if c.stack == stack and c.module in modules}
        title = stack or "outside the layers"
        if not stack and len(modules) > OUTSIDE_DRAWN:
            title += f" ({OUTSIDE_DRAWN} most conflicting of {len(modules)})"
            modules = sorted(modules, key=lambda module: -_worst(cells[module, 0], found.pairs))[:OUTSIDE_DRAWN]
        panels.append(_Panel(stack, title, sorted(modules, key=_natural), 1 + max(at for _, at in cells), cells))
    return panels


def _worst(sums: Sums, pairs: Sequence[Pair]) -> float:
    return max(sums.conflict(pair) or 0.0 for pair in pairs)


def _natural(module: str) -> tuple[str, int, str]:
    parent, _, name = module.rpartition("/")
    return parent, LEAF_ORDER.index(name) if name in LEAF_ORDER else -1, name


def _draw(axes: Axes, values: np.ndarray, colours: str, low: float, numbered: bool) -> AxesImage:
    import matplotlib

    palette = matplotlib.colormaps[colours].with_extremes(bad="#eef0f2")
    image = axes.imshow(values, cmap=palette, vmin=low, vmax=1, aspect="auto", interpolation="nearest")
    columns = values.shape[1]
    axes.set_xticks(range(0, columns, 1 if numbered else 5) if columns > 1 else [])
    axes.tick_params(length=0, labelsize=7.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if numbered or np.isnan(value):
            text = MISSING if np.isnan(value) else f"{value:z.2f}"
            ink = "white" if abs(value) > 0.65 else "#333a42"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=ink)
    return image
