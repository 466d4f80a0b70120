"""Flickr30k Entities (Plummer et al. 2015): captions whose phrases have boxes.

A folder with `train.txt` (a picture's number a line), `Sentences/*.txt` (five captions, phrases as
`[/EN#id/type words]`) and `Annotations/*.xml` (boxes by those ids, of pixels counted from 1, the last one included).
Phrases without a box, such as scenes, are plain text; a caption without any box is left out. Captions are cut into
words: blanks before punctuation marks are taken out. From memory: the name of the folder of pictures,
`flickr30k-images`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from sphinx_jax.data.formats.annotated import Annotated, folder, gathered, words
from sphinx_jax.data.formats.files import BadData, read_text
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source
from sphinx_jax.data.tasks import Box, ground

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s/\]]+)+ ([^\]]*)\]")
_APART = re.compile(r" ([.,;:!?]|'s\b|n't\b)")


def _read(source: Source) -> Iterator[Found | Dropped]:
    lacking = [name for name in ("train.txt", "Sentences", "Annotations") if not (source.file / name).exists()]
    if lacking:
        raise BadData(f"{source.file} has no {lacking[0]}; expected the folder of Flickr30k Entities")
    place = folder(source, "flickr30k-images", "flickr30k_images", "images")
    for number in read_text(source.file / "train.txt").split():
        yield gathered(number, _one, number, source.file, place)


def _one(number: str, release: Path, place: Path) -> Found:
    path = place / f"{number}.jpg"
    try:
        root = ElementTree.fromstring(read_text(release / "Annotations" / f"{number}.xml"))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    picture = Annotated(path, (root.findtext("size/width"), root.findtext("size/height")))
    boxes = _boxes(picture, root)
    for line in read_text(release / "Sentences" / f"{number}.txt").splitlines():
        caption = _grounded(line, boxes)
        if "<p>" in caption:
            picture.ask("grounded_caption", caption)
    return picture.found(number, {"width": picture.square.width, "height": picture.square.height})


def _boxes(picture: Annotated, root: ElementTree.Element) -> dict[str, list[Box]]:
    """By the ids of what they show; one box may show several."""
    found: dict[str, list[Box]] = {}
    for thing in root.iter("object"):
        for corners in thing.iter("bndbox"):
            x1, y1, x2, y2 = (float(corners.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))
            if box := picture.box(x1 - 1, y1 - 1, x2, y2):
                for name in thing.iter("name"):
                    found.setdefault(words(name.text), []).append(box)
    return found


def _grounded(line: str, boxes: dict[str, list[Box]]) -> str:
    def phrase(match: re.Match[str]) -> str:
        own = boxes.get(match[1])
        return ground(match[2], own) if own else match[2]

    return _APART.sub(r"\1", words(_PHRASE.sub(phrase, line)))


FLICKR_ENTITIES = Format("Flickr30k Entities", "the folder with Sentences, Annotations and train.txt", _read)
