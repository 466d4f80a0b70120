"""Visual Genome (Krishna et al. 2017): phrases of regions, relationships of objects, questions.

The files are lists in JSON, an entry for each picture, and are held whole while they are read. Sizes of pictures, and
which of the folders `VG_100K` and `VG_100K_2` they lie in, come from `image_data.json` beside the file; without it
each picture is looked for and its header read. A phrase that stands for several boxes of a picture is no answerable
question and is left out. From memory: the names of all fields, and that relationships have a `name` in some
versions and `names` in others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sphinx_jax.data.formats.annotated import (
    MISSING,
    Annotated,
    Unusable,
    corners,
    folder,
    gathered,
    indexed,
    words,
)
from sphinx_jax.data.formats.files import BadData, read_json
from sphinx_jax.data.formats.found import Dropped, Format, Found, Reader, Source
from sphinx_jax.data.tasks import Box

FOLDERS = ("VG_100K", "VG_100K_2")


def _reader(key: str, tell: Callable[[Annotated, list[dict[str, Any]]], None]) -> Reader:
    """`key`: of the list that each picture has in the file; `tell`: asks about it."""

    def read(source: Source) -> Iterator[Found | Dropped]:
        entries = read_json(source.file)
        if not isinstance(entries, list) or not entries:
            raise BadData(f"{source.file} is no list, or an empty one; expected Visual Genome's {key}")
        if not (isinstance(entries[0], dict) and key in entries[0]):
            raise BadData(f"{source.file} has no {key!r} for its first picture; expected Visual Genome's {key}")
        listed = _image_data(source.file.parent / "image_data.json")
        places = {name: folder(source, name) for name in FOLDERS}

        def one(number: Any, entry: dict[str, Any]) -> Found:
            record = listed.get(number) or {"image_id": number}
            size = record.get("width"), record.get("height")
            picture = Annotated(_path(int(number), record, places), size)
            tell(picture, entry[key])
            return picture.found(number, record)

        for entry in entries:
            number = entry.get("image_id", entry.get("id")) if isinstance(entry, dict) else "?"
            yield gathered(number, one, number, entry)

    return read


def _image_data(file: Path) -> dict[Any, dict[str, Any]]:
    """What is known of each picture, by its number.  Raises BadData."""
    if not file.exists():
        return {}
    records = read_json(file)
    if not isinstance(records, list):
        raise BadData(f"{file} is not a list; expected Visual Genome's pictures")
    return indexed(records, "image_id")


def _path(number: int, record: dict[str, Any], places: dict[str, Path]) -> Path:
    """In the folder that the picture's address names, if that is known.  Raises Unusable."""
    name = f"{number}.jpg"
    if address := record.get("url"):
        return places.get(PurePosixPath(address).parent.name, places[FOLDERS[0]]) / name
    found = next((place / name for place in places.values() if (place / name).exists()), None)
    if found is None:
        raise Unusable(MISSING)
    return found


def _box(picture: Annotated, thing: dict[str, Any], width: str, height: str) -> Box | None:
    return picture.box(*corners((thing["x"], thing["y"], thing[width], thing[height])))


def _one_box_each(phrases: list[tuple[str, Box]]) -> Iterator[tuple[str, Box]]:
    """The phrases that stand for one box only, however they are written."""
    folded = [phrase.lower().removesuffix(".") for phrase, _ in phrases]
    boxes: dict[str, set[tuple[float, ...]]] = {}
    for name, (_, box) in zip(folded, phrases, strict=True):
        boxes.setdefault(name, set()).add((box.x1, box.y1, box.x2, box.y2))
    return (located for name, located in zip(folded, phrases, strict=True) if len(boxes[name]) == 1)


def _regions(picture: Annotated, rows: list[dict[str, Any]]) -> None:
    located = [(words(row["phrase"]), _box(picture, row, "width", "height")) for row in rows]
    phrases = [(phrase, box) for phrase, box in located if box]
    for phrase, box in _one_box_each(phrases):
        picture.ask("rec", box, phrase=phrase)
    for phrase, box in phrases:
        picture.ask("reg", phrase, box=box)


def _relations(picture: Annotated, rows: list[dict[str, Any]]) -> None:
    """`people on car` -> the box of the people."""
    located = []
    for row in rows:
        subject, other = row["subject"], row["object"]
        parts = [_name(subject), words(row["predicate"]), _name(other)]
        box = _box(picture, subject, "w", "h")
        if box and all(parts):
            located.append((" ".join(parts).lower(), box))
    for phrase, box in _one_box_each(located):
        picture.ask("relation", box, phrase=phrase)


def _name(thing: dict[str, Any]) -> str:
    return words(thing["name"] if "name" in thing else thing["names"][0])


def _questions(picture: Annotated, rows: list[dict[str, Any]]) -> None:
    """Answers end as sentences do, single words too; their full stop is left out."""
    for row in rows:
        picture.ask("vqa", words(row["answer"]).removesuffix("."), question=words(row["question"]))


REGIONS = Format("Visual Genome regions", "region_descriptions.json", _reader("regions", _regions))
RELATIONSHIPS = Format("Visual Genome relationships", "relationships.json", _reader("relationships", _relations))
QUESTIONS = Format("Visual Genome questions", "question_answers.json", _reader("qas", _questions))
