"""The score card as a page: the numbers, and of each benchmark the worst answers and some others, with pictures."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import ImageDraw

from sphinx_jax.data.image import BadImage, ImageSource, load_image
from sphinx_jax.data.tasks import PaddedSquare
from sphinx_jax.evaluate.benchmarks.coco import read_boxes
from sphinx_jax.evaluate.card import Line
from sphinx_jax.evaluate.question import LETTERS, Picture, picture_of_json
from sphinx_jax.evaluate.rules.boxes import read_box
from sphinx_jax.report.card import HEADS, cells
from sphinx_jax.report.style import whole_page

WORST, SOME = 12, 12  # answers of each benchmark that are shown
SIDE = 240  # pixels of a picture, at most
RIGHT, SAID = "#1a9850", "#d73027"  # colours of boxes
STYLE = """
.filters button{margin:0 .4em .4em 0} .answers{display:flex;flex-wrap:wrap;gap:1em}
.answers figure{width:260px;margin:0} .answers figure[hidden]{display:none}
.answers img{max-width:240px;display:block} .answers p{margin:.2em 0;overflow-wrap:anywhere} .score{overflow-x:auto}
"""
SCRIPT = """
document.querySelectorAll('.filters').forEach(bar => bar.addEventListener('click', event => {
  const label = event.target.dataset.label
  if (label === undefined) return
  bar.nextElementSibling.querySelectorAll('figure').forEach(one =>
    one.hidden = label !== '' && !one.dataset.labels.split('|').includes(label))
}))
"""


class Shown(NamedTuple):
    """Answers to a benchmark, as `evaluate.card.items` has them, and where their pictures are found."""

    name: str
    items: Sequence[Mapping[str, Any]]
    find: Callable[[Picture], ImageSource]


def write_page(title: str, card: Sequence[Line], shown: Sequence[Shown]) -> str:
    """The page, which needs no file beside it."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADS)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells(line))}</tr>" for line in card)
    table = f'<div class="score"><table><tr>{head}</tr>{body}</table></div>'
    sections = "".join(map(_section, shown))
    return whole_page(title, table + sections, STYLE, SCRIPT)


def _section(shown: Shown) -> str:
    ordered = sorted(shown.items, key=lambda item: item["value"] or 0.0)
    worst = [item for item in ordered[:WORST] if item["value"] is not None and item["value"] < 1]
    rest = ordered[len(worst) :]
    some = random.Random(0).sample(rest, min(SOME, len(rest)))
    parts = "".join(
        f"<h3>{what}</h3>{_filters(items)}<div class='answers'>{''.join(_answer(shown, item) for item in items)}</div>"
        for what, items in (("The worst", worst), ("Some of the others" if worst else "Some", some))
        if items
    )
    return f"<h2>{html.escape(shown.name)}</h2>{parts}"


def _filters(items: Sequence[Mapping[str, Any]]) -> str:
    labels = ["", *sorted({label for item in items for label in _labels(item)})]
    buttons = (f'<button data-label="{html.escape(x)}">{html.escape(x or "all")}</button>' for x in labels)
    return f'<div class="filters">{"".join(buttons) if len(labels) > 2 else ""}</div>'


def _labels(item: Mapping[str, Any]) -> list[str]:
    labels = item["labels"].values()
    return [str(one) for label in labels for one in (label if isinstance(label, list | tuple) else [label])]


def _answer(shown: Shown, item: Mapping[str, Any]) -> str:
    right = " / ".join(dict.fromkeys(map(str, item["answers"]))) if item["box"] is None else str(item["box"])
    lettered = zip(LETTERS, item["choices"], strict=False)
    choices = "".join(f"<br>{letter}. {html.escape(text)}" for letter, text in lettered)
    labels = html.escape("|".join(_labels(item)))
    counts = "" if item["value"] is None else f"<p>counts {item['value']:.2f}</p>"
    return (
        f'<figure data-labels="{labels}">{_picture(shown, item)}<p><b>{html.escape(str(item["key"]))}</b> '
        f"{html.escape(item['question'])}{choices}</p><p>said: {html.escape(item['prediction'])}</p>"
        f"{right and f'<p>right: {html.escape(right)}</p>'}{counts}</figure>"
    )


def _said(item: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    """Boxes of an answer: the one that was asked for, or all of one that finds things."""
    if item["box"] is None:
        return [] if item["answers"] else read_boxes(item["prediction"])
    first = read_box(item["prediction"])
    return [] if first is None else [first]


def _picture(shown: Shown, item: Mapping[str, Any]) -> str:
    try:
        image = load_image(shown.find(picture_of_json(item["picture"]))).convert("RGB")
    except BadImage:
        return "<p>no picture</p>"
    scale = SIDE / max(image.size)
    drawn = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen, frame = ImageDraw.Draw(drawn), PaddedSquare(*image.size)
    if item["box"] is not None:
        pen.rectangle([x * scale for x in item["box"]], outline=RIGHT, width=3)
    for said in _said(item):
        said = [min(max(x, -1.0), 2.0) for x in said]  # a text may say anything
        corners = [x * frame.side - frame.offset[i % 2] for i, x in enumerate(said)]
        ordered = [*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:])]
        pen.rectangle([x * scale for x in ordered], outline=SAID, width=3)
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}" alt="">'
