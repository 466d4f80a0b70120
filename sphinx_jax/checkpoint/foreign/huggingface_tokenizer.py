"""A tokenizer and its conversation form as transformers reads them: `tokenizer.json` and a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from sphinx_jax.data.conversation import ASSISTANT, HUMAN, STOP, SYSTEM
from sphinx_jax.data.conversation_form import dumped, generation_config, is_of_our_form, own_generation_config
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.data.tokenizer_files import CONFIG, GENERATION, JSON_FILE, MODEL_FILE, table
from sphinx_jax.data.tokenizer_models import from_sentencepiece

__all__ = ["CHAT_TEMPLATE", "from_sentencepiece", "write_tokenizer"]

# a message cannot hold the stop text, as in `conversation.clean`
ESCAPE = f"replace({json.dumps(STOP)}, {json.dumps(STOP.replace('#', ' #', 1))})"
# the published form (data/conversation.py); a first message of the system stands in place of ours
CHAT_TEMPLATE = (
    "{{ bos_token or eos_token }}"
    f"{{% if messages[0]['role'] == 'system' %}}{{{{ messages[0]['content'] | {ESCAPE} }}}}"
    f"{{% else %}}{{{{ {json.dumps(SYSTEM)} }}}}{{% endif %}}"
    f"{{{{ {json.dumps(chr(10) + STOP)} }}}}"
    "{% for message in messages if message['role'] != 'system' %}"
    f"{{{{ {json.dumps(HUMAN)} if message['role'] == 'user' else {json.dumps(ASSISTANT)} }}}}"
    f"{{{{ ' ' + message['content'] | trim | {ESCAPE} + {json.dumps(STOP)} }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ {json.dumps(ASSISTANT)} }}}}{{% endif %}}"
)


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer's files and what transformers needs beside them.

    Files that came with a chat template or a generation config of their own, and were never trained here since, stay as
    they are.  Any others get our form of conversation: its chat template, and in `generation_config.json` the stop
    that ends its answers.  A `tokenizer.model` alone gets the `tokenizer.json` that is the same tokenizer.

    Raises:
      BadTokenizer: a sentencepiece model that is not of LLaMA's form.
    """
    files = dict(tokenizer.files)
    ours = is_of_our_form(files)
    if JSON_FILE not in files and (ours or CONFIG not in files):
        files[JSON_FILE] = tokenizer.as_json()
    if ours or CONFIG not in files:
        files[CONFIG] = dumped(_config(files, tokenizer) | ({"chat_template": CHAT_TEMPLATE} if ours else {}))
    if ours or GENERATION not in files:
        made = own_generation_config if ours else generation_config
        files[GENERATION] = dumped(made(tokenizer.bos_id, tokenizer.eos_ids))
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _config(files: dict[str, bytes], tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer_config.json`: what was there, and that `tokenizer.json` is to be taken as it stands."""
    values = {key: _content(value) for key, value in table(files, CONFIG, "").items()}
    if MODEL_FILE in tokenizer.files:  # its own BOS and EOS stand nowhere else
        model = tokenizers.Tokenizer.from_buffer(files[JSON_FILE])
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        named = {key: model.id_to_token(i) for key, i in ids.items()}
        if getattr(model.model, "unk_token", None):
            named["unk_token"] = model.model.unk_token
        values = named | {"clean_up_tokenization_spaces": False} | {k: v for k, v in values.items() if v is not None}
    return values | {"tokenizer_class": "PreTrainedTokenizerFast"}


def _content(value: Any) -> Any:
    """A special token as its text, which every version of transformers takes."""
    return value["content"] if isinstance(value, dict) and "content" in value else value
