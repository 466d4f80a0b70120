"""Folders here, or in an object store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def as_path(folder: str | os.PathLike[str]) -> Path:
    """A folder here (absolute), or in an object store such as gs://, which then has the same methods."""
    if "://" in os.fspath(folder):
        from etils import epath

        return epath.Path(folder)
    return Path(folder).absolute()


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
