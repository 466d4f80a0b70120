"""A picture in the making: backgrounds, paint with light and shadow, and the finished file.

`real` is photographic: parts of photographs behind, real texture on things, soft shadows, grain, JPEG.
`synthetic` is drawn: plain, graded or patterned backgrounds, flat paint, PNG.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from sphinx_jax.data.playground import photos
from sphinx_jax.data.tasks import Box

SHORTEST, LONGEST = 128, 192
"""Pixels of a side of a picture."""


@dataclass
class Canvas:
    """Pixels (H, W, 3) float32 in 0–255, where the light comes from, and the sources used so far."""

    pixels: np.ndarray
    domain: str
    split: str
    rng: np.random.Generator
    light: float = 0.0  # radians, the direction in which light falls
    sources: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def real(self) -> bool:
        return self.domain == "real"

    @property
    def side(self) -> int:
        return max(self.width, self.height)

    def use(self, source: str) -> str:
        if source not in self.sources:
            self.sources.append(source)
        return source


def new_canvas(rng: np.random.Generator, domain: str, split: str, *, paper: bool = False) -> Canvas:
    """An empty picture of random size (128–192 a side, width to height 0.75–1.33); `paper`: a blank sheet."""
    longer = int(rng.integers(150, LONGEST + 1))
    shorter = max(SHORTEST, round(longer * rng.uniform(0.75, 1.0)))
    width, height = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    canvas = Canvas(np.zeros((height, width, 3), np.float32), domain, split, rng, light=rng.uniform(0.25, 1.3))
    if paper:
        canvas.pixels += _paper_tone(canvas)
    elif canvas.real:
        canvas.pixels[:] = _photograph(canvas)
    else:
        canvas.pixels[:] = _drawn(rng, width, height)
    return canvas


def _paper_tone(canvas: Canvas) -> np.ndarray:
    return np.array((238, 234, 224), np.float32) if canvas.real else np.array((250, 250, 250), np.float32)


def _photograph(canvas: Canvas) -> np.ndarray:
    """A photograph out of focus, its tones drawn together so that every colour of things stands out."""
    rng = canvas.rng
    name = canvas.use(photos.pick(rng, photos.MATERIAL[canvas.split].backgrounds))
    part = Image.fromarray(photos.window(rng, name, canvas.width, canvas.height))
    part = np.asarray(part.filter(ImageFilter.BoxBlur(rng.uniform(0.8, 2.0))), np.float32)
    grey = part.mean(axis=2, keepdims=True)
    spread = max(float(grey.std()), 12.0)
    toned = grey + 0.7 * (part - grey)
    return rng.uniform(112, 142) + (toned - grey.mean()) * min(1.2, rng.uniform(24, 34) / spread)


def _drawn(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A plain, graded, striped, chequered or dotted ground in pale tones of middle brightness."""
    tone = _pale(rng)
    kind = rng.integers(5)
    if kind == 0:
        return np.broadcast_to(tone, (height, width, 3))
    other = tone * rng.uniform(0.82, 0.93) if kind > 1 else _pale(rng)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    angle, period = rng.uniform(0, np.pi), rng.uniform(14, 30)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if kind == 1:
        share = (along - along.min()) / np.ptp(along)
    elif kind == 2:
        share = _edge(np.sin(along * 2 * np.pi / period))
    elif kind == 3:
        share = _edge(np.sin(along * 2 * np.pi / period) * np.sin(across * 2 * np.pi / period))
    else:
        share = _edge(np.cos(along * 2 * np.pi / period) + np.cos(across * 2 * np.pi / period) - 1.2)
    return tone + share[..., None] * (other - tone)


def _edge(wave: np.ndarray) -> np.ndarray:
    return np.clip(wave * 4 + 0.5, 0, 1)


def _pale(rng: np.random.Generator) -> np.ndarray:
    """A tone near grey, 110 to 190 bright: away from white, black and every clear colour."""
    return (rng.uniform(118, 182) + rng.uniform(-14, 14, 3)).astype(np.float32)


def grain_of(canvas: Canvas, height: int, width: int) -> np.ndarray:
    """(height, width) float32: a part of one of the split's real textures, mean 0, deviation about 1."""
    rng = canvas.rng
    name = canvas.use(photos.pick(rng, photos.MATERIAL[canvas.split].textures))
    whole = photos.texture(name)
    y, x = int(rng.integers(whole.shape[0] - height)), int(rng.integers(whole.shape[1] - width))
    return whole[y : y + height, x : x + width]


def paint(
    canvas: Canvas,
    mask: np.ndarray,
    left: int,
    top: int,
    colour: tuple[int, int, int],
    *,
    shadow: bool = True,
) -> Box:
    """Lays a coverage (h, w) uint8 in a colour onto the canvas and returns its box in pixels.

    Real: the paint carries a real texture and the light, and throws a soft shadow. Synthetic: flat.
    """
    height, width = mask.shape
    cover = mask.astype(np.float32)[..., None] / 255
    paint_pixels = np.empty((height, width, 3), np.float32)
    paint_pixels[:] = colour
    if canvas.real:
        if shadow:
            drop_shadow(canvas, mask, left, top)
        rough = grain_of(canvas, height, width)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        fall = (x / max(width, 1) - 0.5) * np.cos(canvas.light) + (y / max(height, 1) - 0.5) * np.sin(canvas.light)
        paint_pixels *= (1 + 0.11 * rough - 0.16 * fall)[..., None]
        paint_pixels += 5 * rough[..., None]
    area = canvas.pixels[top : top + height, left : left + width]
    area += cover * (np.clip(paint_pixels, 0, 255) - area)
    return Box(left, top, left + width, top + height)


def drop_shadow(canvas: Canvas, mask: np.ndarray, left: int, top: int) -> None:
    """Darkens the ground beside a coverage, away from the light."""
    reach = 8
    blurred = Image.new("L", (mask.shape[1] + 2 * reach, mask.shape[0] + 2 * reach))
    blurred.paste(Image.fromarray(mask), (reach, reach))
    dark = np.asarray(blurred.filter(ImageFilter.BoxBlur(3)), np.float32) / 255
    x = left - reach + round(4 * np.cos(canvas.light))
    y = top - reach + round(4 * np.sin(canvas.light))
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + dark.shape[1], canvas.width), min(y + dark.shape[0], canvas.height)
    if x1 < x2 and y1 < y2:
        canvas.pixels[y1:y2, x1:x2] *= 1 - 0.5 * dark[y1 - y : y2 - y, x1 - x : x2 - x, None]


def finish(canvas: Canvas) -> np.ndarray:
    """(H, W, 3) uint8. Real pictures get the fall of light and the grain that a camera gives them."""
    pixels = canvas.pixels
    if canvas.real:
        rng = canvas.rng
        x = np.linspace(-0.5, 0.5, canvas.width, dtype=np.float32)
        y = np.linspace(-0.5, 0.5, canvas.height, dtype=np.float32)[:, None]
        light = 1.02 - 0.16 * (x * np.cos(canvas.light) + y * np.sin(canvas.light)) - 0.2 * (x**2 + y**2)
        noise = 3.0 * rng.standard_normal(pixels.shape[:2], dtype=np.float32)
        pixels = pixels * light[..., None] + noise[..., None]
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, domain: str) -> bytes:
    """JPEG (quality 92, full colour resolution) of a real picture, PNG of a drawn one."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if domain == "real":
        image.save(buffer, "JPEG", quality=92, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
