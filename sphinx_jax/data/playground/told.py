"""Pictures told in words: text-only conversations in which a grounded caption stands for the picture.

What a language model brings to SPHINX is that it can find in its context what a question asks for.  A nano decoder
learns that from these before it ever sees a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sphinx_jax.data.conversation import Item

# tasks whose answers are all in a grounded caption
ANSWERABLE = ("vqa", "rec", "reg", "relation", "detection", "multiple_choice", "short_caption")
# kinds of short answers that ask for more than things, colours and boxes
UNTOLD = ("where", "read")


def told(item: Item) -> Item | None:
    """The item as a text-only conversation; None where its caption does not tell everything that is asked."""
    turns = dict(zip(item.tasks, item.turns, strict=True))
    if "grounded_caption" not in turns:
        return None
    scene = turns["grounded_caption"][1]
    asked = [
        turn
        for task, kind, turn in zip(item.tasks, item.kinds or item.tasks, item.turns, strict=True)
        if task in ANSWERABLE and kind not in UNTOLD
    ]
    if not asked:
        return None
    (question, answer), *rest = asked
    opening = (f"Imagine a picture. {scene}\n{question}", answer)
    count = 1 + len(rest)
    return replace(item, image=None, turns=(opening, *rest), tasks=("text",) * count, kinds=(), id=f"told-{item.id}")


def told_all(items: Sequence[Item]) -> list[Item]:
    return [made for made in map(told, items) if made is not None]
