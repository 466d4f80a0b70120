"""The rest of what setuptools needs to know is in setup.cfg."""

from setuptools import find_packages, setup

# the recipes of the repository lie in the package of those who have no clone
setup(
    packages=[*find_packages(include=["sphinx_jax*"]), "sphinx_jax.configs"],
    package_dir={"sphinx_jax.configs": "configs"},
)
