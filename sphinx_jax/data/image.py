"""Pictures: files to square, CLIP-normalised arrays.

Everything is PIL and numpy, and equal to the digit to the pre-processing that SPHINX was trained with, which
is torchvision over PIL.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sphinx_jax.config import CLIP_MEAN, CLIP_STD
from sphinx_jax.paths import located

PAD_COLOUR = (122, 116, 104)
"""RGB of the padding: int(255 * CLIP_MEAN), so that it normalises to nearly nothing."""

# torchvision's RandomResizedCrop with the reference's arguments.
_CROP_AREA = (0.9, 1.0)
_CROP_RATIO = (0.75, 1.3333)
_CROP_ATTEMPTS = 10

ImageSource = str | PathLike[str] | bytes | Image.Image


class BadImage(ValueError):
    """A picture that cannot be used; the message is one line that names it."""


def load_image(source: ImageSource) -> Image.Image:
    """Opens a picture and converts it to RGB.

    As in the reference, EXIF orientation is not applied and transparency is dropped.

    Args:
      source: path of a file, the bytes of one, or a PIL image.

    Raises:
      BadImage: missing, truncated, not a picture, or too elongated to be padded to a square.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the image given")
    if isinstance(source, bytes):
        name, stream = f"an image of {len(source)} bytes", io.BytesIO(source)
    elif isinstance(source, str | PathLike):
        path = located(source)
        name = f"image {path}"
        try:
            stream = io.BytesIO(path.read_bytes())
        except FileNotFoundError:
            raise BadImage(f"{name} does not exist; check the path and the data set's root") from None
        except (OSError, ValueError) as error:
            raise BadImage(f"{name} cannot be read: {_reason(error)}") from None
    else:
        raise BadImage(f"an image must be a path, bytes or a PIL image, not {type(source).__name__}")
    try:
        image = Image.open(stream)
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not a picture in a format that Pillow reads") from None
    except Exception as error:
        raise BadImage(f"{name} is damaged: {_reason(error)}") from None
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    side, limit = max(image.size), Image.MAX_IMAGE_PIXELS
    if limit is not None and side * side > 2 * limit:
        # Pillow guards against huge pictures, but not against the square around a very long one.
        raise BadImage(f"{name} is {image.width}x{image.height}: too long to be padded to a square; crop it")
    if min(image.size) < 1:
        raise BadImage(f"{name} is empty ({image.width}x{image.height})")
    try:
        return image.convert("RGB")
    except Exception as error:
        # Pillow's decoders raise almost any exception on damaged data (OSError, SyntaxError, struct.error,
        # ...).
        raise BadImage(f"{name} is truncated or damaged: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def padded_resize(image: Image.Image, size: int) -> np.ndarray:
    """Pads a picture to a square around its centre and resizes it.

    Coordinates in conversations are relative to this square. Pads with `PAD_COLOUR` at (long - short) // 2,
    then resizes with Pillow's antialiased bicubic filter.

    Args:
      image: RGB.
      size: side S of the result in pixels.

    Returns:
      (S, S, 3) uint8.
    """
    _check_size(size)
    width, height = image.size
    side = max(width, height)
    if width != height:
        square = Image.new("RGB", (side, side), PAD_COLOUR)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def resized_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts out the central square.

    Returns:
      (S, S, 3) uint8.
    """
    _check_size(size)
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    # round() to even, as torchvision's center_crop.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(resized.crop((left, top, left + size, top + size)))


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts out a random region (0.9-1 of the area, aspect ratio 0.75-1.3333) and resizes it to a square.

    Ten tries, then the largest central region of an allowed ratio: torchvision's rule, with numpy's random
    numbers.

    Returns:
      (S, S, 3) uint8.
    """
    _check_size(size)
    box = _random_box(image.width, image.height, rng)
    return np.array(image.crop(box).resize((size, size), Image.Resampling.BICUBIC))


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    low, high = _CROP_RATIO
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*_CROP_AREA)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, low), high)
    w = max(1, min(width, round(height * ratio)))
    h = max(1, min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def normalise(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 RGB to float32 with CLIP's mean and standard deviation; same shape."""
    if pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,):
        raise ValueError(f"normalise takes (..., 3) uint8 pixels, not {pixels.shape} {pixels.dtype}")
    # In this order, in float32: any other rounds differently from torchvision's ToTensor and Normalize.
    values = pixels.astype(np.float32)
    values /= np.float32(255)
    values -= np.float32(CLIP_MEAN)
    values /= np.float32(CLIP_STD)
    return values


def denormalise(values: np.ndarray) -> np.ndarray:
    """The inverse of `normalise`: (..., 3) float to uint8, rounded, out-of-range values clipped."""
    pixels = (np.asarray(values, np.float32) * np.float32(CLIP_STD) + np.float32(CLIP_MEAN)) * np.float32(255)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


_RESIZERS: dict[str, Callable[..., np.ndarray]] = {
    "padded_resize": padded_resize,
    "resized_center_crop": resized_center_crop,
    "random_resized_crop": random_resized_crop,
}


def preprocess(
    image: Image.Image, size: int, how: str = "padded_resize", rng: np.random.Generator | None = None
) -> np.ndarray:
    """A picture as the model takes it.

    Args:
      image: RGB, from `load_image`.
      size: side S in pixels.
      how: `padded_resize` (the published recipe, and the only one that keeps coordinates valid),
        `resized_center_crop` or `random_resized_crop`.
      rng: needed by `random_resized_crop` only.

    Returns:
      (S, S, 3) float32, CLIP-normalised, channels last.
    """
    if how not in _RESIZERS:
        raise ValueError(f"unknown pre-processing {how!r}; choose one of {', '.join(_RESIZERS)}")
    arguments: dict[str, Any] = {}
    if how == "random_resized_crop":
        if rng is None:
            raise ValueError("random_resized_crop needs rng, a numpy.random.Generator")
        arguments["rng"] = rng
    return normalise(_RESIZERS[how](image, size, **arguments))


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"the image size must be at least 1 pixel, not {size}")
