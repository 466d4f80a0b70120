"""What a recipe needs of a machine that is not here, for people and for programs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from sphinx_jax.measure.ahead.needs import Need, find_largest, inference_needs, serving_need, train_need, train_stages
from sphinx_jax.measure.ahead.topologies import GIB, Chip, open_topology
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.runner import parse

PODS = ("v5e:16x16", "v6e:8x8", "v5p:4x4x4")
# the mixture of experts needs 31.8 GiB of each chip of v6e:8x8, which has 31.3
TABLE = dict.fromkeys(("sphinx_7b", "sphinx_1k", "sphinx_tiny_1k"), PODS) | {
    "sphinx_moe_1k": ("v5e:16x16", "v6e:8x16", "v5p:4x4x4")
}
SERVE = "serve"  # a token of one answer, where people answer
TRAINING = (
    "# What machines that are not here need",
    "",
    "The steps of the published recipes, compiled for TPU pods and hosts by",
    "`python tools/compile_ahead.py --table docs/ahead.jsonl`, which makes rows anew whose recipe has changed. Sizes",
    "are GiB a device. A time is a roofline, which no step can beat; [Pods](pods.md) says how to read the rest.",
    "",
    "## A step of training",
)
ANSWERS = (
    "## A token of one answer",
    "",
    "Up to 4,096 positions of a cache, all of which a token reads. What it *reads* is weights and cache, once each,",
    "and the time follows from them. What the compiler counts has its copies between a chip's memories too, some of",
    "which are no reading of HBM: where it is far above, a chip may be far from the roofline. A GPU's compiler counts",
    "nothing.",
)
HOSTS = ("v5e:2x4", "v6e:2x4", "v5p:2x2x2", "h100:1", "h100:2", "h100:8")


def report(
    values: dict[str, Any], topology: str, stage: str | None = None, *, largest: bool = True, as_json: bool = False
) -> None:
    """Print what a recipe (its plain data) needs on a topology, step by step as it is found."""
    recipe = parse(values, origins=False)
    names = list(train_stages(recipe, stage))
    devices, chip = open_topology(topology)
    train = []
    for name in names:
        train.append(need := train_need(recipe, name, devices, chip))
        print(text(chip, need), flush=True)
        if largest:
            find_largest(recipe, name, devices, chip, need)
            print(f"  largest that fits: {need.largest} {next(iter(need.rows))} rows a device at a time", flush=True)
    inference = {}
    for need in inference_needs(recipe, devices, chip):
        inference[need.what] = need
        print(text(chip, need), flush=True)
    if as_json:
        print(json.dumps(to_json(chip, train, inference)))


def serving(values: dict[str, Any], topology: str, rows: int, as_json: bool = False) -> None:
    """Print what a token of a recipe's model needs where it answers, its matrices whole and in 8 bits."""
    model = parse(values, origins=False).model
    devices, chip = open_topology(topology)
    needs = []
    for quantize in ("", "int8"):
        needs.append(serving_need(model, devices, chip, rows, quantize))
        print(text(chip, needs[-1]), flush=True)
    if as_json:
        print(json.dumps([_entry(need) for need in needs]))


def fill(path: str | Path, recipe_of: Callable[[str], dict[str, Any]]) -> None:
    """Compile every row of `TABLE` that the file of JSON lines does not have, and draw the table beside it.

    A row of a recipe that has changed since is compiled again.

    Args:
      recipe_of: the name of a recipe in `TABLE` -> its plain data, for `parse`.
    """
    path = Path(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for config, topologies in TABLE.items():
        recipe = parse(recipe_of(config), origins=False)
        wanted = [s for s in train_stages(recipe) if s != "continue_synthetic"]  # the same step as pretrain_real
        for topology, stage in (*itertools.product(topologies, wanted), *((host, SERVE) for host in HOSTS)):
            key = {"config": config, "topology": topology, "stage": stage, "recipe": _digest(recipe, stage)}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows = [r for r in rows if (r["config"], r["topology"], r["stage"]) != (config, topology, stage)]
            print(f"{config} {stage} on {topology}", file=sys.stderr, flush=True)
            devices, chip = open_topology(topology)
            if stage == SERVE:
                needs = {kind: serving_need(recipe.model, devices, chip, 1, kind) for kind in ("", "int8")}
                found = {kind or "whole": _entry(need) for kind, need in needs.items()}
            else:
                found = {"train": _entry(train_need(recipe, stage, devices, chip))}
            rows.append({**key, "hbm_bytes": chip.hbm, **found})
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            path.with_suffix(".md").write_text(draw(rows))
            jax.clear_caches()  # programs of the row before take gigabytes
    path.with_suffix(".md").write_text(draw(rows))


def _digest(recipe: Recipe, stage: str) -> str:
    """Short for what a row depends on: model, mesh and the stage's settings; of answering the model alone.

    What is as it is by default is left out: a setting that is new changes no row that does not use it.
    """
    whole = (recipe.model, recipe.mesh, recipe.settings[stage]) if stage != SERVE else (recipe.model,)
    parts = [_chosen(part) for part in whole]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _chosen(settings: Any) -> Any:
    """The settings that differ from their defaults, by name."""
    if not dataclasses.is_dataclass(settings):
        return settings
    found = {field.name: (getattr(settings, field.name), field.default) for field in dataclasses.fields(settings)}
    return {name: _chosen(value) for name, (value, default) in found.items() if value != default}


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of a table's file as Markdown: steps of training, and tokens of answers."""
    recipes = list(TABLE)
    rows = sorted(rows, key=lambda r: (recipes.index(r["config"]), r["topology"], r["stage"]))
    steps = [
        "| recipe | step | topology | rows a device at a time | parts | parameters | optimizer | peak | of | at best | "
        "MFU at most |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    tokens = [
        "| recipe | decoder's matrices | topology | parameters | cache | temporaries | peak | of | MB a token reads | "
        "MB the compiler counts | MB received | at best |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        room = f"{row['hbm_bytes'] / GIB:.2f}"
        for kind in [k for k in ("train", "whole", "int8") if k in row]:
            e = row[kind]
            fits = room if e["fits"] else f"{room} **does not fit**"
            best = f"{e['roofline_seconds'] * 1e3:,.1f} ms"
            if kind == "train":
                each = ", ".join(f"{n} {name}" for name, n in e["rows"].items())
                parts = ", ".join(str(n) for n in e["parts"].values())
                begin = f"| {row['config']} | {row['stage']} | {row['topology']} | {each} | {parts} | "
                sizes = _gib(e, "parameter_bytes", "optimizer_bytes", "peak_bytes")
                steps.append(f"{begin}{sizes} | {fits} | {best} | {e['mfu_bound']:.0%} |")
            else:
                begin = f"| {row['config']} | {kind} | {row['topology']} | "
                sizes = _gib(e, "parameter_bytes", "cache_bytes", "temporary_bytes", "peak_bytes")
                received = sum(c["bytes"] for c in e["collectives"])
                counted = f"{e['accessed_bytes'] / 1e6:,.0f}" if e["accessed_bytes"] else ""  # a GPU's has none
                moved = f"{e['read_bytes'] / 1e6:,.0f} | {counted} | {received / 1e6:,.1f}"
                tokens.append(f"{begin}{sizes} | {fits} | {moved} | {best} |")
    return "\n".join([*TRAINING, "", *steps, "", *ANSWERS, "", *tokens]) + "\n"


def _gib(entry: dict[str, Any], *names: str) -> str:
    return " | ".join(f"{entry[name] / GIB:.2f}" for name in names)


def to_json(chip: Chip, train: Sequence[Need], inference: dict[str, Need]) -> dict[str, Any]:
    """One object: of several training stages `train` is the one that needs most, `stages` has each."""
    worst = {"train": max(train, key=lambda need: need.peak_bytes)} if train else {}
    every = [*train, *inference.values()]
    return {
        "fits": all(need.fits for need in every),
        "hbm_bytes": int(chip.hbm),
        "peak_bytes": max(need.peak_bytes for need in every),
        "steps": {kind: _entry(need) for kind, need in (worst | inference).items()},
        "stages": {need.what.removeprefix("train "): _entry(need) for need in train},
    }


def _entry(need: Need) -> dict[str, Any]:
    return {
        "fits": need.fits,
        "peak_bytes": need.peak_bytes,
        "parameter_bytes": need.parameter_bytes,
        "optimizer_bytes": need.optimizer_bytes,
        "flops": need.flops,
        "roofline_seconds": need.roofline_seconds,
        "mfu_bound": need.mfu_bound,
        "rows": need.rows,
        "parts": need.parts,
        "largest_rows": need.largest,
        "cache_bytes": need.cache_bytes,
        "temporary_bytes": need.temporary_bytes,
        "read_bytes": need.read_bytes,
        "accessed_bytes": need.accessed_bytes,
        "collectives": [c._asdict() for c in need.collectives],
    }


def text(chip: Chip, need: Need) -> str:
    """A few lines about one step."""
    verdict = "fits" if need.fits else "DOES NOT FIT"
    lines = [
        f"{need.what}: {verdict}, {need.peak_bytes / GIB:.2f} of {chip.hbm / GIB:.2f} GiB a device",
        f"  parameters {need.parameter_bytes / GIB:.2f}, optimizer {need.optimizer_bytes / GIB:.2f}, "
        f"activations and buffers {need.activation_bytes / GIB:.2f} GiB",
        "  "
        + ", ".join(
            f"{rows} {kind} rows a device at a time" + (f" x {need.parts[kind]} parts" if need.parts else "")
            for kind, rows in need.rows.items()
        ),
        f"  {need.flops / 1e12:,.2f} TFLOP of the model a device; at best {need.roofline_seconds * 1e3:,.1f} ms "
        f"(compute {need.compute_seconds * 1e3:,.1f}, memory {need.memory_seconds * 1e3:,.1f}, "
        f"links {need.link_seconds * 1e3:,.1f}), MFU at most {need.mfu_bound:.0%}",
    ]
    if need.cache_bytes:
        lines.append(f"  cache {need.cache_bytes / GIB:.2f} GiB, temporaries {need.temporary_bytes / GIB:.3f}")
    for c in need.collectives[:8]:
        lines.append(f"  {c.count:6,} x {c.kind} over {c.group}: {c.bytes / GIB:,.3f} GiB received")
    return "\n".join(lines)
