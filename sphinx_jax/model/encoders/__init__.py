"""The four encoders: each takes views (I, S, S, 3) and is frozen in every stage of the recipe."""

from sphinx_jax.model.encoders.clip import Clip
from sphinx_jax.model.encoders.convnext import ConvNext
from sphinx_jax.model.encoders.dinov2 import DinoV2
from sphinx_jax.model.encoders.qformer import Blip2

__all__ = ["Blip2", "Clip", "ConvNext", "DinoV2"]
