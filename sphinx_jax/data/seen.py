"""What a picture is known by: its pixels, its look, its number in COCO."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from sphinx_jax.data.image import ImageSource, load_image

ROWS, COLUMNS = 8, 9  # of grey values that the hash compares, each with its neighbour
FLAT = 2  # grey values in which neighbours may differ in a picture of one colour, which is like any other

_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?\.(?:jpe?g|png)$")
_BARE = re.compile(r"COCO_(?:train|val|test)\d{4}_(\d{12})$")


class Seen(NamedTuple):
    """What a picture is known by.

    Attributes:
      content: SHA-256 of its pixels.
      look: 64 bits, of each pair of neighbours in a small grey copy which is lighter; None of a picture of one colour.
    """

    content: str
    look: int | None


def seen(image: ImageSource) -> Seen:
    """Raises BadImage."""
    picture = load_image(image).convert("RGB")
    content = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    grey = np.asarray(picture.convert("L").resize((COLUMNS, ROWS), Image.Resampling.BOX), np.int16)
    lighter = grey[:, 1:] > grey[:, :-1]
    flat = int(np.ptp(grey)) <= FLAT
    return Seen(content, None if flat else int.from_bytes(np.packbits(lighter).tobytes()))


def coco_number(name: str) -> int | None:
    """COCO's number of a picture, by its file's name; train2014, val2014 and train2017 share numbers.

    The name may end in the number of an annotation, or lack its ending where it says whose it is.
    """
    found = _NUMBER.search(name) or _BARE.search(name)
    return int(found[1]) if found else None
