"""`sphinx-jax` and `python -m sphinx_jax`: the command `python -m sphinx_jax.main`."""

from __future__ import annotations

import os
import runpy
import sys


def command() -> None:
    """Run `sphinx_jax.main` as the main module: its flags and its help are those of `python -m`."""
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())  # as python -m does, for what a recipe imports
    runpy.run_module("sphinx_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    command()
