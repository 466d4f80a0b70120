"""What readers of data sets find in a file, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.data.conversation import Item


@dataclass(frozen=True)
class Found:
    """An item of a file.

    Attributes:
      item: its picture as encoded bytes where the file holds it, else as an absolute path.
      carried: what the file says of it under the file's own names: scores, flags, sizes, where it came from.
    """

    item: Item
    carried: Mapping[str, Any] = field(default_factory=dict)


class Dropped(NamedTuple):
    """What a file has and no item can be made of.

    Attributes:
      name: which one, for a person.
      reason: a few words that are the same for all of their kind, by which they are counted: `picture is missing`.
    """

    name: str
    reason: str


class Source(NamedTuple):
    """A file to be read.

    Attributes:
      file: or the folder, where a data set is one.
      root: folder in which paths of pictures begin; None for that of the file.
    """

    file: Path
    root: Path | None = None

    @property
    def pictures(self) -> Path:
        return self.root or self.file.parent


# in the order of the file, in constant memory where the format allows it; raises BadData where the file as a whole is
# of another format
Reader = Callable[[Source], Iterator[Found | Dropped]]


@dataclass(frozen=True)
class Format:
    """A format of training data.

    Attributes:
      title: whose data comes in it.
      inputs: what to give as `--input`, for a person: "instances_train2017.json".
      read: all of one file.
      parts: the files of an input, in their order, each of which can be read by itself.
    """

    title: str
    inputs: str
    read: Reader
    parts: Callable[[Path], Sequence[Path]] = lambda file: (file,)
