"""Where the package lies, and its README for those who have no repository; the rest is in setup.cfg."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HOME = "https://github.com/sphinx-jax/sphinx_jax"


def elsewhere(found: re.Match[str]) -> str:
    """A link of the README as it works on a page that has nothing of the repository beside it."""
    image, path = found.groups()
    return f"{image}({HOME}/{'raw' if path.endswith('.png') else 'blob'}/main/{path}"


readme = re.sub(r"(\])\((?!https?:|#)([^)\s]+)", elsewhere, Path(__file__).with_name("README.md").read_text())
# the recipes of the repository lie in the package of those who have no clone
setup(
    long_description=readme,
    packages=[*find_packages(include=["sphinx_jax*"]), "sphinx_jax.configs"],
    package_dir={"sphinx_jax.configs": "configs"},
)
