"""A new SPHINX from public parts: a language model and encoders that others trained, projections and tags fresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sphinx_jax.checkpoint.foreign.foreign import Foreign, open_foreign
from sphinx_jax.checkpoint.foreign.huggingface_encoders import open_encoder, read_encoder_config
from sphinx_jax.config import ConfigError, family

ENCODERS = ("clip", "convnext", "dinov2", "blip2")


def open_parts(model: str, decoder: str | Path, encoders: Mapping[str, str | Path]) -> Foreign:
    """The parts as one foreign model, reading no array.

    Args:
      model: name of the family whose views, and whose choice of encoders, are taken (`sphinx_1k`).
      decoder: a published or Hugging Face folder of a language model; brings the tokenizer.
      encoders: folder of each encoder that the model has.

    Raises:
      ConfigError: an encoder of the model is not given, or one is given that it does not have.
    """
    wanted = family(model)
    for kind in ENCODERS:
        if bool(getattr(wanted, kind)) != (kind in encoders):
            raise ConfigError(f"{model} has {'a' if kind not in encoders else 'no'} {kind}: {_told(kind, encoders)}")
    words = open_foreign([decoder])
    fields = {"decoder": words.config.decoder}
    for kind, folder in encoders.items():
        fields |= read_encoder_config(kind, folder, view_size=getattr(wanted, kind).view_size)
    config = dataclasses.replace(wanted, **fields)
    names, tensors, folders = list(words.names), dict(words.tensors), [*words.folders]
    for kind, folder in encoders.items():
        found, stored = open_encoder(kind, folder, config)
        # two parts may use the same key
        names += [dataclasses.replace(name, foreign=f"{kind}:{name.foreign}") for name in found]
        tensors |= {f"{kind}:{key}": tensor for key, tensor in stored.items()}
        folders.append(Path(folder))
    return Foreign(tuple(folders), config, tuple(names), tensors, words.tokenizer)


def _told(kind: str, encoders: Mapping[str, str | Path]) -> str:
    return f"leave out --{kind}" if kind in encoders else f"give --{kind} DIR"
