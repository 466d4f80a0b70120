"""Captions as words: the tokens of the Penn Treebank in lower case, without punctuation.

Held to the tokenizer that captions are scored with elsewhere (Stanford's, in Java) on what captions hold: contractions,
possessives, brackets, hyphens, numbers, abbreviations.
"""

from __future__ import annotations

import re

# as the public scorer has them; its brackets are in capitals, so those of captions in lower case stay
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|inc|ltd|co|corp|jr|sr|vs|etc|gen|sen|rep|gov|capt|lt|sgt|col|mt|ft|no|jan|feb|"
    "mar|apr|aug|sept|sep|oct|nov|dec"
)
TWO_WORDS = ("cannot", "gonna", "gotta", "gimme", "lemme", "wanna")
_TOKEN = re.compile(
    r"""
    \b(?:can(?=not\b)|gon(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b)|wan(?=na\b))  # two words written as one
  | (?:https?://|www\.)\S+
  | (?:[a-z]\.){2,}                                # u.s.
  | (?:ABBREVIATIONS)\.(?=\s+\S)
  | [a-z]+(?=n['’]t\b)                             # do n't
  | n['’]t\b
  | ['’](?:s|m|d|ll|re|ve)\b
  | ['’]\d0s\b
  | \d+(?:[,.:]\d+)*(?:-\w+)*(?:st|nd|rd|th|s)?\b  # 1,000 3.5 10:30 4-year-old 2nd
  | \.\d+
  | \w+(?:[-_.&]\w+)*(?:['’](?!(?:s|m|d|ll|re|ve|t)\b)\w+)*  # olive-painted o'clock
  | \.\.\.+ | -{2,} | ``|'' | [^\s\w]
""".replace("ABBREVIATIONS", ABBREVIATIONS),
    re.VERBOSE,
)


def tokens(text: str) -> list[str]:
    """Words of a caption."""
    text = text.replace("\n", " ").lower()
    return [token for token in map(_written, _TOKEN.findall(_apart(text))) if token not in PUNCTUATION]


def _apart(text: str) -> str:
    """A word before n't without the n that belongs to it."""
    return re.sub(r"\b([a-z]+)n(['’])t\b", r"\1 n\2t", text)


def _written(token: str) -> str:
    token = BRACKETS.get(token, token).replace("’", "'")
    if token in ('"', "“", "”"):
        return "''"
    if re.fullmatch(r"\.{3,}|…", token):
        return "..."
    return "--" if re.fullmatch(r"-{2,}|—|–", token) else token
