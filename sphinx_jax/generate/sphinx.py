"""`Sphinx`: a model to talk to, as `sphinx_jax.from_pretrained` returns it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.data.conversation import clean, render
from sphinx_jax.data.image import ImageSource, load_image, padded_resize
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import arguments, engine
from sphinx_jax.generate.stops import Stops
from sphinx_jax.model.blueprint import FROZEN, Leaves, blueprint, make_encode, matches
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.sharding import make_mesh

_log = logging.getLogger(__name__)


class Sphinx:
    """A model with its tokenizer: logits, answers, scores."""

    def __init__(self, config: ModelConfig, leaves: Leaves, tokenizer: Tokenizer | None, mesh: Mesh | None = None):
        self.config, self.leaves, self._tokenizer = config, leaves, tokenizer
        self.mesh = mesh or make_mesh()
        self._encode = make_encode(config) if config.has_vision else None
        self._encoders = {path: leaf for path, leaf in leaves.items() if matches(path, FROZEN)}

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "the model came without a tokenizer; give tokenizer= (a tokenizer.model or tokenizer.json)"
            )
        return self._tokenizer

    @functools.cached_property
    def stops(self) -> Stops:
        """What ends an answer: the template's stop text, and EOS."""
        return engine.stop_tokens(self.tokenizer)

    def logits(self, tokens: np.ndarray, pixels: np.ndarray | None = None) -> np.ndarray:
        """(B, T) int32, (B, S, S, 3) CLIP-normalised float32 or None -> (B, T, V) float32.

        Entry t predicts token t + 1.
        """
        tokens = arguments.check_tokens(tokens, self.config.decoder.vocab_size)
        given = arguments.check_pixels(self.config, pixels, len(tokens))
        length = tokens.shape[1]
        # padding is on the right, where causality hides it
        padded = np.pad(tokens, ((0, 0), (0, engine.round_up(length) - length)))
        with jax.set_mesh(self.mesh):
            seen = None if given is None else jnp.asarray(given, jnp.float32)
            out = _logits(self.config, self.leaves, padded, seen)
        return np.asarray(out[:, :length])

    def features(self, images: Sequence[ImageSource]) -> Features:
        """Pictures (paths, bytes or PIL) -> what the encoders see."""
        pictures = [load_image(image) for image in arguments.check_pictures(self.config, images)]
        pixels = np.stack([padded_resize(picture, need(self.config.views).image_size) for picture in pictures])
        with jax.set_mesh(self.mesh):
            return need(self._encode)(self._encoders, pixels)

    def respond(self, turns: Sequence[Sequence[str | None]], image: ImageSource | None = None, **settings) -> str:
        """Answer the last question of a conversation [[question, answer], …, [question, None]] about one picture.

        Settings are those of `generate`; sampling defaults follow the published evaluation.
        """
        arguments.check_turns(turns)
        text, _ = render([(clean(q), None if a is None else clean(a)) for q, a in turns])
        return self.generate([text], None if image is None else [image], **settings)[0]

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[ImageSource] | None = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.1,
        top_p: float = 0.75,
        seed: int = 0,
    ) -> list[str]:
        """Continue prompts, taken verbatim (BOS is added), until `\\n###`, EOS or `max_new_tokens`.

        A prompt too long for the decoder keeps BOS, the picture and its own end, and the log says so.
        """
        settings = arguments.check_sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        prompts = arguments.check_texts("prompts", prompts)
        images = arguments.check_images(self.config, images, prompts)
        if not prompts:
            return []
        rows, features = self._inputs(prompts, images, max_new_tokens)
        with jax.set_mesh(self.mesh):
            out = engine.generate(self.config, self.leaves, rows, features, stops=self.stops, **settings)
        return [self.stops.text(tokens) for tokens in out]

    def stream(
        self,
        prompt: str,
        image: ImageSource | None = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.1,
        top_p: float = 0.75,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the text so far, in whole characters; what cannot be used is refused at the call."""
        settings = arguments.check_sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        prompts = [arguments.check_text("prompt", prompt)]
        images = arguments.check_images(self.config, None if image is None else [image], prompts)
        (row,), features = self._inputs(prompts, images, max_new_tokens)
        return self._decoded(engine.stream(self.config, self.leaves, row, features, stops=self.stops, **settings))

    def _decoded(self, steps: Iterator[list[int]]) -> Iterator[str]:
        tokens: list[int] = []
        said = None
        while True:
            with jax.set_mesh(self.mesh):  # left before the yield: the caller has a mesh of their own
                found = next(steps, None)
            tokens = tokens if found is None else found
            text = self.stops.text(tokens, whole=found is None)
            if text != said:
                yield (said := text)
            if found is None:
                return

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        images: Sequence[ImageSource] | None = None,
    ) -> list[float]:
        """Log-likelihood in nats of each continuation after its prompt."""
        prompts = arguments.check_texts("prompts", prompts)
        continuations = arguments.check_texts("continuations", continuations)
        arguments.check_equally_many(prompts=prompts, continuations=continuations)
        images = arguments.check_images(self.config, images, prompts)
        if not prompts:
            return []
        starts = [self.encode_prompt(p) for p in prompts]
        whole = [self.encode_prompt(p + c) for p, c in zip(prompts, continuations, strict=True)]
        # the two texts may merge at their seam: what differs from the prompt's own tokens belongs to the continuation
        begins = [_shared(start, all_) for start, all_ in zip(starts, whole, strict=True)]
        for i, (begin, all_) in enumerate(zip(begins, whole, strict=True)):
            if begin >= len(all_):
                raise arguments.BadArgument(f"continuations[{i}] {continuations[i]!r} adds no token to its prompt")
        tokens, lengths = engine.pad_prompts(whole)
        features = None if images is None else self.features(images)
        with jax.set_mesh(self.mesh):
            scores = _token_scores(self.config, self.leaves, tokens, features)
        return [float(row[b - 1 : n - 1].sum()) for row, b, n in zip(np.asarray(scores), begins, lengths, strict=True)]

    def encode_prompt(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt, bos=True)

    def _inputs(
        self, prompts: Sequence[str], images: Sequence[ImageSource] | None, new_tokens: int
    ) -> tuple[list[list[int]], Features | None]:
        """Prompts as tokens and pictures as features, the quick part first."""
        rows = [self._fitted(prompt, images is not None, new_tokens) for prompt in prompts]
        return rows, None if images is None else self.features(images)

    def _fitted(self, prompt: str, with_picture: bool, new_tokens: int) -> list[int]:
        """The tokens of a prompt, cut at its beginning where they leave no room for an answer."""
        tokens = self.encode_prompt(prompt)
        positions = self.config.decoder.max_positions - (self.config.image_positions if with_picture else 0)
        room = positions - new_tokens
        if room < 2:
            beside = " beside the picture" if with_picture else ""
            raise arguments.BadArgument(
                f"max_new_tokens {new_tokens} leaves no room for a prompt in {positions} positions{beside}"
            )
        if len(tokens) <= room:
            return tokens
        _log.warning("a prompt of %d tokens was cut to its last %d", len(tokens), room - 1)
        return [*tokens[:1], *tokens[1 - room :]]


def _shared(start: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(start))


@functools.partial(jax.jit, static_argnames=("config",))
def _logits(config: ModelConfig, leaves: Leaves, tokens: jax.Array, pixels: jax.Array | None) -> jax.Array:
    return blueprint(config).bind(leaves).logits(tokens, pixels)


@functools.partial(jax.jit, static_argnames=("config",))
def _token_scores(config: ModelConfig, leaves: Leaves, tokens: jax.Array, features: Features | None) -> jax.Array:
    """(B, T) -> (B, T − 1) log-probability of each next token."""
    model = blueprint(config).bind(leaves)
    logits = jax.nn.log_softmax(model.decoder.logits(model.hidden(tokens, features)[0][:, :-1]))
    return jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
