"""Whether models are of one kind, so that their weights mean the same: what arrays of equal shapes do not show."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import FAMILY, ModelConfig
from sphinx_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

TOKENIZER = "tokenizer"
# sizes, which arrays show, and what a mix brings together by itself
SHOWN = {
    "dim",
    "layers",
    "vocab_size",
    "multiple_of",
    "ffn_multiplier",
    "hidden_dim",
    "tied_embeddings",
    "bias",
    "lora_rank",
}
UNRELATED = {"name", "dtype", "decoder.moe.balance_weight"}  # what a model is called, runs in and trains with
HARMLESS = {"decoder.max_positions"}  # the same numbers, as far as they go
VIEWS_ONLY = {"pool_overview", "pool_crops"}


@dataclasses.dataclass(frozen=True)
class Described:
    """What is said of a model beside its arrays."""

    config: ModelConfig | None
    tokenizer: Tokenizer | None
    folder: Path | None = None  # where a chat template may lie


def differing_fields() -> set[str]:
    """What may be allowed to differ: `tokenizer`, and fields of a config, with the part they are in or without."""
    fields = _compared(FAMILY["sphinx_moe"])  # has every part
    return {TOKENIZER} | fields.keys() | {field.rpartition(".")[2] for field in fields}


def check_alike(models: Mapping[str, Described], allow: Collection[str] = ()) -> None:
    """Refuse models whose weights do not mean the same; what is harmless is a warning.

    Each is compared with the first that has a config, a tokenizer, a chat template.  A tokenizer may have more tokens
    than another whose pieces it has under the same numbers.

    Args:
      models: by folder, or what an error calls them.
      allow: fields that may differ, as `rope_theta` or `clip.activation`; `tokenizer` allows its pieces.

    Raises:
      BadCheckpoint: names the field, both values and both models.
    """
    _check_configs({name: model.config for name, model in models.items() if model.config is not None}, allow)
    _check_tokenizers({name: model.tokenizer for name, model in models.items()}, allow)
    templates = {name: found for name, model in models.items() if (found := chat_template(model.folder)) is not None}
    for name, other in _others(templates):
        if templates[name] != templates[other]:
            _log.warning("the chat templates of %s and %s differ; weights do not depend on them", name, other)


def _others(named: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The first beside each of the others."""
    first, *others = named or [""]
    return ((first, other) for other in others)


def _check_configs(configs: Mapping[str, ModelConfig], allow: Collection[str]) -> None:
    values = {name: _compared(config) for name, config in configs.items()}
    for name, other in _others(values):
        one, two = values[name], values[other]
        for field in sorted(one.keys() & two.keys()):
            if one[field] == two[field]:
                continue
            says = f"{field} is {one[field]} in {name}, {two[field]} in {other}"
            if field in HARMLESS:
                _log.warning("%s", says)
            elif not {field, field.rpartition(".")[2]} & set(allow):
                raise BadCheckpoint(f"{says}: they do not mix; --allow {field} takes one of them for all")


def _compared(config: ModelConfig) -> dict[str, Any]:
    """{field: value} of all that changes what weights mean, or might."""
    found = {field: value for field, value in _flat(config) if field.rpartition(".")[2] not in SHOWN}
    decoder = config.decoder
    found |= {"decoder.head_width": decoder.head_dim, "decoder.kv_heads": decoder.num_kv_heads}
    found["decoder.rope_scaling"] = decoder.rope_scaling or 1.0
    for kind in ("clip", "dinov2", "blip2"):
        if (vit := getattr(config, kind)) is not None:
            found[f"{kind}.position_grid"] = vit.position_grid or vit.grid
    left_out = UNRELATED if config.has_vision else UNRELATED | VIEWS_ONLY
    return {field: value for field, value in sorted(found.items()) if field not in left_out}


def _flat(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a config and of the configs in it; a part that is missing has none, so is not compared."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value


def _check_tokenizers(tokenizers: Mapping[str, Tokenizer | None], allow: Collection[str]) -> None:
    having = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}
    if having and (lacking := [name for name in tokenizers if name not in having]):
        _log.warning("%s has no tokenizer; it is taken to be that of %s", " and ".join(lacking), next(iter(having)))
    for name, other in _others(having):
        one, two = having[name], having[other]
        if one.files == two.files:
            continue
        mine, theirs = one.vocabulary(), two.vocabulary()
        shared = sorted(mine.keys() & theirs.keys())
        if (wrong := [i for i in shared if mine[i] != theirs[i]]) and TOKENIZER not in allow:
            at = wrong[0]
            raise BadCheckpoint(
                f"{TOKENIZER}: token {at} is {mine[at]!r} in {name}, {theirs[at]!r} in {other} ({len(wrong)} differ): "
                f"they do not mix; --allow {TOKENIZER} takes one of them for all"
            )
        if more := sorted(mine.keys() ^ theirs.keys()):
            large, small, pieces = (name, other, mine) if more[0] in mine else (other, name, theirs)
            _log.warning(
                "the tokenizer of %s has tokens that %s lacks, the first is %d %r; their rows are mixed all the same",
                large,
                small,
                more[0],
                pieces[more[0]],
            )
        for kind in ("bos_id", "eos_id"):
            if getattr(one, kind) != getattr(two, kind):
                _log.warning("%s is %d in %s, %d in %s", kind, getattr(one, kind), name, getattr(two, kind), other)


def fullest(tokenizers: Iterable[Tokenizer | None]) -> Tokenizer | None:
    """The tokenizer that has most tokens, of several the first."""
    return max(filter(None, tokenizers), key=lambda tokenizer: tokenizer.vocab_size, default=None)


def chat_template(folder: Path | None) -> str | None:
    """The chat template beside a model, as transformers keeps it."""
    if folder is None:
        return None
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text()
    try:
        return json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
