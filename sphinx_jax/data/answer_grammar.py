"""What the answers of a task may be, as grammars in Lark's form, which `generate.batching.guide` holds answers to.

They are narrower than what `data.grammar` reads: an answer that keeps to one is what its formatter would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as short
from typing import Any

from sphinx_jax.data.grammar import COCO_KEYPOINTS, NO_BOX
from sphinx_jax.settings import ConfigError, unknown

_NUMBER = r"""
NUMBER: /0\.[0-9][0-9]|1\.00/
"""
_BOXES = f"""
box: "[" NUMBER ", " NUMBER ", " NUMBER ", " NUMBER "]"
several: "[" four (";" four)+ "]"
four: NUMBER "," NUMBER "," NUMBER "," NUMBER
boxes: box | several
{_NUMBER}"""
_LONGEST = 120  # characters of a phrase, so that it ends though a model says one thing again and again
# words with single blanks between them, without what would end a phrase or an answer
_PHRASE = rf"""
PHRASE: /[^\s\p{{Cc}}<>\[\]#]+( [^\s\p{{Cc}}<>\[\]#]+)*/ & /.{{1,{_LONGEST}}}/
"""
_REGIONS = f"""answer: region (", " region)* | "{NO_BOX}"
region: "<p>" PHRASE "</p>" box
{_BOXES}{_PHRASE}"""

TASKS = {
    "rec": "answer: box" + _BOXES,
    "relation": "answer: box" + _BOXES,
    "detection": f'answer: boxes | "{NO_BOX}"' + _BOXES,
    "text_detection": f'answer: boxes | "{NO_BOX}"' + _BOXES,
    "text_spotting": _REGIONS,
    "layout": _REGIONS,
    "grounded_caption": rf"""answer: (WORDS? grounded)+ WORDS?
grounded: "<p>" PHRASE "</p>" boxes
WORDS: /[^<>\[\]\n#]{{1,{2 * _LONGEST}}}/
{_BOXES}{_PHRASE}""",
    "pose": rf"""answer: "[" keypoint (";" keypoint){{{len(COCO_KEYPOINTS) - 1}}} "]"
keypoint: NUMBER "," NUMBER | "-"
{_NUMBER}""",
    "multiple_choice": "answer: /[A-Z]/",
    "yes_no": 'answer: "yes" | "no"',
}
"""A rule `answer` for each task whose answers have a form, and the rules below it."""


LONGEST = {
    "rec": "[0.00, 0.00, 0.00, 0.00]",
    "relation": "[0.00, 0.00, 0.00, 0.00]",
    "pose": "[" + ";".join(["0.00,0.00"] * len(COCO_KEYPOINTS)) + "]",
    "multiple_choice": "A",
    "yes_no": "yes",
}
"""An answer of the most characters, of each task of whose answers nothing is left where they are cut off."""


def of_task(task: str) -> str:
    """Raises ConfigError for a task whose answers have no form."""
    if task not in TASKS:
        raise unknown("task with a grammar", task, TASKS)
    return TASKS[task]


def has_boxes(grammar: str) -> bool:
    """Whether it is a grammar with boxes, of a task."""
    return _BOXES in grammar


def of_choices(choices: Sequence[str]) -> str:
    """One of these texts.

    Raises:
      ConfigError: there is none, or one that no answer can be, for answers have no blanks around them.
    """
    if isinstance(choices, str | bytes) or not isinstance(choices, Iterable):
        raise ConfigError(f"choices must be a list of texts, not {short(choices)}")
    choices = list(choices)
    if not choices:
        raise ConfigError("choices must be texts, at least one")
    for i, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice or choice != choice.strip():
            raise ConfigError(f"choices[{i}] must be a text without blanks around it, not {short(choice)}")
    return "answer: " + " | ".join(json.dumps(choice) for choice in choices)


def of_regex(pattern: str) -> str:
    """A text that a regular expression (of Rust's kind, without look-around) matches whole.

    Raises:
      ConfigError: it is no text.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"pattern must be a regular expression as text, not {short(pattern)}")
    # a slash would end it; what follows a backslash is escaped already
    escaped = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)
    return f"answer: /{escaped}/"


def of_schema(schema: Mapping[str, Any] | bool) -> str:
    """A text of JSON that keeps to a schema (True: any), without blanks that it does not need.

    Raises:
      ConfigError: it is no schema that JSON can write.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise ConfigError(f"schema must be a table of JSON Schema, or True for any JSON, not {short(schema)}")
    try:
        return f"answer: %json {json.dumps({**schema, 'x-guidance': {'whitespace_flexible': False}})}"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"schema cannot be written as JSON: {error}") from None
