"""A page about prepared data: what was kept and why the rest was not, histograms, and some of each to look at."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.data.formats.prepared import read_manifest
from sphinx_jax.data.prepare.choose import Filters
from sphinx_jax.data.prepare.told import TOLD
from sphinx_jax.paths import write_whole
from sphinx_jax.report.page import as_figure
from sphinx_jax.report.plots import WIDTH, figure_style, new_figure, to_png
from sphinx_jax.report.style import whole_page

PAGE = "report.html"
SHOWN = 12  # items of each reason
KEPT = "kept"
STYLE = """
.sheet{display:flex;flex-wrap:wrap;gap:1em} .sheet figure{width:170px;margin:0}
.sheet img{max-width:160px;max-height:160px;display:block} .sheet figcaption{font-size:.8rem;overflow-wrap:anywhere;
max-height:6em;overflow:auto}
"""


def write_page(folder: Path) -> Path:
    """Write `report.html` into a folder of prepared data, from its manifest and `told.json`."""
    manifest, told = read_manifest(folder), json.loads((folder / TOLD).read_text())
    title = f"Prepared data: {folder.name}"
    sections = "".join(_sheet(reason, some) for reason, some in _ordered(told["samples"], manifest["dropped"]))
    figures = ""
    if told["histograms"]:
        drawn = histogram_figure(told["histograms"]), histogram_figure(told["histograms"], dark=True)
        figures = f"<section><h2>What they are like</h2>{as_figure(drawn, 'sizes, lengths and scores')}</section>"
    page = whole_page(title, _counts(manifest) + figures + sections, STYLE)
    write_whole(folder / PAGE, page.encode())
    return folder / PAGE


def _ordered(samples: Mapping[str, Sequence[Any]], dropped: Mapping[str, int]) -> list[tuple[str, Sequence[Any]]]:
    """What was kept first, then the reasons from the commonest on."""
    return [(reason, samples[reason]) for reason in (KEPT, *dropped) if reason in samples]


def _counts(manifest: Mapping[str, Any]) -> str:
    dropped = manifest["dropped"]
    total = manifest["items"] + sum(dropped.values())
    rows = [(KEPT, manifest["items"]), *dropped.items()]
    lines = "".join(
        f"<tr{' class=chosen' if name == KEPT else ''}><td>{html.escape(name)}</td><td>{count:,}</td>"
        f"<td>{100 * count / max(total, 1):.1f} %</td></tr>"
        for name, count in rows
    )
    tasks = ", ".join(f"{html.escape(task or 'no task')} {count:,}" for task, count in manifest["tasks"].items())
    made = manifest["made_from"]
    about = (
        f"{_many(len(made['inputs']), 'file')} of format {html.escape(made['format'])}, "
        f"{manifest['bytes'] / 1e6:,.1f} MB in {_many(len(manifest['shards']), 'shard')}; "
        f"domain {html.escape(manifest['domain'] or 'none')}; turns by task: "
        f"{tasks or 'none'}{_given(made)}"
    )
    return (
        f'<section><p>{about}</p><div class="wide"><table><thead><tr><th>items</th><th>count</th><th>share</th></tr>'
        f"</thead><tbody>{lines}</tbody></table></div></section>"
    )


def _sheet(reason: str, some: Sequence[Mapping[str, str]]) -> str:
    shown = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(len(some), SHOWN)).astype(int))]
    figures = "".join(
        "<figure>"
        + (f'<img alt="" src="data:image/jpeg;base64,{one["picture"]}">' if one["picture"] else "")
        + f"<figcaption>{_name(one)}{html.escape(one['text'])}</figcaption></figure>"
        for one in shown
    )
    return f'<section><h2>{html.escape(reason.capitalize())}</h2><div class="sheet">{figures}</div></section>'


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _name(one: Mapping[str, str]) -> str:
    return f"<b>{html.escape(name)}</b><br>" if (name := one.get("name", "")) else ""


def _given(made: Mapping[str, Any]) -> str:
    """What was asked for, where it is not what is done by itself."""
    usual = asdict(Filters())
    filters = {k: v for k, v in made.get("filters", {}).items() if v != json.loads(json.dumps(usual.get(k)))}
    told = [f"{name.replace('_', ' ')} {json.dumps(value)}" for name, value in filters.items()]
    if made.get("benchmarks"):
        told.append(f"without the pictures of the benchmarks in {made['benchmarks']}")
    return "; filters: " + html.escape(", ".join(told)) if told else ""


def histogram_figure(found: Mapping[str, Mapping[str, Sequence[float]]], dark: bool = False) -> bytes:
    """PNG: a panel for each, what was kept below and what was not above it."""
    columns = 3
    rows = -(-len(found) // columns)
    with figure_style(dark) as paint:
        figure = new_figure(WIDTH * 1.25, 2.5 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, told) in zip(panels, found.items(), strict=False):
            kept, dropped, edges = (np.array(told[key], float) for key in ("kept", "dropped", "edges"))
            at = np.arange(len(kept))
            axes.bar(at, kept, 0.9, color=paint["real"], label="kept")
            axes.bar(at, dropped, 0.9, bottom=kept, color=paint["synthetic"], label="dropped")
            ticks = np.unique(np.linspace(0, len(kept) - 1, 4).astype(int))
            axes.set_xticks(
                ticks - 0.45, [f"{edges[tick]:,.0f}" if edges[tick] >= 100 else f"{edges[tick]:.3g}" for tick in ticks]
            )
            axes.set_title(name, fontsize=9, loc="left")
            axes.tick_params(labelsize=8)
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8)
        return to_png(figure)
