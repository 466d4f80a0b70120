"""Pictures: files to square, CLIP-normalised arrays.

Everything is PIL and numpy, and for opaque pictures of 8 bits that lie upright equal to the digit to the
pre-processing that SPHINX was trained with, which is torchvision over PIL.
"""

from __future__ import annotations

import base64
import io
import os
import re
from os import PathLike
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sphinx_jax.config import CLIP_MEAN, CLIP_STD
from sphinx_jax.paths import located, shortened

PAD_COLOUR = (122, 116, 104)
"""RGB of the padding: int(255 * CLIP_MEAN), so that it normalises to nearly nothing."""

# torchvision's RandomResizedCrop with the reference's arguments.
_CROP_AREA = (0.9, 1.0)
_CROP_RATIO = (0.75, 1.3333)
_CROP_ATTEMPTS = 10

_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture of each EXIF orientation upright."""

_KEY_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""Pillow unpacks these PNGs to 8 bits, but leaves the value that is transparent as it is in the file."""

ImageSource = str | PathLike[str] | bytes | Image.Image


class BadImage(ValueError):
    """A picture that cannot be used; the message is one line that names it."""


def load_image(source: ImageSource, exif: bool = True) -> Image.Image:
    """Opens a picture and converts it to upright RGB of 8 bits.

    What is transparent shows `PAD_COLOUR`. Grey of 16 bits is scaled from 0..65535. Grey of 32 bits, integer or
    float, is scaled from the smallest of 0..1 (float only), 0..255 and 0..65535 that holds all of its values, from
    0 to its maximum beyond that; with negative values from -1..1 (float only) or from its minimum to its maximum.

    Args:
      source: path of a file, a `data:` URL, the bytes of a file, or a PIL image.
      exif: turn the picture as its EXIF orientation says and every viewer shows it. The reference does not.

    Raises:
      BadImage: missing, truncated, not a picture, with values that are not finite, or too elongated to be padded to
        a square.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the image given", exif)
    if isinstance(source, str) and is_data_url(source):
        source = read_data_url(source)
    if isinstance(source, bytes):
        name, stream = f"an image of {len(source)} bytes", io.BytesIO(source)
    elif isinstance(source, str | PathLike):
        name, stream = f"image {shortened(source)}", io.BytesIO(_read(source))
    else:
        raise BadImage(f"an image must be a path, bytes or a PIL image, not {type(source).__name__}")
    try:
        image = Image.open(stream)
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not a picture in a format that Pillow reads") from None
    except Exception as error:
        raise BadImage(f"{name} is damaged: {_reason(error)}") from None
    return _decode(image, name, exif)


def is_data_url(source: str) -> bool:
    return source[:5].lower() == "data:"


def read_data_url(source: str) -> bytes:
    """The bytes of a picture that is written out as `data:image/png;base64,…`.

    Raises:
      BadImage: of another form.
    """
    head, comma, content = source.partition(",")
    if not comma:
        raise BadImage(f"image {shortened(source, 60)} has no comma, after which the data of a data: URL begins")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(re.sub(rb"\s", b"", unquote_to_bytes(content)), validate=True)
    except ValueError:
        raise BadImage(f"image {shortened(source, 60)} is not base64") from None


def _read(source: str | PathLike[str]) -> bytes:
    if not os.fspath(source):
        raise BadImage("image cannot be read: its path is empty")
    name = f"image {shortened(source)}"
    try:
        path = located(source)
    except ValueError as error:
        raise BadImage(f"image {error}") from None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadImage(f"{name} does not exist; check the path") from None
    except OSError as error:
        raise BadImage(f"{name} cannot be read: {error.strerror or _reason(error)}") from None
    except Exception as error:
        # Clients of object stores raise what they like, and pathlib ValueError for a null byte.
        raise BadImage(f"{name} cannot be read: {_reason(error)}") from None


def _decode(image: Image.Image, name: str, exif: bool) -> Image.Image:
    side, limit = max(image.size), Image.MAX_IMAGE_PIXELS
    if limit is not None and side * side > 2 * limit:
        # Pillow guards against huge pictures, but not against the square around a very long one.
        raise BadImage(f"{name} is {image.width}x{image.height}: too long to be padded to a square; crop it")
    if min(image.size) < 1:
        raise BadImage(f"{name} is empty ({image.width}x{image.height})")
    try:
        scale = _KEY_SCALES.get(str(image.tile[0][3])) if getattr(image, "tile", None) else None
        image.load()
        if scale is not None and "transparency" in image.info:
            image, key = image.copy(), np.multiply(image.info["transparency"], scale).astype(int).tolist()
            image.info["transparency"] = tuple(key) if isinstance(key, list) else key
        turn = _TURNED.get(_orientation(image)) if exif else None
        picture = _opaque(_eight_bits(image) if image.mode[0] in "IF" else image)
        picture = picture if turn is None else picture.transpose(turn)
    except BadImage as error:
        raise BadImage(f"{name} {error}") from None
    except Exception as error:
        # Pillow's decoders raise almost any exception on damaged data (OSError, SyntaxError, struct.error,
        # ...).
        raise BadImage(f"{name} is truncated or damaged: {_reason(error)}") from None
    # No orientation is left that would turn it again.
    picture.info = {}
    return picture


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Damaged EXIF data says nothing about the pixels.
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Modes I;16…, I and F to L, or LA where a value is named transparent."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise BadImage("holds values that are not finite (NaN or infinite)")
    low, high = _range(image, values)
    grey = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    picture = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        picture.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return picture


def _range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """The values that stand for black and for white."""
    low, high, is_float = float(values.min()), float(values.max()), image.mode == "F"
    if image.mode.startswith("I;16"):
        # Pillow unpacks the 12 bits of a TIFF without scaling them.
        twelve = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample) == (12,)
        return 0, 4095 if twelve else 65535
    if image.format == "PPM" and not is_float:
        # Pillow scales what has more than 8 bits to 16.
        return 0, 65535
    if low < 0:
        return (-1, 1) if is_float and max(-low, high) <= 1 else (low, high if high > low else 0)
    return 0, next((top for top in ((1,) if is_float else ()) + (255, 65535) if high <= top), high)


def _opaque(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows `PAD_COLOUR`."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    picture = Image.new("RGB", image.size, PAD_COLOUR)
    picture.paste(image, mask=image.getchannel("A"))
    return picture


def _reason(error: Exception) -> str:
    return shortened((str(error) or type(error).__name__).splitlines()[0], 100)


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


def preprocess(image: Image.Image, size: int) -> np.ndarray:
    """An RGB picture, from `load_image`, as the reference's encoders take it: (S, S, 3) float32, CLIP-normalised."""
    # on the host, in this order: any other rounds differently from torchvision's ToTensor and Normalize
    values = padded_resize(image, size).astype(np.float32)
    values /= np.float32(255)
    values -= np.float32(CLIP_MEAN)
    values /= np.float32(CLIP_STD)
    return values


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"the image size must be at least 1 pixel, not {size}")
