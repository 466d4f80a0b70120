"""What the answers of a task may be, as grammars in Lark's form, which `generate.batching.guide` holds answers to.

They are narrower than what `data.grammar` reads: an answer that keeps to one is what its formatter would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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
# words with single blanks between them, without what would end a phrase or an answer
_PHRASE = r"""
PHRASE: /[^\s\p{Cc}<>\[\]#]+( [^\s\p{Cc}<>\[\]#]+)*/
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
WORDS: /[^<>\[\]\n#]+/
{_BOXES}{_PHRASE}""",
    "pose": rf"""answer: "[" keypoint (";" keypoint){{{len(COCO_KEYPOINTS) - 1}}} "]"
keypoint: NUMBER "," NUMBER | "-"
{_NUMBER}""",
    "multiple_choice": "answer: /[A-Z]/",
    "yes_no": 'answer: "yes" | "no"',
}
"""A rule `answer` for each task whose answers have a form, and the rules below it."""


def of_task(task: str) -> str:
    """Raises ConfigError for a task whose answers have no form."""
    if task not in TASKS:
        raise unknown("task with a grammar", task, TASKS)
    return TASKS[task]


def has_boxes(grammar: str) -> bool:
    """Whether it is a grammar with boxes, of a task."""
    return _BOXES in grammar


def of_choices(choices: Sequence[str]) -> str:
    """One of these texts."""
    if not choices or not all(choices):
        raise ConfigError("choices must be texts, at least one")
    return "answer: " + " | ".join(json.dumps(choice) for choice in choices)


def of_regex(pattern: str) -> str:
    """A text that a regular expression (of Rust's kind, without look-around) matches whole."""
    # a slash would end it; what follows a backslash is escaped already
    escaped = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)
    return f"answer: /{escaped}/"


def of_schema(schema: dict[str, Any]) -> str:
    """A text of JSON that keeps to a schema, without blanks that it does not need."""
    return f"answer: %json {json.dumps(schema | {'x-guidance': {'whitespace_flexible': False}})}"
