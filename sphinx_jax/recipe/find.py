"""Recipes by name: those of the working directory, and the package's own."""

from __future__ import annotations

from pathlib import Path

import sphinx_jax


def folders() -> list[Path]:
    """Where recipes lie that are given by name; those of the package lie in the wheel, or in the clone beside it."""
    package = Path(sphinx_jax.__file__).parent
    places = (Path("configs"), package.joinpath("configs"), package.parent.joinpath("configs"))
    return [folder for folder in places if folder.is_dir()]


def known() -> dict[str, Path]:
    """The files of recipes by name; what lies nearer comes first."""
    return {file.stem: file for folder in reversed(folders()) for file in folder.glob("[!_]*.py")}


def find(given: str) -> str:
    """`quickstart` or `finetune:FOLDER` -> the same with the file of that name; what names a file is left as it is.

    Raises ConfigError for a name that is in none of the folders.
    """
    name, colon, argument = given.partition(":")
    if not name or Path(name).suffix or Path(name).name != name or Path(name).is_file():
        return given
    files = known()
    if name not in files:
        from sphinx_jax.config import unknown

        raise unknown("recipe", name, files)
    return f"{files[name]}{colon}{argument}"
