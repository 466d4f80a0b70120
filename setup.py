"""Where the package lies, and its README for those who have no repository; the rest is in setup.cfg."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HOME = "https://github.com/sphinx-jax/sphinx_jax"


readme = Path(__file__).with_name("README.md").read_text("utf-8")
# links as they work on a page that has nothing of the repository beside it: pictures first
for begins, kind in ((r"(!\[[^]]*\]\()", "raw"), (r"(\]\()", "blob")):
    readme = re.sub(rf"{begins}(?!https?:|#)", rf"\g<1>{HOME}/{kind}/main/", readme)
# the recipes of the repository lie in the package of those who have no clone
setup(
    long_description=readme,
    packages=[*find_packages(include=["sphinx_jax*"]), "sphinx_jax.configs"],
    package_dir={"sphinx_jax.configs": "configs"},
)
