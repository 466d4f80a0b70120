"""Pictures by what is on them: looked at once, however many questions there are about one."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.data.image import PAD_COLOUR, ImageSource, load_image, padded_resize
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching import programs
from sphinx_jax.model.blueprint import FROZEN, Leaves, make_encode, matches
from sphinx_jax.model.embedding_mix import Features, feature_shapes

TOGETHER = (1, 4, 16)  # pictures that are encoded at once
KEPT = 64  # pictures that are remembered
EDGE = 2  # pixels that a resize spreads what is beside a crop over
NOISE = 8  # of 255: what a JPEG file makes of one colour


Detail = Literal["low", "auto", "high"]


class Picture(NamedTuple):
    """A picture as it is given to the model, and its name: the hash of its pixels as the encoders get them.

    Those of one name are taken for one picture; one without ("") is given its own where it is asked about, which does
    not change where the caller's pixels do.
    `features` of one that was encoded before, each without the axis of the batch.  `views`: those that are read.
    """

    name: str
    pixels: np.ndarray | None = None  # (S, S, 3) uint8
    features: Features | None = None
    views: tuple[int, ...] | None = None  # None: all
    full: bool = False  # known to have no empty one

    @classmethod
    def encoded(cls, name: str, row: Mapping[str, Any], pixels: np.ndarray | None = None) -> Picture:
        """One that a cache of features has this row of."""
        seen: dict[str, Any] = {field: row.get(field) for field in Features._fields}
        return cls(name, pixels, Features(**seen))

    @property
    def as_read(self) -> str:
        """The name of what the decoder reads of it."""
        return self.name if self.views is None else f"{self.name} {self.views}"


class Seen(NamedTuple):
    """What the decoder reads of a picture."""

    visual: jax.Array  # (W, D)
    ids: list[int]  # of the positions of it that are read, as `SphinxModel.extend` has them
    turned: np.ndarray  # (len(ids),) int32, where they stand among all, BOS at 0
    left_out: int  # positions that are not read, and count


class Pictures:
    """What the decoder reads of pictures; those used last are kept.

    Args:
      kept: of how many pictures.
    """

    def __init__(self, config: ModelConfig, leaves: Leaves, kept: int = KEPT):
        self.config, self.leaves, self.kept = config, leaves, kept
        self._encoders = {path: leaf for path, leaf in leaves.items() if matches(path, FROZEN)}
        views = range(config.views.views) if config.views else ()
        self._widths = [config.positions_of_view(view) for view in views]
        self._encode = make_encode(config) if config.has_vision else None
        self._seen: OrderedDict[str, tuple[jax.Array, np.ndarray]] = OrderedDict()  # (W, D), and (W,) bool: read

    def picture(self, image: ImageSource) -> Picture:
        """Raises BadImage for what is none."""
        return self.named(Picture("", padded_resize(load_image(image), need(self.config.views).image_size)))

    def named(self, picture: Picture) -> Picture:
        """The same with a name: where it has none, of its pixels; without pixels one that no other has.

        Raises:
          BadArgument: it shows nothing, or what this model cannot look at.
        """
        pixels = picture.pixels
        if pixels is None and picture.features is None:
            raise BadArgument(
                "a Picture must have pixels or features; sphinx_jax takes paths, bytes and PIL images too"
            )
        if pixels is not None:
            size = need(self.config.views).image_size
            if not isinstance(pixels, np.ndarray) or pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
                raise BadArgument(f"pixels of a Picture must be {(size, size, 3)} uint8, not {_form(pixels)}")
            if pixels.flags.writeable or not pixels.flags.owndata:  # others may write there before it is looked at
                pixels = np.array(pixels)
                pixels.setflags(write=False)
                picture = picture._replace(pixels=pixels)
        if picture.features is not None:
            self._check_features(picture.features)
        if picture.name:
            return picture
        if pixels is None:
            return picture._replace(name=uuid.uuid4().hex)
        return picture._replace(name=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest())

    def _check_features(self, features: Any) -> None:
        if not isinstance(features, Features):
            raise BadArgument(f"features of a Picture must be Features, not {type(features).__name__}")
        for field, shape in feature_shapes(self.config).items():
            if getattr(given := getattr(features, field), "shape", None) != shape:
                wanted = "none" if shape is None else str(shape)
                raise BadArgument(f"features.{field} of a Picture must be {wanted} in this model, not {_form(given)}")

    def in_detail(self, picture: Picture, detail: Detail) -> Picture:
        """A picture of which those views alone are read that `detail` says; of few, as few as were said before.

        Raises:
          BadArgument: "auto" of one without pixels.
        """
        views = need(self.config.views)
        if detail == "high" or picture.views is not None or not views.crops:
            return picture
        if detail == "low":
            return picture._replace(views=(0,))
        if picture.full:
            return picture
        if picture.pixels is None:
            raise BadArgument(
                'detail "auto" looks at pixels, and the Picture has none; give it pixels=, or another detail'
            )
        pixels = picture.pixels
        kept = set(holding(pixels, views.crops))
        if views.skip_padded:  # one position, which the model was trained to see
            kept.update(padded(pixels, views.crops))
        if len(kept) == views.crops**2:
            return picture._replace(full=True)
        return picture._replace(views=(0, *(1 + crop for crop in sorted(kept))))

    def features(self, pixels: np.ndarray) -> Features:
        """(B, S, S, 3) uint8 -> what the encoders see."""
        return need(self._encode)(self._encoders, pixels)

    def warm_up(self) -> jax.Array:
        """Compile what looks at pictures; what the decoder reads of a black one."""
        views = need(self.config.views)
        size = views.image_size
        if not views.skip_padded:
            for count in TOGETHER:
                black = np.zeros((count, size, size, 3), np.uint8)
                visual, _ = programs.see(self.config, self.leaves, self.features(black))
            return visual[0]
        # as many programs as crops may be padding alone
        picture = np.full((1, size, size, 3), PAD_COLOUR, np.uint8)
        side = size // views.crops
        for row, column in itertools.product(range(views.crops), repeat=2):
            visual, _ = programs.see(self.config, self.leaves, self.features(picture))
            picture[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = 0
        programs.see(self.config, self.leaves, self.features(picture))
        return visual[0]

    def see(self, pictures: Sequence[Picture]) -> list[Seen]:
        """What the decoder reads of these, looking at once at those that it has not seen."""
        if not pictures:
            return []
        found = {p.name: self._seen[p.name] for p in pictures if p.name in self._seen}
        new = list({p.name: p for p in pictures if p.name not in found}.values())
        for part in _parts(new, need(self.config.views).skip_padded):
            visual, kept = programs.see(self.config, self.leaves, self._features_of(part))
            for picture, positions, read in zip(part, visual, np.asarray(kept), strict=True):
                found[picture.name] = positions, read
        for name, seen in found.items():
            self._seen[name] = seen
            self._seen.move_to_end(name)
        while len(self._seen) > self.kept:
            self._seen.popitem(last=False)
        return [self._read(*found[p.name], p.views) for p in pictures]

    def _read(self, visual: jax.Array, read: np.ndarray, views: tuple[int, ...] | None) -> Seen:
        """What is read of positions (W, D), of which (W,) bool count, if it is some views."""
        of_view = np.repeat(np.arange(len(self._widths)), self._widths)
        chosen = np.flatnonzero(read if views is None else read & np.isin(of_view, views))
        turned = np.cumsum(read, dtype=np.int32)[chosen]
        return Seen(visual, (-1 - chosen).tolist(), turned, int(read.sum()) - len(chosen))

    def _features_of(self, pictures: Sequence[Picture]) -> Features:
        if pictures[0].features is None:
            return self.features(np.stack([need(p.pixels) for p in pictures]))
        rows = (need(p.features) for p in pictures)  # perhaps float16, from a file
        return jax.tree.map(lambda *rows: np.stack(rows).astype(np.float32), *rows)


def holding(pixels: np.ndarray, crops: int) -> list[int]:
    """(S, S, 3) uint8 -> the numbers of its crops × crops, row by row, in which there is more than one colour."""
    return [number for number, crop in enumerate(_cut(pixels, crops)) if (np.ptp(crop, axis=(0, 1)) > NOISE).any()]


def padded(pixels: np.ndarray, crops: int) -> list[int]:
    """Those in which there is nothing but padding, but for an edge that a resize spreads the picture over."""
    return [n for n, crop in enumerate(_cut(pixels, crops)) if (crop[EDGE:-EDGE, EDGE:-EDGE] == PAD_COLOUR).all()]


def _form(given: Any) -> str:
    return f"{given.shape} {given.dtype}" if hasattr(given, "dtype") else type(given).__name__


def _cut(pixels: np.ndarray, crops: int) -> Iterator[np.ndarray]:
    edges = np.arange(crops + 1) * len(pixels) // crops
    for row, column in itertools.product(range(crops), repeat=2):
        yield pixels[edges[row] : edges[row + 1], edges[column] : edges[column + 1]]


def _parts(pictures: Sequence[Picture], singly: bool) -> Iterator[list[Picture]]:
    """In few sizes. Where views are skipped, how many are left differs by picture: `singly`."""
    for _, alike in itertools.groupby(sorted(pictures, key=_encoded), key=_encoded):
        rest = list(alike)
        while rest:
            size = next(size for size in reversed(TOGETHER) if size <= len(rest) and (size == 1 or not singly))
            yield rest[:size]
            rest = rest[size:]


def _encoded(picture: Picture) -> bool:
    return picture.features is not None
