"""What a page shows of a preparation: counts of sizes, shapes, lengths and scores, of what was kept and of the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.data.prepare.choose import KEPT
from sphinx_jax.data.prepare.look import read_looks

EDGES: dict[str, tuple[float, ...]] = {
    "shorter side, pixels": (0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 1e9),
    "longer side by shorter": (1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 1e9),
    "words": (0, 1, 2, 3, 5, 8, 12, 20, 40, 100, 1000, 1e9),
}
TOLD = "told.json"  # beside the manifest
SCORES = 6  # at most
OF_FILE = 200  # items of each file whose scores are drawn
NOT_SCORES = (
    *("width", "height", "original_width", "original_height", "status", "key", "id", "image_id", "license", "hash"),
    *("coco_id", "flickr_id", "timestamp", "uid", "error_message", "sha256"),
)


def histograms(sidecars: Sequence[Path], codes: Sequence[np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Name -> the edges of its bars and how many items lie in each: `edges`, `kept`, `dropped`.

    Scores that the files carry are those of the first items of each file.
    """
    counts = {name: np.zeros((2, len(edges) - 1), np.int64) for name, edges in EDGES.items()}
    scores: dict[str, list[tuple[float, bool]]] = {}
    for sidecar, own in zip(sidecars, codes, strict=True):
        begin = 0
        for batch in read_looks(sidecar, ["picture", "width", "height", "words", "carried"]):
            count = len(batch["words"])
            kept = own[begin : begin + count] == KEPT
            width, height, words = (batch[name].to_numpy() for name in ("width", "height", "words"))
            seen = width > 0
            shorter, longer = np.minimum(width, height), np.maximum(width, height)
            values = (shorter[seen], longer[seen] / np.maximum(shorter[seen], 1), words[words > 0])
            where = (kept[seen], kept[seen], kept[words > 0])
            for (name, edges), value, is_kept in zip(EDGES.items(), values, where, strict=True):
                counts[name] += [np.histogram(value[part], edges)[0] for part in (is_kept, ~is_kept)]
            if not begin:
                for text, is_kept in zip(batch["carried"][:OF_FILE].to_pylist(), kept, strict=False):
                    for name, value in json.loads(text).items():
                        if isinstance(value, float) and name.lower() not in NOT_SCORES and np.isfinite(value):
                            scores.setdefault(name, []).append((value, bool(is_kept)))
            begin += count
    found: dict[str, Any] = {}
    for name, (kept, dropped) in counts.items():
        if kept.any() or dropped.any():
            found[name] = {"edges": list(EDGES[name]), "kept": kept.tolist(), "dropped": dropped.tolist()}
    for name, pairs in sorted(scores.items(), key=lambda one: -len(one[1]))[:SCORES]:
        value, is_kept = np.array([v for v, _ in pairs]), np.array([k for _, k in pairs])
        try:
            edges = np.histogram_bin_edges(value, 20)
        except ValueError:  # numbers so large that they lie between no two edges
            continue
        kept, dropped = (np.histogram(value[part], edges)[0].tolist() for part in (is_kept, ~is_kept))
        found[name] = {"edges": edges.tolist(), "kept": kept, "dropped": dropped}
    return found
