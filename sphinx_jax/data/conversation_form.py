"""How a model is to be talked to, as transformers keeps it: `generation_config.json` and a chat template.

What lies in a folder is kept through every copy, byte for byte.  Training teaches one form, that of
`data/conversation.py`, in which the EOS is never learnt and an answer ends in `STOP`: so a trained model's files
say nothing of another one, and a copy for transformers says this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.data.conversation import STOP
from sphinx_jax.data.tokenizer import Tokenizer, from_files
from sphinx_jax.data.tokenizer_files import CONFIG, GENERATION, TEMPLATE, table

STOPS = "stop_strings"


def generation_config(bos_id: int | None, eos_ids: Sequence[int]) -> dict[str, Any]:
    """Ids that begin and end a text, in transformers' form: one EOS as a number, several as a list, none as None."""
    several = list(eos_ids) if len(eos_ids) > 1 else None
    return {"bos_token_id": bos_id, "eos_token_id": several or next(iter(eos_ids), None)}


def own_generation_config(bos_id: int | None, eos_ids: Sequence[int]) -> dict[str, Any]:
    """The same for our form of conversation; `generate` of transformers takes its stops with `tokenizer=`."""
    return generation_config(bos_id, eos_ids) | {STOPS: [STOP]}


def is_of_our_form(files: Mapping[str, bytes]) -> bool:
    """Whether a tokenizer's files ask for no other form: no chat template, no generation config without our stop."""
    if TEMPLATE in files or "chat_template.json" in files or table(files, CONFIG, "").get("chat_template"):
        return False
    return GENERATION not in files or STOP in (table(files, GENERATION, "").get(STOPS) or ())


def as_trained(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a model that is trained in our form: its chat template goes, of its generation config the EOS
    ids stay."""
    if is_of_our_form(tokenizer.files):
        return tokenizer
    files = {name: content for name, content in tokenizer.files.items() if not name.startswith("chat_template")}
    if GENERATION in files:
        files[GENERATION] = dumped(own_generation_config(tokenizer.bos_id, tokenizer.eos_ids))
    config = table(files, CONFIG, "")
    if config.pop("chat_template", None):
        files[CONFIG] = dumped(config)
    return from_files(files)


def dumped(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode()
