"""`Sphinx`: a model to talk to, as `sphinx_jax.from_pretrained` returns it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.data.conversation import clean, render
from sphinx_jax.data.image import ImageSource
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import arguments
from sphinx_jax.generate.batching.jobs import in_common
from sphinx_jax.generate.batching.pictures import Detail, Picture, Pictures
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.located import Located
from sphinx_jax.generate.once import made_once
from sphinx_jax.generate.request import Request, Settings
from sphinx_jax.model.blueprint import Leaves, apart, blueprint
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.sharding import serving_mesh

ASKED = ("image", "logprobs", *Settings.__annotations__)  # what a question may come with
BUCKET = 32  # text lengths are rounded up to this where a whole text is looked at, so few programs are compiled


class Sphinx(Located):
    """A model with its tokenizer: logits, answers, scores."""

    def __init__(self, config: ModelConfig, leaves: Leaves, tokenizer: Tokenizer | None, mesh: Mesh | None = None):
        self.config, self.leaves, self._tokenizer = config, apart(dict(leaves)), tokenizer
        self.mesh = mesh or serving_mesh(config.decoder)

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "the model came without a tokenizer; give tokenizer= (a tokenizer.model or tokenizer.json)"
            )
        return self._tokenizer

    @made_once
    def engine(self) -> Engine:
        """What answers."""
        return Engine(self)

    def logits(self, tokens: np.ndarray, pixels: np.ndarray | None = None) -> np.ndarray:
        """(B, T) int32, (B, S, S, 3) CLIP-normalised float32 or None -> (B, T, V) float32.

        Entry t predicts token t + 1.
        """
        tokens = arguments.check_tokens(tokens, self.config.decoder.vocab_size)
        given = arguments.check_pixels(self.config, pixels, len(tokens))
        length = tokens.shape[1]
        # padding is on the right, where causality hides it
        padded = np.pad(tokens, ((0, 0), (0, round_up(length) - length)))
        with jax.set_mesh(self.mesh):
            seen = None if given is None else jnp.asarray(given, jnp.float32)
            out = _logits(self.config, self.leaves, padded, seen)
        return np.asarray(out[:, :length])

    def features(self, images: Sequence[ImageSource]) -> Features:
        """Pictures (paths, bytes or PIL) -> what the encoders see."""
        found = Pictures(self.config, self.leaves)
        pixels = [need(found.picture(image).pixels) for image in arguments.check_pictures(self.config, images)]
        with jax.set_mesh(self.mesh):
            return found.features(np.stack(pixels))

    def respond(self, turns: Sequence[Sequence[str | None]], image: ImageSource | None = None, **settings) -> Any:
        """Answer the last question of a conversation [[question, answer], …, [question, None]] about one picture.

        Settings, and what comes back, are those of `generate`; sampling defaults follow the published evaluation.
        """
        arguments.check_turns(turns)
        arguments.check_known(settings, ASKED)
        text, _ = render([(clean(q), None if a is None else clean(a)) for q, a in turns])
        return self.generate([text], None if image is None else [image], **settings)[0]

    def respond_many(self, image: ImageSource, questions: Sequence[str], **settings) -> list[Any]:
        """Answer many questions about one picture, which is looked at once; else as `respond`."""
        arguments.check_vision(self.config)
        picture = self.engine.pictures.picture(image)
        arguments.check_known(settings, ASKED)
        questions = [clean(q) for q in arguments.check_texts("questions", questions)]
        texts = [render([(arguments.check_filled(f"questions[{i}]", q), None)])[0] for i, q in enumerate(questions)]
        return self.generate(texts, [picture] * len(texts), **settings)

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[ImageSource | Picture] | None = None,
        *,
        logprobs: bool = False,
        **settings: Unpack[Settings],
    ) -> list[Any]:
        """Continue prompts, taken verbatim (BOS is added), until `\\n###`, EOS or `max_new_tokens`.

        A prompt too long for the decoder keeps BOS, the picture and its own end, and the log says so.

        Args:
          images: one for each prompt.
          logprobs: give back a `Said` in place of each text: with tokens, their log-probabilities and why it ended.
          settings: `max_new_tokens` (512), `temperature` (0.1), `top_p` (0.75), `top_k`, `seed`, `stop`, `n`, `detail`,
            `task`, `grammar`, as `Request` has them.

        Returns:
          A text for each prompt; with n > 1 a list of n texts.
        """
        arguments.check_known(settings, Settings.__annotations__)
        arguments.check_flag("logprobs", logprobs)
        prompts = arguments.check_texts("prompts", prompts)
        given = arguments.check_images(self.config, images, prompts)
        for i, prompt in enumerate(prompts if given is None else []):
            arguments.check_filled(f"prompts[{i}]", prompt)
        pictures = itertools.repeat(None) if given is None else given
        Request("any", **settings)  # refuses them though there be no prompt
        requests = [Request(p, image, **settings) for p, image in zip(prompts, pictures, strict=False)]
        found = [said if logprobs else [each.text for each in said] for said in self.engine.map(requests)]
        return found if settings.get("n", 1) > 1 else [one for (one,) in found]

    def stream(
        self,
        prompt: str,
        image: ImageSource | Picture | None = None,
        *,
        logprobs: bool = False,
        **settings: Unpack[Settings],
    ) -> Iterator[Any]:
        """Yield the text so far, in whole characters; what cannot be used is refused at the call.

        Settings are those of `generate`; with `logprobs` each is the `Said` so far, as `Answer.so_far` has it.
        """
        arguments.check_known(settings, Settings.__annotations__)
        arguments.check_flag("logprobs", logprobs)
        images = arguments.check_images(self.config, None if image is None else [image], [prompt])
        answer = self.engine.submit(Request(prompt, images[0] if images else None, **settings))
        if not logprobs:
            return iter(answer)
        return (said if settings.get("n", 1) > 1 else said[0] for said in answer.so_far())

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        images: Sequence[ImageSource | Picture] | None = None,
        detail: Detail = "high",
    ) -> list[float]:
        """Log-likelihood in nats of each continuation after its prompt; `detail` as `Request` has it.

        Nothing is chosen, so there are no other settings: limits, sampling, stop texts, `n` and grammars have no say.
        """
        arguments.check_one_of("detail", detail, get_args(Detail))
        prompts = arguments.check_texts("prompts", prompts)
        continuations = arguments.check_texts("continuations", continuations)
        arguments.check_equally_many(prompts=prompts, continuations=continuations)
        images = arguments.check_images(self.config, images, prompts)
        if not prompts:
            return []
        starts = [self.encode_prompt(p) for p in prompts]
        whole = [self.encode_prompt(p + c) for p, c in zip(prompts, continuations, strict=True)]
        # the two texts may merge at their seam: what differs from the prompt's own tokens belongs to the continuation
        begins = [in_common(start, None, all_, None) for start, all_ in zip(starts, whole, strict=True)]
        for i, (begin, all_) in enumerate(zip(begins, whole, strict=True)):
            if begin >= len(all_):
                raise arguments.BadArgument(f"continuations[{i}] {continuations[i]!r} adds no token to its prompt")
        return [sum(chances) for chances in self.engine.score(whole, begins, images or itertools.repeat(None), detail)]

    def encode_prompt(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt, bos=True)


def round_up(number: int, step: int = BUCKET) -> int:
    return -(-number // step) * step


@functools.partial(jax.jit, static_argnames=("config",))
def _logits(config: ModelConfig, leaves: Leaves, tokens: jax.Array, pixels: jax.Array | None) -> jax.Array:
    return blueprint(config).bind(leaves).logits(tokens, pixels)
