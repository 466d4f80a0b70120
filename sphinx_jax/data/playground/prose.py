"""Real English prose: descriptions of data sets and functions, written by people, in installed packages.

Read from the source files without importing the packages. What exactly is found depends on their versions.
"""

from __future__ import annotations

import ast
import functools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from sphinx_jax.data.playground.photos import SPLITS, package_file

PIECE = 1600
"""Characters of a document at most: longer ones are cut between paragraphs."""

_MODULES = {
    "numpy": ("lib/*_impl.py", "_core/fromnumeric.py", "_core/numeric.py", "linalg/_linalg.py"),
    "scipy": (
        "ndimage/_*.py",
        "stats/_stats_py.py",
        "signal/_signaltools.py",
        "optimize/_minimize.py",
        "spatial/*.py",
    ),
    "sklearn": (
        "cluster/_*.py",
        "linear_model/_*.py",
        "ensemble/_*.py",
        "metrics/_*.py",
        "preprocessing/_*.py",
    ),
    "skimage": ("filters/*.py", "measure/*.py", "segmentation/*.py", "transform/*.py", "data/_fetchers.py"),
}
_ANCHORS = {
    "numpy": ("lib", "__init__.py"),
    "scipy": ("ndimage", "__init__.py"),
    "sklearn": ("cluster", "__init__.py"),
    "skimage": ("filters", "__init__.py"),
}


@functools.cache
def prose(split: str) -> tuple[str, ...]:
    """Documents of a split, each some paragraphs of plain English of at most about `PIECE` characters.

    A source file is in one split only, and so is a paragraph that several files share.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown playground split {split!r}: give one of {', '.join(SPLITS)}")
    return _all()[split]


@functools.cache
def _all() -> dict[str, tuple[str, ...]]:
    pieces: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for name, paragraphs in _sources():
        fresh = [p for p in dict.fromkeys(paragraphs) if p not in seen]
        seen.update(fresh)
        pieces[_split_of(name)].extend(_pieces(fresh))
    return {split: tuple(texts) for split, texts in pieces.items()}


def _split_of(name: str) -> str:
    share = zlib.crc32(name.encode()) % 100
    return "train" if share < 76 else "validation" if share < 88 else "test"


def _pieces(paragraphs: list[str]) -> Iterator[str]:
    piece: list[str] = []
    for paragraph in paragraphs:
        if piece and sum(map(len, piece)) + len(paragraph) > PIECE:
            yield "\n".join(piece)
            piece = []
        piece.append(paragraph)
    if piece:
        yield "\n".join(piece)


def _sources() -> Iterator[tuple[str, list[str]]]:
    """Names of source files and their paragraphs, in a fixed order."""
    for path in sorted(package_file("sklearn", "datasets", "descr", "__init__.py").parent.glob("*.rst")):
        yield path.name, list(_paragraphs(path.read_text(encoding="utf-8")))
    for package, patterns in _MODULES.items():
        root = package_file(package, *_ANCHORS[package]).parents[1]
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            yield f"{package}/{path.relative_to(root)}", list(_docstrings(path))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
            yield from _paragraphs(text)


_MARKUP = (
    (re.compile(r":[\w:]+:`~?([^`<]+?)(?: <[^`]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)(?: <[^`]*>)?`_+"), r"\1"),
    (re.compile(r"``?([^`]*)``?"), r"\1"),
    (re.compile(r"\*\*?([^*\n]+)\*\*?"), r"\1"),
    (re.compile(r"\s*\[\d+\]_"), ""),
)
_SENTENCES = re.compile(r"[A-Z][A-Za-z0-9 ,.;:'\"()/%+=<>*_\[\]-]{79,}[.!?]")
# what parameter lists, section titles, doctests and templates have, and sentences have not
_NOT_PROSE = re.compile(r" : |---|===|>>>|%\(|\.\. |^\s*-\s", re.MULTILINE)
_SECTION = re.compile(r"^(Notes|Summary|Abstract)\n-+\n")


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs that are sentences: not code, lists, tables or titles."""
    for block in re.split(r"\n\s*\n", text):
        block = _SECTION.sub("", block)
        if _NOT_PROSE.search(block):
            continue
        for pattern, replacement in _MARKUP:
            block = pattern.sub(replacement, block)
        plain = " ".join(block.split())
        letters = sum(character.isalpha() or character == " " for character in plain)
        if _SENTENCES.fullmatch(plain) and letters > 0.92 * len(plain) and plain.count("_") <= 2 and "###" not in plain:
            yield plain
