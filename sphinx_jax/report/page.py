"""The show stage: a report of a run as one HTML file that can be mailed, with its figures as PNGs beside it.

path = write_report(folder, title=…, intro=…, histories=…, scores=…, samples=…, timings=…)
print(format_table(scores, colour=True), path)
"""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.paths import write_whole
from sphinx_jax.report.card import HEADS, Card, cells
from sphinx_jax.report.card import LEGEND as CARD_LEGEND
from sphinx_jax.report.drawing import PARTLY, RIGHT, WRONG, Sample, annotate, encoded, readable, verdict, verdict_text
from sphinx_jax.report.drawing import grid as draw_grid
from sphinx_jax.report.mix_figures import gain_figure
from sphinx_jax.report.plots import History, beta_figure, curves, held_out, loss_figure, score_figure, smooth
from sphinx_jax.report.score_table import (
    GROUPS,
    LEGEND,
    MISSING,
    NOT_BETTER,
    Cell,
    ReportError,
    Row,
    finite,
    format_table,
    markdown_table,
    metric_words,
    mix_rows,
    mixed_over,
    number,
    score_rows,
)
from sphinx_jax.report.seen_figure import seen_figure
from sphinx_jax.report.style import style_sheet
from sphinx_jax.train.tally import Seen

__all__ = ["ReportError", "Sample", "format_table", "markdown_table", "write_report"]

# The two tasks that a report opens with: understanding and localisation.
HEADLINES = ("vqa", "rec")


class Beside(NamedTuple):
    """What a recipe may have beside its scores: what each training stage has seen of its data, a card of benchmarks."""

    seen: Mapping[str, Seen] = {}
    card: Card | None = None


def write_report(
    folder: Path,
    *,
    title: str,
    intro: Sequence[str],
    histories: Mapping[str, History],
    scores: Mapping[str, Any],
    samples: Sequence[Sample],
    timings: Mapping[str, float],
    beside: Beside | None = None,
) -> Path:
    """Write `report.html` and its figures as PNGs (loss, beta, scores, seen, grid) into `folder`; returns its path.

    intro: its first text opens the report, the others say at its end how the run was made (one with line
    breaks, such as a config, is set as code that folds away under its first line); histories: the log rows of
    each training stage; scores: the content of `scores.json` (see `score_table`); samples: pictures of the
    test split not picked by outcome, shown in order; timings: seconds of each stage. What there is no data for
    is left out, and its PNG of an earlier run is removed.
    ReportError if the scores cannot be read; the report of an earlier run then stays.
    """
    rows, beside = score_rows(scores), beside or Beside()
    beta = scores.get("beta")
    figures: dict[str, Callable[[bool], bytes | None]] = {
        "loss": lambda dark: loss_figure(histories, dark),
        "beta": lambda dark: _beta_figure(beta, dark),
        "scores": lambda dark: score_figure(rows, dark),
        "seen": lambda dark: seen_figure(beside.seen, dark),
    }
    drawn = {name: (draw(False), draw(True)) for name, draw in figures.items()}
    sections = [
        _headlines(rows, scores),
        _beta_section(scores, drawn["beta"]),
        _scores_section(rows, drawn["scores"]),
        _card_section(beside.card),
        _loss_section(histories, drawn["loss"]),
        _seen_section(drawn["seen"]),
        _samples_section(samples),
        _made_section(intro[1:], timings),
    ]
    page = _page(title, intro[0] if intro else "", sections)

    folder.mkdir(parents=True, exist_ok=True)
    pngs = {f"{name}.png": light for name, (light, _) in drawn.items()}
    pngs["grid.png"] = encoded(draw_grid(list(samples)), "PNG") if samples else None
    for name, data in pngs.items():
        if data is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_whole(folder / name, data)
    write_whole(folder / "report.html", page.encode())
    return folder / "report.html"


def _source(data: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def as_figure(pair: tuple[bytes | None, bytes | None], alt: str) -> str:
    """A figure in its light and dark form; the browser picks."""
    light, dark = pair
    if light is None or dark is None:
        return ""
    return (
        f'<div class="wide"><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{_source(dark, "png")}"><img class="chart" src="{_source(light, "png")}" '
        f'alt="{html.escape(alt)}"></picture></div>'
    )


def _headlines(rows: Sequence[Row], scores: Mapping[str, Any]) -> str:
    tasks = [row for row in rows if not row.is_kind]
    chosen = [row for row in tasks if row.name in HEADLINES] or tasks[:2]
    cards = "".join(_headline(row) for row in chosen) + _mix_headline(scores.get("beta"))
    return f'<div class="headlines">{cards}</div>' if cards else ""


def _headline(row: Row) -> str:
    cell = row.cells["all"]
    if cell is None:
        return ""
    metric = html.escape(row.metric.replace("_", " "))
    baselines = f"majority {number(cell.majority)} · blind {number(cell.blind)}"
    state = "good" if cell.beats_baseline else "bad"
    domains = "".join(
        f'<span class="{domain}">{domain} {number(part.value)}</span>'
        for domain in DOMAINS
        if (part := row.cells[domain])
    )
    return (
        f'<div class="headline"><h3>{_words(row.name).upper()} <small>{metric}</small></h3>'
        f'<p class="number {state}">{number(cell.value)}{_mark(cell)}</p>'
        f"<p>baselines: {baselines}</p><p>{domains}</p></div>"
    )


def _beta_figure(beta: Mapping[str, Any] | None, dark: bool) -> bytes | None:
    if beta and set(mixed_over(beta)) != set(DOMAINS):
        sides = {name: beta[name] for name in mixed_over(beta)}
        return gain_figure(beta["values"], sides, beta["metric"], DOMAINS, beta["chosen"], dark)
    return beta_figure(beta, dark)


def _mix_headline(beta: Mapping[str, Any] | None) -> str:
    mixes = mix_rows(beta)
    chosen = next((mix for mix in mixes if mix.is_chosen), None)
    if beta is None or chosen is None:
        return ""
    ends = " · ".join(f"{mix.name} {number(mix.mean)}" for mix in mixes if not mix.is_chosen)
    metric = html.escape(metric_words(str(beta.get("metric", ""))))
    over = "both domains" if set(chosen.parts) == set(DOMAINS) else f"{len(chosen.parts)} benchmarks"
    return (
        f'<div class="headline"><h3>MIX OF WEIGHTS <small>β = {chosen.beta:.2f}</small></h3>'
        f'<p class="number">{number(chosen.mean)}</p>'
        f'<p>{ends}</p><p><span class="muted">mean of {over}; {metric}</span></p></div>'
    )


def _words(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _mark(cell: Cell) -> str:
    if cell.beats_baseline:
        return ""
    return f' <span class="bad" title="not better than the better baseline">{NOT_BETTER}</span>'


def _section(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _beta_section(scores: Mapping[str, Any], drawn: tuple[bytes | None, bytes | None]) -> str:
    beta = scores.get("beta")
    figure = as_figure(drawn, "scores of both domains over β")
    mixes = mix_rows(beta)
    table = ""
    if beta and mixes:
        lines = "".join(
            f"<tr{' class=chosen' if mix.is_chosen else ''}><td>{mix.name}</td><td>{mix.beta:.2f}</td>"
            f"{''.join(f'<td>{number(part)}</td>' for part in mix.parts.values())}<td>{number(mix.mean)}</td></tr>"
            for mix in mixes
        )
        metric = html.escape(metric_words(str(beta.get("metric", ""))))
        heads = "".join(f"<th>{_words(part)}</th>" for part in mixes[0].parts)
        table = (
            f'<div class="wide"><table><caption>On the test split: {metric}</caption>'
            f"<thead><tr><th>mix</th><th>β</th>{heads}<th>mean</th></tr></thead>"
            f"<tbody>{lines}</tbody></table></div>"
        )
    text = "<p>The weights of two domains in one model: θ = β · θ<sub>real</sub> + (1 − β) · θ<sub>synthetic</sub>.</p>"
    return _section("The mix of weights", text, figure, table) if figure or table else ""


def _scores_section(rows: Sequence[Row], drawn: tuple[bytes | None, bytes | None]) -> str:
    if not rows:
        return ""
    groups = "".join(f'<th colspan="3" class="group {group}">{group}</th>' for group in GROUPS)
    columns = '<th class="group">score</th><th>majority</th><th>blind</th>' * len(GROUPS)
    body = "".join(_score_line(row) for row in rows)
    note = (
        "<p>Majority: the best constant answer, found on the training answers. Blind: a model that does not "
        f'see the picture. <span class="bad">{LEGEND}</span>.</p>'
    )
    table = (
        f'<div class="wide"><table class="scores"><thead><tr><th rowspan="2">task</th>'
        f'<th rowspan="2" class="detail metric">metric</th><th rowspan="2" class="detail">n</th>'
        f"{groups}</tr><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
    return _section("Scores against baselines", note, table, as_figure(drawn, "scores against baselines"))


def _score_line(row: Row) -> str:
    all_ = row.cells["all"]
    count = MISSING if all_ is None or all_.count is None else all_.count
    cells = "".join(_score_cells(row.cells[group]) for group in GROUPS)
    kind = ' class="kind"' if row.is_kind else ""
    metric = "" if row.is_kind else _words(row.metric)
    details = f'<td class="detail metric">{metric}</td><td class="detail">{count}</td>'
    return f"<tr{kind}><th>{_words(row.name)}</th>{details}{cells}</tr>"


def _score_cells(cell: Cell | None) -> str:
    if cell is None:
        return f'<td class="group muted">{MISSING}</td>' + f'<td class="muted">{MISSING}</td>' * 2
    state = "" if cell.beats_baseline else " bad"
    baselines = "".join(f'<td class="muted">{number(value)}</td>' for value in (cell.majority, cell.blind))
    return f'<td class="group score{state}">{number(cell.value)}{_mark(cell)}</td>{baselines}'


def _card_section(card: Card | None) -> str:
    if card is None or not card.lines:
        return ""
    columns = [column for column in zip(HEADS, *map(cells, card.lines), strict=True) if any(column[1:])]
    heads, *body = zip(*columns, strict=True)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = "".join(
        f"<tr><th>{_words(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in rest)}</tr>"
        for name, *rest in body
    )
    note = (
        "<p>Held-out questions in the files of public benchmarks, put and scored as those are. "
        f'{html.escape(CARD_LEGEND)} <a href="{html.escape(card.page)}">Answers, with their pictures</a>.</p>'
    )
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    return _section("Score card", note, table)


def _loss_section(histories: Mapping[str, History], drawn: tuple[bytes | None, bytes | None]) -> str:
    figure = as_figure(drawn, "loss over training steps, by stage and domain")
    looked = any(held_out(history) for history in histories.values())
    lines = "".join(_stage_line(stage, history, looked) for stage, history in histories.items() if history)
    if not lines:
        return figure and _section("Losses", figure)
    names = ("stage", "steps", "first loss", "last loss", *looked * ("best held out",), "tokens/s", "MFU", "time")
    heads = "".join(f"<th>{head}</th>" for head in names)
    table = f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    return _section("Losses", figure, table)


def _seen_section(pair: tuple[bytes | None, bytes | None]) -> str:
    figure = as_figure(pair, "rows of each data set, items and tokens of each task that training stages have seen")
    return figure and _section("What was seen", figure)


def _stage_line(stage: str, history: History, looked: bool) -> str:
    steps = max((int(row["step"]) for row in history if finite(row.get("step")) is not None), default=0)
    whole = curves([{"step": row.get("step", 0), "loss": row["loss"]} for row in history if "loss" in row])
    losses = smooth(whole["all"][1]) if whole else []
    known = [float(loss) for loss in losses if finite(float(loss)) is not None]
    first, last = (number(known[0]), number(known[-1])) if known else (MISSING, MISSING)
    rate, share = _middle(history, "tokens_per_second"), _middle(history, "mfu")
    seconds, held = finite(history[-1].get("seconds")), held_out(history)
    texts = (
        str(steps),
        first,
        last,
        *looked * (MISSING if held is None else number(float(np.nanmin(held[1]))),),
        MISSING if rate is None else f"{rate:,.0f}",
        MISSING if share is None else f"{share:.1%}",
        MISSING if seconds is None else duration(seconds),
    )
    return f"<tr><th>{_words(stage)}</th>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>"


def _middle(history: History, key: str) -> float | None:
    known = [value for row in history if (value := finite(row.get(key))) is not None]
    return median(known) if known else None


def duration(seconds: float) -> str:
    """Seconds for reading: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _samples_section(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    legend = (
        '<p class="legend"><span><i class="said"></i>said by the model</span>'
        '<span><i class="expected"></i>expected</span>'
        '<span><i class="asked"></i>named in the question</span></p>'
    )
    cards = "".join(_sample(sample) for sample in samples)
    note = (
        "<p>Pictures of the test split, not picked by outcome. "
        f"{RIGHT} full score, {PARTLY} at least half, {WRONG} less.</p>"
    )
    return _section("Held-out pictures", note, legend, f'<div class="samples">{cards}</div>')


def _sample(sample: Sample) -> str:
    picture = _source(encoded(annotate(sample), "WEBP", quality=85), "webp")
    state = {RIGHT: "good", PARTLY: "partly", WRONG: "bad"}[verdict(sample.score)]
    domain = sample.domain if sample.domain in DOMAINS else ""
    texts = "".join(
        f'<dt>{name}</dt><dd class="{style}" title="{html.escape(text)}">'
        f"{html.escape(readable(sample.task, text)) or '<em>nothing</em>'}</dd>"
        for name, style, text in (
            ("expected", "expected", sample.answer),
            ("said", "said", sample.prediction),
        )
    )
    return (
        f'<article><div class="picture"><img src="{picture}" alt="{_words(sample.task)}"></div>'
        f'<p class="tags"><span><span class="{domain}">{_words(sample.domain)}</span> · '
        f'{_words(sample.task)}</span><b class="{state}">{verdict_text(sample.score)}</b></p>'
        f'<p class="question">{html.escape(sample.question.strip())}</p><dl>{texts}</dl></article>'
    )


def _told(text: str) -> str:
    """A paragraph; text with line breaks folds away under its first line."""
    first, _, rest = text.partition("\n")
    if not rest:
        return f"<p>{html.escape(text)}</p>"
    return f"<details><summary>{html.escape(first)}</summary><pre>{html.escape(rest)}</pre></details>"


def _made_section(texts: Sequence[str], timings: Mapping[str, float]) -> str:
    told = "".join(_told(text.strip()) for text in texts)
    table = ""
    if timings:
        lines = "".join(
            f"<tr><th>{_words(name)}</th><td>{duration(seconds)}</td></tr>" for name, seconds in timings.items()
        )
        total = f'<tr class="chosen"><th>total</th><td>{duration(sum(timings.values()))}</td></tr>'
        table = (
            '<div class="wide"><table class="narrow"><thead><tr><th>stage</th><th>time</th></tr></thead>'
            f"<tbody>{lines}{total}</tbody></table></div>"
        )
    return _section("How it was made", told, table)


def _page(title: str, opening: str, sections: Sequence[str]) -> str:
    shown = html.escape(title)
    lead = f'<p class="lead">{html.escape(opening)}</p>' if opening else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{shown}</title>'
        f"<style>{style_sheet()}</style></head>\n"
        f"<body><main><h1>{shown}</h1>{lead}\n"
        + "\n".join(part for part in sections if part)
        + "\n</main></body></html>\n"
    )
