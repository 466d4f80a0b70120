"""Pages and the parts they are laid out in, in COCO's form: PubLayNet (Zhong et al. 2019), DocLayNet (Pfitzmann 2022).

A file is held whole while it is read. The kinds of parts are the file's categories in lower case: five in PubLayNet,
eleven in DocLayNet. Parts are listed from the top, then from the left, whatever the file's order. From memory: the
folder of PubLayNet's pictures, `train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.annotated import by_row, corners
from sphinx_jax.data.formats.coco import annotated, by_picture, categories, load
from sphinx_jax.data.formats.found import Dropped, Format, Found, Reader, Source
from sphinx_jax.data.tasks import LayoutRegion


def _layout(what: str, *usual: str) -> Reader:
    def read(source: Source) -> Iterator[Found | Dropped]:
        held = load(source.file, "bbox", what)
        names = categories(held, source.file, what)

        def one(image: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Found:
            picture = annotated(image, path)
            boxes = [
                (picture.box(*corners(row["bbox"])), names[row["category_id"]].lower())
                for row in rows
                if not row.get("iscrowd")
            ]
            parts = [LayoutRegion(kind, box) for box, kind in boxes if box]
            picture.ask("layout", sorted(parts, key=lambda part: by_row(part.box)))
            return picture.found(image["id"], image)

        yield from by_picture(source, held, one, *usual)

    return read


PUBLAYNET = Format("PubLayNet", "train.json", _layout("PubLayNet"))
DOCLAYNET = Format("DocLayNet", "COCO/train.json", _layout("DocLayNet", "PNG"))
