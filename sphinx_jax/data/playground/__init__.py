"""The embedded playground: a little world of exactly labelled pictures, made of what packages carry."""

from sphinx_jax.data.playground.pictures import Example, make_picture
from sphinx_jax.data.playground.questions import Turn

__all__ = ["Example", "Turn", "make_picture"]
