"""The second step: which items are kept, from what was seen of them alone; no file is opened."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.data.prepare.look import WORD, read_looks

# DataComp's basic filter, whose language is a filter of its own here (arXiv 2304.14108, appendix)
WORDS, CHARACTERS, SHORTER, ASPECT = 3, 6, 200, 3.0
KEPT = 0
ALIKE = 4  # bits of 64 in which a picture may differ from one of a benchmark that it looks like


@dataclass(frozen=True)
class Filters:
    """What is kept of items that can be used.

    Attributes:
      basic: DataComp's: captions of more than 2 words and 5 characters, pictures whose shorter side has 200 pixels and
        whose longer is at most 3 times as long; its language is a filter of its own.
      at_least, at_most: bounds of numbers that the files carry; an item that lacks one is dropped.
      same: of items that are the same, picture and all that is said of it, the first is kept.
      pictures: one item of each picture is kept, the first.
      alike: and one of those that look the same.
      only: words that the files carry, such as `{"LANGUAGE": ("en",)}`; an item that says another or none is dropped.
      without: and items that say these are, `{"NSFW": ("nsfw", "likely")}`.
      language: items whose text is in one of these, as py3langid finds out, such as `("en",)`.
    """

    basic: bool = False
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    same: bool = True
    pictures: bool = False
    alike: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    language: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.language:
            import py3langid

            known = sorted({name for name, _ in py3langid.rank("a")})
            for name in self.language:
                if name not in known:
                    raise ConfigError(f"unknown language {name!r}, where en is English; known: {', '.join(known)}")
        for words in (*self.only.values(), *self.without.values()):
            if long := [word for word in words if len(word) > WORD]:
                raise ConfigError(f"{long[0]!r} is longer than {WORD} letters: items are chosen by shorter words alone")


class Known(NamedTuple):
    """Pictures of benchmarks, which nothing may be trained on.

    Attributes:
      contents: the first 8 bytes of SHA-256 of their pixels.
      looks: (N,) uint64.
      numbers: COCO's.
    """

    contents: Collection[bytes] = frozenset()
    looks: np.ndarray = np.zeros(0, np.uint64)
    numbers: Collection[int] = frozenset()


class Choice(NamedTuple):
    """What becomes of the items of each file.

    Attributes:
      codes: of each file (items,) uint8, 0 where an item is kept, else the place of its reason.
      reasons: by code.
    """

    codes: Sequence[np.ndarray]
    reasons: Sequence[str]

    def counts(self) -> dict[str, int]:
        """How many items were dropped for each reason, the commonest first."""
        total = np.zeros(256, np.int64)
        for codes in self.codes:
            total += np.bincount(codes, minlength=256)
        found = {reason: int(total[code]) for code, reason in enumerate(self.reasons) if code != KEPT and total[code]}
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


COLUMNS = [
    "reason",
    "picture",
    "width",
    "height",
    "content",
    "whole",
    "look",
    "number",
    "characters",
    "words",
    "language",
    "carried",
]


PLAIN = [name for name in COLUMNS if name not in ("reason", "content", "whole", "language", "carried")]  # numbers


def choose(sidecars: Sequence[Path], filters: Filters, known: Known) -> Choice:
    """Of items that are the same the first is kept, in the order of the files and of their items.

    Takes a byte an item of memory, and some tens for each of the rules that compare items.
    """
    reasons = _Reasons()
    codes, wholes, contents, looks = [], [], [], []
    said, usable = set[str](), False
    for sidecar in sidecars:
        own: list[np.ndarray] = []
        for batch in read_looks(sidecar, COLUMNS):
            code = _judged(batch, filters, known, reasons, said)
            own.append(code)
            usable = usable or "" in batch["reason"].to_pylist()
            if filters.same:
                wholes.append(_keys(batch["whole"]))
            if filters.pictures:
                contents.append(np.where(batch["picture"].to_numpy(zero_copy_only=False), _keys(batch["content"]), 0))
            if filters.alike:
                looks.append(batch["look"].to_numpy())
        codes.append(np.concatenate(own) if own else np.zeros(0, np.uint8))
    whole = np.concatenate(codes) if codes else np.zeros(0, np.uint8)
    for name in (*filters.at_least, *filters.at_most, *filters.only, *filters.without):
        if usable and name not in said:
            raise _nothing_says(name, said)
    if not len(whole):
        return Choice(codes, reasons.names)
    if filters.same:
        _only_first(whole, np.concatenate(wholes), reasons["same as another item"])
    if filters.pictures:
        of_picture = np.concatenate(contents)
        _only_first(whole, of_picture, reasons["same picture as another item"], of_picture != 0)
    if filters.alike:
        of_look = np.concatenate(looks)
        _only_first(whole, of_look, reasons["picture looks like another"], of_look != -1)
    ends = np.cumsum([len(own) for own in codes])[:-1]
    return Choice(np.split(whole, ends), reasons.names)


def _nothing_says(name: str, said: Collection[str]) -> ConfigError:
    near = difflib.get_close_matches(name.lower(), [one.lower() for one in said], n=1, cutoff=0.5)
    meant = next((one for one in sorted(said) if one.lower() in near), None)
    rest = f"did you mean {meant}?" if meant else f"they say {', '.join(sorted(said)) or 'nothing'}"
    own = " (the language that is found out is --language)" if name.lower() == "language" and not meant else ""
    return ConfigError(f"the files say of no item what its {name} is; {rest}{own}")


def _keys(hashes: Any) -> np.ndarray:
    return np.frombuffer(b"".join(one.ljust(8, b"\0") for one in hashes.to_pylist()), np.uint64)


class _Reasons:
    """Codes of reasons, given as they are met."""

    def __init__(self) -> None:
        self.names = ["kept"]

    def __getitem__(self, reason: str) -> int:
        if reason not in self.names:
            if len(self.names) == 256:
                reason = self.names[-1]
            else:
                self.names.append(reason)
        return self.names.index(reason)


def _judged(batch: Mapping[str, Any], filters: Filters, known: Known, reasons: _Reasons, named: set[str]) -> np.ndarray:
    """`named` takes the names of what the files say of items."""
    code = np.array([reasons[reason] if reason else KEPT for reason in batch["reason"].to_pylist()], np.uint8)

    def drop(where: np.ndarray, reason: str) -> None:
        where = where & (code == KEPT)
        if where.any():
            code[where] = reasons[reason]

    column = {name: batch[name].to_numpy(zero_copy_only=False) for name in PLAIN}
    picture = column["picture"].astype(bool)
    if filters.basic:
        drop((column["words"] < WORDS) | (column["characters"] < CHARACTERS), "text is too short")
        shorter = np.minimum(column["width"], column["height"])
        longer = np.maximum(column["width"], column["height"])
        drop(picture & (shorter < SHORTER), "picture is too small")
        drop(picture & (longer > ASPECT * shorter), "picture is too elongated")
    if filters.language:
        said = np.isin(batch["language"].to_numpy(zero_copy_only=False), filters.language)
        drop(~said, f"language is not {' or '.join(filters.language)}")
    asked = filters.at_least or filters.at_most or filters.only or filters.without
    carried = [json.loads(text) for text in batch["carried"].to_pylist()] if asked else []
    named.update(*carried)
    for bounds, over in ((filters.at_least, False), (filters.at_most, True)):
        for name, bound in bounds.items():
            values = np.array([value if isinstance(value := one.get(name), float) else np.nan for one in carried])
            drop(np.isnan(values), f"has no {name}")
            beyond = values > bound if over else values < bound
            drop(beyond, f"{name} is {'above' if over else 'below'} {bound:g}")
    for words, wanted in ((filters.only, True), (filters.without, False)):
        for name, known_words in words.items():
            asked_for = {_word(word) for word in known_words}
            said = np.array([_word(one.get(name)) in asked_for for one in carried], bool)
            drop(said != wanted, f"{name} is {'not ' if wanted else ''}{' or '.join(known_words)}")
    if known.contents or len(known.looks) or known.numbers:
        drop(picture & _of_benchmark(batch, column, known), "picture of a benchmark")
    return code


def _word(value: Any) -> float | str:
    """A word in small letters, or the number that it is: true is 1."""
    word = str(value).lower()
    try:
        return float({"true": 1, "false": 0}.get(word, word))
    except ValueError:
        return word


def _of_benchmark(batch: Mapping[str, Any], column: Mapping[str, np.ndarray], known: Known) -> np.ndarray:
    found = np.array([content in known.contents for content in batch["content"].to_pylist()])
    found |= np.isin(column["number"], list(known.numbers)) & (column["number"] >= 0)
    looks = column["look"].astype(np.int64).view(np.uint64)
    has = column["look"] != -1
    for begin in range(0, len(looks), 4096):
        rows = slice(begin, begin + 4096)
        for part in _parts(known.looks, 1024):
            near = np.bitwise_count(looks[rows, None] ^ part[None]).min(axis=1) <= ALIKE
            found[rows] |= near & has[rows]
    return found


def _parts(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (values[begin : begin + size] for begin in range(0, len(values), size))


def _only_first(codes: np.ndarray, keys: np.ndarray, code: int, where: np.ndarray | None = None) -> None:
    """Drop all but the first of those that are kept so far and have the same key."""
    kept = np.flatnonzero((codes == KEPT) if where is None else (codes == KEPT) & where)
    _, first = np.unique(keys[kept], return_index=True)
    others = np.ones(len(kept), bool)
    others[first] = False
    codes[kept[others]] = code
