"""Logits on this device beside those that the authors' PyTorch code gave on a CPU in float32."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from sphinx_jax.checkpoint.foreign.foreign import open_foreign
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.image import load_image, preprocess
from sphinx_jax.generate.load import place
from sphinx_jax.measure.device.rows import Row, Setting, reason
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.sharding import make_mesh, platform

# float32: largest absolute difference. Others multiply and sum in another order, and in parts of bfloat16 each.
FLOAT32 = {"cpu": 1e-4, "gpu": 2e-3, "tpu": 2e-3}
# bfloat16: root mean square of the differences over that of the logits; a CPU is at 0.016 to 0.018
BFLOAT16 = 0.04
PICTURES = ("img0.png", "img1.png")
ON_A_CPU = (("float32", "llama_ens_light", "img"), ("float32", "llama_gqa", "text"), ("bfloat16", "llama_gqa", "text"))
Case = tuple[str, str, str]  # dtype, record, img | text


def check(setting: Setting, deadline: float) -> Iterator[Row]:
    """A row for every record, with a picture and without, in float32 (products in full precision) and bfloat16.

    What there is no time left for before `deadline` is left out.
    """
    todo, longest = cases(Path(setting.records)), 0.0
    for dtype, record, kind in todo:
        what = f"{dtype} logits of {record}, {'with' if kind == 'img' else 'without'} a picture"
        if time.time() + longest > deadline:
            yield Row(what, "left out: no time left")
            continue
        begun = time.time()
        try:
            yield compare(Path(setting.records), record, kind, dtype, what)
        except (RuntimeError, NotImplementedError) as error:  # of one program; others may do
            yield Row(what, reason(error), ok=False)
        longest = max(longest, time.time() - begun)


def cases(records: Path) -> list[Case]:
    """What is compared: models that see first, all of it in float32 before bfloat16; on a CPU a few.

    Raises BadCheckpoint where there is no record.
    """
    found = []
    for file in sorted(records.glob("*/expected.npz")):
        with np.load(file) as expected:
            found += [(file.parent.name, kind) for kind in ("img", "text") if f"{kind}_logits_full" in expected]
    if not found:
        raise BadCheckpoint(f"{records} holds no record: no folder in it has an expected.npz with logits")
    found.sort(key=lambda pair: pair[1])
    every = [(dtype, *pair) for dtype in ("float32", "bfloat16") for pair in found]
    return [case for case in every if case in ON_A_CPU] if platform() == "cpu" else every


def compare(records: Path, record: str, kind: str, dtype: str, what: str) -> Row:
    """How far the logits of one record are from ours."""
    found = open_foreign([records / record / "ckpt"])
    config = dataclasses.replace(found.config, dtype=dtype)
    with np.load(records / record / "expected.npz") as expected:
        tokens, theirs = expected["examples"], expected[f"{kind}_logits_full"]
    pixels = pictures(records / "images", config.views.image_size) if kind == "img" else None
    leaves = place(found, make_mesh(devices=jax.devices()[:1]))
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        ours = np.asarray(_logits(config, leaves, tokens, pixels))
    return judge(what, ours, theirs, dtype, bool(config.decoder.moe))


def judge(what: str, ours: np.ndarray, theirs: np.ndarray, dtype: str, experts: bool) -> Row:
    """The row of logits (B, T, V) beside those on record.

    In bfloat16 rounding sends a few positions to other experts, so of a mixture the middle position counts.
    """
    apart = np.abs(ours.astype(np.float64) - theirs)
    largest = float(apart.max())
    if dtype == "float32":
        measured, bound, how = largest, FLOAT32[platform()], "at most"
    else:
        of_position = np.square(apart).mean(-1)
        middle = np.median(of_position) if experts else of_position.mean()
        measured, bound = float(np.sqrt(middle / np.square(theirs.astype(np.float64)).mean())), BFLOAT16
        how = (
            f"largest difference {largest:.2f}, {'middle position' if experts else 'root mean square'} over that of all"
        )
    ok = measured <= bound  # a NaN is not
    result = f"{how} {measured:.1e}, bound {bound:.0e}"
    return Row(
        what, result if ok else f"**{result}**", ok, None, {"apart": measured, "bound": bound, "largest": largest}
    )


def pictures(folder: Path, size: int) -> np.ndarray:
    """Pixels (B, S, S, 3) float32, CLIP-normalised, of the pictures that the records were made with."""
    ready = folder / f"pre_{size}.npz"
    if ready.exists():
        return np.load(ready)["image"].transpose(0, 2, 3, 1)
    return np.stack([preprocess(load_image(folder / name), size) for name in PICTURES])


@functools.partial(jax.jit, static_argnames="config")
def _logits(config: ModelConfig, leaves: Leaves, tokens: jax.Array, pixels: jax.Array | None) -> jax.Array:
    return blueprint(config).bind(leaves).logits(tokens, pixels)
