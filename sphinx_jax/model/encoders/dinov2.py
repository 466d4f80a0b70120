"""DINOv2 ViT (self-supervised, patches; Oquab et al. 2023)."""

from __future__ import annotations

import jax
import numpy as np

from sphinx_jax.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from sphinx_jax.model.encoders.vit import Vit


class DinoV2(Vit):
    """(I, S, S, 3) CLIP-normalised views -> (I, 1 + P, C); the statistics are changed to ImageNet's first."""

    def embed(self, views: jax.Array) -> jax.Array:
        clip_mean, clip_std, mean, std = (
            np.asarray(v, views.dtype) for v in (CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD)
        )
        return super().embed((views * clip_std + clip_mean - mean) / std)
