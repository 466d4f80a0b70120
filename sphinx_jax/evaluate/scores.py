"""Scored answers -> the table of scores: by task, by kind of question and by domain, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.evaluate.metrics import KIND_METRICS, METRICS

ANSWERERS = ("prediction", "majority", "blind")


def tabulate(rows: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> dict[str, Any]:
    """Scores by task, by kind of VQA question, and by domain: the `tasks` of `scores.json`."""
    tasks = [t for t in METRICS if any(r["task"] == t for r in rows)]
    found = {t: _entry([r for r in rows if r["task"] == t], domains, METRICS[t].name) for t in tasks}
    kinds = {}
    for kind in sorted({r["kind"] for r in rows if r["task"] == "vqa" and r["kind"]}):
        chosen = [r for r in rows if r["task"] == "vqa" and r["kind"] == kind]
        kinds[kind] = _entry(chosen, domains, METRICS["vqa"].name)
        if fn := KIND_METRICS.get(kind):
            again = [r | {"score": {k: fn(r[k], r["answer"]) for k in ANSWERERS}} for r in chosen]
            kinds[f"{kind}, {fn.__name__}"] = _entry(again, domains, fn.__name__)
    return {"tasks": found, "vqa_kinds": kinds}


def _entry(chosen: Sequence[Mapping[str, Any]], domains: Sequence[str], metric: str) -> dict[str, Any]:
    return _cell(chosen, metric) | {d: _cell([r for r in chosen if r["domain"] == d], metric) for d in domains}


def _cell(chosen: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    if not chosen:
        return None
    value, majority, blind = (float(np.mean([r["score"][k] for r in chosen])) for k in ANSWERERS)
    return {
        "metric": metric,
        "value": value,
        "baseline_majority": majority,
        "baseline_blind": blind,
        "count": len(chosen),
    }
