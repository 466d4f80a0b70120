"""CLIP ViT (language-supervised, patches): all tokens after the last norm, without the projection into text space."""

from sphinx_jax.model.encoders.vit import Vit


class Clip(Vit):
    """(I, S, S, 3) CLIP-normalised views -> (I, 1 + P, C)."""
