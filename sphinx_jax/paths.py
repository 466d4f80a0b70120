"""Folders here, or in an object store."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

WEB = ("http", "https", "ftp", "ftps")
CACHE = Path.home() / ".cache" / "sphinx_jax"  # of what a machine can make again
PROGRAMS = CACHE / "xla"  # that were compiled, where JAX_COMPILATION_CACHE_DIR names no other folder
MIN_SECONDS = "0.5"  # that a program takes to compile to be kept there


def in_store(name: str | os.PathLike[str]) -> bool:
    """Whether a path lies in an object store, such as gs://bucket/folder."""
    return "://" in os.fspath(name)


def located(name: str | os.PathLike[str]) -> Path:
    """A path here, or in an object store: no `pathlib.Path` then, with the same methods.

    Raises:
      ValueError: a web address, or a scheme that is no file system.
    """
    if not in_store(name):
        return Path(name)
    scheme = os.fspath(name).partition("://")[0]
    if scheme.lower() in WEB:
        raise ValueError(f"{shortened(name)} is a web address; download it and give the path of the file")
    from etils import epath

    try:
        return epath.Path(name)
    except KeyError:
        raise ValueError(f"{shortened(name)} is no path: {shortened(scheme, 20)}:// is no known object store") from None


def shortened(text: str | os.PathLike[str], room: int = 120) -> str:
    """A path or another text that may be long, for a message: one printable line, cut in its middle."""
    text = os.fspath(text)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= room else f"{text[: room // 3]}…{text[1 + room // 3 - room :]}"


def as_path(folder: str | os.PathLike[str]) -> Path:
    """The same, absolute."""
    found = located(folder)
    return found.absolute() if isinstance(found, Path) else found


def joined(root: str | os.PathLike[str], name: str) -> Path:
    """What is called `name` in a folder: it may name its own place, here or in a store."""
    return located(name) if in_store(name) else located(root) / name


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whenever the process is killed."""
    if not isinstance(file, Path):  # a store shows an object once it is whole
        file.write_bytes(content)
        return
    draft = file.with_name(f"{file.name}.draft")
    draft.write_bytes(content)
    draft.replace(file)


def remove(folder: Path) -> None:
    """Delete a folder, if it is there, with all that is in it."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmtree()


def matching(patterns: Iterable[str]) -> list[Path]:
    """Files and folders that are named or match, absolute, those of each pattern in the order of their names."""
    found = []
    for pattern in patterns:
        # a name may have brackets
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        found += [Path(name).absolute() for name in names]
    return list(dict.fromkeys(found))
