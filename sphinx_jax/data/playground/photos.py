"""The real material of the playground: photographs, textures and handwriting that installed packages carry.

Every piece belongs to exactly one split, so that no photograph, texture, sheet or digit is seen in two of
them. Photographs come with scikit-image and scikit-learn, the digits with scikit-learn (the test half of the
UCI "Optical Recognition of Handwritten Digits"), the typefaces with matplotlib (DejaVu). The files are read
where they lie: importing those packages would cost seconds.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "validation", "test")

WORKING_SIDE = 256
"""Pixels of the shorter side that photographs are reduced to: pictures are cut out at about their size."""


class MissingMaterial(ValueError):
    """A package that the playground is made of is not installed, or lacks a file."""


@dataclass(frozen=True)
class Material:
    """The photographs of one split: backgrounds, textures of things, and sheets of real text."""

    backgrounds: tuple[str, ...]
    textures: tuple[str, ...]
    sheets: tuple[str, ...]


# `motorcycle_right` is the other eye of the stereo pair, as good as the same photograph: it is in no split.
MATERIAL = {
    "train": Material(
        (
            "astronaut.png",
            "coffee.png",
            "motorcycle_left.png",
            "china.jpg",
            "camera.png",
            "coins.png",
            "retina.jpg",
        ),
        ("grass.png", "brick.png"),
        ("page.png",),
    ),
    "validation": Material(("chelsea.png", "moon.png", "clock_motion.png"), ("gravel.png",), ()),
    "test": Material(("flower.jpg", "rocket.jpg", "hubble_deep_field.jpg"), ("ihc.png",), ("text.png",)),
}

# The file lists the digits writer by writer: contiguous blocks keep most writers in one split.
DIGIT_BLOCKS = {"train": (0, 1197), "validation": (1197, 1497), "test": (1497, 1797)}

# Where a photograph has something to show, as shares of its width and height; elsewhere it is black.
_USEFUL = {"retina.jpg": (0.16, 0.16, 0.84, 0.84)}


def package_file(package: str, *parts: str) -> Path:
    """The path of a data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingMaterial(f"the playground needs the package {package!r}: pip install it")
    path = Path(spec.submodule_search_locations[0], *parts)
    if not path.is_file():
        raise MissingMaterial(f"the playground needs {path}, which is missing: reinstall {package!r}")
    return path


@functools.cache
def photograph(name: str) -> np.ndarray:
    """(H, W, 3) uint8, the shorter side `WORKING_SIDE` pixels (less if the file has less)."""
    if name in ("china.jpg", "flower.jpg"):
        path = package_file("sklearn", "datasets", "images", name)
    else:
        path = package_file("skimage", "data", name)
    with Image.open(path) as image:
        image = image.convert("RGB")
    left, top, right, bottom = _USEFUL.get(name, (0, 0, 1, 1))
    image = image.crop(
        tuple(round(v) for v in (left * image.width, top * image.height, right * image.width, bottom * image.height))
    )
    scale = min(1.0, WORKING_SIDE / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


@functools.cache
def texture(name: str) -> np.ndarray:
    """(H, W) float32 luminance of a texture with mean 0 and deviation 1, cut at ±2.5."""
    grey = photograph(name).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = (grey - grey.mean()) / grey.std()
    return np.clip(grey, -2.5, 2.5)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(package_file("sklearn", "datasets", "data", "digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


@functools.cache
def _digit_indices(split: str, digit: int) -> np.ndarray:
    start, stop = DIGIT_BLOCKS[split]
    return start + np.flatnonzero(_digits()[1][start:stop] == digit)


def handwritten(rng: np.random.Generator, split: str, digit: int) -> tuple[Image.Image, str]:
    """A real handwritten digit of a split: its ink (8×8 less blank edges, mode L, 255 is ink) and its id."""
    index = int(rng.choice(_digit_indices(split, digit)))
    ink = _digits()[0][index]
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray((np.minimum(ink, 15) * 17).astype(np.uint8)), f"digit-{index:04d}"


def pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def window(rng: np.random.Generator, name: str, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: a random, perhaps mirrored, part of a photograph, scaled to the size."""
    image = photograph(name)
    largest = min(image.shape[1] / width, image.shape[0] / height)
    scale = largest * rng.uniform(0.6, 1.0)
    w, h = round(width * scale), round(height * scale)
    x, y = int(rng.integers(image.shape[1] - w + 1)), int(rng.integers(image.shape[0] - h + 1))
    part = image[y : y + h, x : x + w]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR))
