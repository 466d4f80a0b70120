"""Classes of pictures as folders: ImageNet, and what else has a folder a class.

`train/n01440764/n01440764_10026.JPEG`, the folder named by a WordNet number, or by the class itself. Names of numbers
come from `LOC_synset_mapping.txt` (Kaggle's) or `synset_words.txt`, both of `n01440764 tench, Tinca tinca` a line, or
from `imagenet_class_index.json`, `{"0": ["n01440764", "tench"], …}`: forms and places are those that public readers of
them expect. The first of several names is taken, so two classes are called crane (from memory).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.files import BadData, read_json, read_text
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source
from sphinx_jax.data.tasks import format_answer, instruct

PICTURES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
LISTS = ("LOC_synset_mapping.txt", "synset_words.txt")
INDEX = "imagenet_class_index.json"
ABOVE = 4  # folders between the pictures and the list of names, as Kaggle packs them
TASK = "classification"

_NUMBER = re.compile(r"n\d{8}")


def read(source: Source) -> Iterator[Found | Dropped]:
    """An item a picture, class by class.  Raises BadData: no such folder, or a WordNet number without a name."""
    classes = _classes(source.file)
    names = _names(source.file) if any(_NUMBER.fullmatch(folder.name) for folder in classes) else {}
    for folder in classes:
        if _NUMBER.fullmatch(folder.name) and folder.name not in names:
            files = ", ".join((*LISTS, INDEX))
            raise BadData(f"{folder} is not named in one of {files}: put one beside {source.file}")
    for folder in classes:
        yield from _read_class(folder, names.get(folder.name) or " ".join(folder.name.replace("_", " ").split()))


def _classes(root: Path) -> list[Path]:
    try:
        classes = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    except OSError as error:
        raise BadData(f"{root} cannot be read as a folder of classes: {error.strerror}") from None
    if not any(_is_picture(file) for folder in classes for file in folder.iterdir()):
        raise BadData(f"{root} has no folders with pictures: expected one for each class, as in train/n01440764")
    return classes


def _names(root: Path) -> Mapping[str, str]:
    for folder in [root, *root.absolute().parents[:ABOVE]]:
        for name in LISTS:
            if (file := folder / name).is_file():
                return _listed(file)
        if (file := folder / INDEX).is_file():
            return _indexed(file)
    return {}


def _listed(file: Path) -> Mapping[str, str]:
    lines = (line.partition(" ") for line in read_text(file).splitlines() if line.strip())
    return {number: name.split(",")[0].strip() for number, _, name in lines}


def _indexed(file: Path) -> Mapping[str, str]:
    index = read_json(file)
    try:
        return {number: name.replace("_", " ").strip() for number, name in index.values()}
    except (AttributeError, TypeError, ValueError):
        raise BadData(f'{file} is no list of classes: expected {{"0": ["n01440764", "tench"], …}}') from None


def _read_class(folder: Path, name: str) -> Iterator[Found | Dropped]:
    turns = ((instruct(TASK), format_answer(TASK, name)),)
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if not files:
        yield Dropped(folder.name, "picture is missing")
    for file in files:
        id = f"{folder.name}/{file.stem}"
        if not _is_text(str(file)):
            yield Dropped(repr(id), "name is not UTF-8")
        elif not _is_picture(file):
            yield Dropped(f"{folder.name}/{file.name}", "file is not a picture")
        else:
            yield Found(Item(str(file.absolute()), turns, (TASK,), id=id), {"class": folder.name})


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES and not file.name.startswith(".")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


IMAGENET = Format("ImageNet and other folders of classes", "train, with a folder a class", read)
