"""RefCOCO, RefCOCO+ (Yu et al. 2016), RefCOCOg (Mao et al. 2016): the refs of split `train`, each phrase both ways.

The pickle, and `instances.json` beside it, are held whole while they are read. Pictures of the validation and test
splits are of COCO's train2014 too: other data sets of those pictures show them in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.annotated import (
    UNLISTED,
    Unusable,
    corners,
    folder,
    gathered,
    grouped,
    indexed,
    picture_in,
    words,
)
from sphinx_jax.data.formats.coco import annotated, load
from sphinx_jax.data.formats.files import BadData, read_pickle
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source


def _read(source: Source) -> Iterator[Found | Dropped]:
    refs = read_pickle(source.file)
    if not isinstance(refs, list) or not refs or not all(isinstance(ref, dict) for ref in refs):
        raise BadData(f"{source.file} is no list of objects, or an empty one; expected refs of RefCOCO")
    if not {"image_id", "ann_id", "split", "sentences"} <= refs[0].keys():
        raise BadData(
            f"{source.file} has refs without image_id, ann_id, split and sentences; expected those of RefCOCO"
        )
    held = load(source.file.parent / "instances.json", "bbox", "the instances of RefCOCO")
    images = indexed(held["images"], "id")
    annotations = indexed(held["annotations"], "id")
    place = folder(source, "train2014", "images/train2014", "images/mscoco/images/train2014")
    for key, rows in grouped((ref for ref in refs if ref.get("split") == "train"), "image_id").items():
        yield gathered(key, _one, key, rows, images, annotations, place)


def _one(key: Any, refs: list[dict[str, Any]], images: dict, annotations: dict, place: Path) -> Found:
    image = images.get(key)
    if image is None:
        raise Unusable(UNLISTED)
    picture = annotated(image, picture_in(place, image["file_name"]))
    for ref in refs:
        box = picture.box(*corners(annotations[ref["ann_id"]]["bbox"]))
        for sentence in ref["sentences"] if box else ():
            phrase = words(sentence["sent"])
            picture.ask("rec", box, phrase=phrase)
            picture.ask("reg", phrase, box=box)
    return picture.found(key, image)


REFCOCO = Format("RefCOCO, RefCOCO+, RefCOCOg", "refs(unc).p or refs(umd).p, instances.json beside it", _read)
