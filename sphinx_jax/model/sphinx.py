"""SPHINX, read like the paper's figure: views -> encoders -> mix -> decoder."""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.model.cache import Cache, Common
from sphinx_jax.model.decoder import Decoder, Seen
from sphinx_jax.model.embedding_mix import EmbeddingMix, Features, pool_patches, to_grid
from sphinx_jax.model.encoders import Blip2, Clip, ConvNext, DinoV2
from sphinx_jax.model.views import make_views, nearest, padding_alone
from sphinx_jax.sharding import constrain


class Encoders(nnx.Module):
    """The frozen part: pictures to features."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.clip = Clip(c.clip, rngs=rngs) if c.clip else None
        self.convnext = ConvNext(c.convnext, rngs=rngs) if c.convnext else None
        self.dinov2 = DinoV2(c.dinov2, rngs=rngs) if c.dinov2 else None
        self.blip2 = Blip2(c.blip2, need(c.qformer), rngs=rngs) if c.blip2 else None

    def views(self, images: jax.Array, view_size: int) -> jax.Array:
        views = make_views(images, view_size, need(self.config.views)).astype(self.config.dtype)
        return constrain(views, "batch", None, None, None)

    def __call__(self, images: jax.Array, kept: jax.Array | None = None) -> Features:
        """(B, S, S, 3) float32 CLIP-normalised pictures -> features of every view.

        `kept` (K,) int32: the views that are encoded (`views.kept_views`); the features of others are 0.
        """
        c, grid = self.config, need(self.config.views)
        # encoders that look at views of one size share them
        sizes = {e.view_size for e in (c.clip, c.convnext, c.dinov2, c.blip2) if e}
        views = {size: self.views(images, size) for size in sizes}
        total = len(images) * grid.views
        if kept is not None:
            views = {size: v.at[kept].get(mode="fill", fill_value=0) for size, v in views.items()}
        patches = []
        if self.clip is not None:
            patches.append(self.clip(views[need(c.clip).view_size]))
        if self.convnext is not None and c.convnext is not None:
            seen = nearest(views[c.convnext.view_size].astype(jnp.float32), c.convnext.input_size).astype(c.dtype)
            patches.append(to_grid(self.convnext(seen), c.grid))
        if self.dinov2 is not None:
            patches.append(self.dinov2(views[need(c.dinov2).view_size]))
        queries = self.blip2(views[need(c.blip2).view_size]) if self.blip2 is not None else None

        def by_picture(x):
            x = constrain(x, "batch", None, None)
            if kept is not None:
                x = jnp.zeros((total, *x.shape[1:]), x.dtype).at[kept].set(x, mode="drop")
            return einops.rearrange(x, "(b v) t c -> b v t c", v=grid.views)

        patches = by_picture(jnp.concatenate(patches, axis=-1))
        return Features(
            pool_patches(patches[:, :1], c.pool_overview),
            pool_patches(patches[:, 1:], c.pool_crops) if grid.crops else None,
            None if queries is None else by_picture(queries),
            padding_alone(images, grid).astype(c.dtype) if grid.skip_padded else None,
        )


class SphinxModel(nnx.Module):
    """The whole network.  A text-only config has neither encoders nor mix."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoders = Encoders(config, rngs=rngs) if config.has_vision else None
        self.embedding_mix = EmbeddingMix(config, rngs=rngs) if config.has_vision else None
        self.decoder = Decoder(config.decoder, rngs=rngs)

    def encode(self, images: Float[Array, "B S S 3"]) -> Features:
        """(B, S, S, 3) -> features, without gradient: the encoders are frozen in every stage."""
        return jax.lax.stop_gradient(need(self.encoders)(images))

    def embed(self, tokens: Int[Array, "B T"], features: Features | None = None) -> Float[Array, "B W D"]:
        """(B, T) tokens [BOS, text…] -> (B, W + T, D): BOS, the pictures' W positions, the rest of the text."""
        x = self.decoder.embed(tokens, jnp.dtype(self.config.dtype))
        if features is None:
            return x
        return jnp.concatenate([x[:, :1], need(self.embedding_mix)(features).astype(x.dtype), x[:, 1:]], axis=1)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        features: Features | None = None,
        segments: Int[Array, "B T"] | None = None,
        documents: Int[Array, "B T"] | None = None,
        remat: str = "none",
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""] | None]:
        """(B, T) -> (B, T, D), and the load-balance loss of a mixture of experts.

        Of the image positions only the last counts: it predicts the first word of the text.

        `segments` (B, T) int32 keeps the turns of a conversation apart: segment 0 (BOS, picture, system text) is seen
        by all, every other one sees only that and itself, and its positions go on from the end of segment 0.
        `documents` (B, T) int32, of text alone, are apart altogether: each one's positions begin at 0.
        """
        x, at, segments = self.sequence(tokens, features, segments)
        positions, seen = None, Seen(documents=documents)
        if segments is not None:
            positions, seen = isolate(segments)
        elif documents is not None:
            positions = since_change(documents)
        hidden, balance = self.decoder(x, positions=positions, seen=seen, remat=remat)
        if at is None:
            return hidden[:, hidden.shape[1] - tokens.shape[1] :], balance
        return jnp.take_along_axis(hidden, at[..., None], axis=1), balance

    def sequence(
        self, tokens: jax.Array, features: Features | None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """(B, T) -> what the decoder reads (B, W + T, D), where each text token lies in it (B, T), and its segments.

        Without skipped views the text lies at the end (None); else what they leave empty goes there.  The first entry
        is the last image position, or BOS without a picture.
        """
        x = self.embed(tokens, features)
        batch, length = tokens.shape
        image = x.shape[1] - length
        if segments is not None:
            # the picture belongs to what comes before the first turn, as BOS does
            nothing = jnp.zeros((batch, image), segments.dtype)
            segments = jnp.concatenate([segments[:, :1], nothing, segments[:, 1:]], axis=1)
        if features is None or features.padding is None:
            return x, None, segments
        kept = need(self.embedding_mix).kept(features.padding)
        kept = jnp.pad(kept, ((0, 0), (1, length - 1)), constant_values=True)
        order = jnp.argsort(~kept, axis=1, stable=True)
        at = jnp.cumsum(kept, axis=1) - 1
        segments = None if segments is None else jnp.take_along_axis(segments, order, axis=1)
        return jnp.take_along_axis(x, order[..., None], axis=1), at[:, image:], segments

    def logits(
        self, tokens: Int[Array, "B T"], images: Float[Array, "B S S 3"] | None = None
    ) -> Float32[Array, "B T V"]:
        """(B, T) int32, (B, S, S, 3) -> (B, T, V) float32; entry t predicts token t + 1."""
        return self.decoder.logits(self.hidden(tokens, None if images is None else self.encode(images))[0])

    def extend(
        self,
        tokens: Int[Array, "B T"],
        cache: Cache,
        start: Int[Array, " B"],
        visual: Float[Array, "B W D"] | None = None,
        common: Common | None = None,
        looped: bool = False,
        turned: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Tokens (B, T) after the first `start` (B,) positions of each row -> (B, T, D), and the cache with them.

        A negative token, -1 - w, is position w of the row's picture, `visual` (B, W, D) as `see` gives it.  Of the
        positions before, `common` may hold some.  `looped`, `turned`: as `Decoder.extend` has them.
        """
        return self.decoder.extend(self.read(tokens, visual), cache, start, common, looped, turned)

    def read(self, tokens: Int[Array, "B T"], visual: Float[Array, "B W D"] | None = None) -> Float[Array, "B T D"]:
        """Tokens and pictures' positions, as `extend` takes them -> (B, T, D) embedded."""
        x = self.decoder.embed(jnp.maximum(tokens, 0), jnp.dtype(self.config.dtype))
        if visual is None:
            return x
        picked = jnp.take_along_axis(visual, jnp.maximum(-1 - tokens, 0)[..., None], axis=1)
        return jnp.where(tokens[..., None] < 0, picked.astype(x.dtype), x)

    def see(self, features: Features) -> tuple[Float[Array, "B W D"], Bool[Array, "B W"]]:
        """Features of a batch -> what the decoder reads of each picture, and which of its positions it reads."""
        mix = need(self.embedding_mix)
        visual = mix(features).astype(self.config.dtype)
        if features.padding is None:
            return visual, jnp.ones(visual.shape[:2], bool)
        return visual, mix.kept(features.padding)


def since_change(numbers: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """(B, T) -> (B, T) int32: how far back the number of a position began, 0 where it did."""
    index = jnp.arange(numbers.shape[1])
    changed = jnp.pad(numbers[:, 1:] != numbers[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(changed, index, 0), axis=1)


def isolate(segments: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Seen]:
    """Segments (B, T) of a whole sequence -> positions (B, T) and what is seen."""
    index = jnp.arange(segments.shape[1])
    shared = segments == 0
    # a segment is contiguous, so its positions count from where it began
    positions = jnp.where(shared, index, since_change(segments) + shared.sum(1, keepdims=True))
    query, key = segments[:, :, None], segments[:, None, :]
    seen = ((key == 0) | (key == query)) & (index[None, :] <= index[:, None])
    return positions, Seen(mask=seen[:, None])
