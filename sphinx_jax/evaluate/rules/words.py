"""Captions as words: the tokens of the Penn Treebank in lower case, without punctuation.

Held to the tokenizer that captions are scored with elsewhere (Stanford's, in Java) on what captions hold: contractions,
possessives, brackets, hyphens, numbers, abbreviations.
"""

from __future__ import annotations

import re

# as the public scorer has them; its brackets are in capitals, so those of captions in lower case stay
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
CURRENCIES = {"£": "#", "€": "$"}  # as that tokenizer writes them
ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|inc|ltd|co|corp|jr|sr|vs|etc|gen|sen|rep|gov|capt|lt|sgt|col|mt|ft|ph\\.d|jan|feb|"
    "mar|apr|aug|sept|sep|oct|nov|dec"
)
_TOKEN = re.compile(
    r"""
    \b(?:can(?=not\b)|gon(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b)|wan(?=na\b))  # two words written as one
  | (?:https?://|www\.)\S*[^\s.,] | [\w.]+@[\w.]+\w | </?[a-z][^<>]*> | [\#@][a-z]\w* | \bc\+\+
  | (?:[a-z]\.){2,}                                # u.s.
  | \b(?:ABBREVIATIONS)\. | \bno\.(?=\s+\d)
  | \b[a-z]\.(?=\s+\S)                            # an initial
  | [a-z]+(?=n['’`]t\b)                            # do n't
  | n['’`]t\b
  | ['’](?:s|m|d|ll|re|ve)\b | ['’]t(?=is\b|was\b) | ['’](?:cause|em)\b | \by['’](?=all\b)
  | ['’]\d0s\b
  | ['’]n['’](?=\s)                                # rock 'n' roll
  | \d+\ \d+/\d+ | \d+:\d+(?=[ap]m\b)
  | (?:(?<!\S)-)?\d+(?:[,.:/]\d+)*(?:st|nd|rd|th|s)?(?:-\w+)*\b  # 1,000 3.5 10:30 4-year-old 2nd
  | \.\d+
  | \b(?-i:[A-Z]+&[A-Z]+)\b
  | \w+(?:[-_./]\w+)*(?:['’](?!(?:s|m|d|ll|re|ve|t)\b)\w+)*  # olive-painted o'clock
  | \.\.\.+ | [!?]{2,} | -{2,} | ``|'' | [^\s\w]
""".replace("ABBREVIATIONS", ABBREVIATIONS),
    re.VERBOSE | re.IGNORECASE,
)


def tokens(text: str) -> list[str]:
    """Words of a caption."""
    found = (_written(token.lower()) for token in _TOKEN.findall(_apart(text.replace("\n", " "))))
    return [token for token in found if token not in PUNCTUATION]


def _apart(text: str) -> str:
    """A word before n't without the n that belongs to it."""
    return re.sub(r"\b([a-z]+)(n['’`]t)\b", r"\1 \2", text, flags=re.IGNORECASE)


def _written(token: str) -> str:
    token = BRACKETS.get(token, token).replace("’", "'").replace(" ", "\u00a0")  # of 2 1/2 one that does not part
    token = CURRENCIES.get(token, token)
    if token in ('"', "“", "”"):
        return "''"
    if re.fullmatch(r"\.{3,}|…", token):
        return "..."
    return "--" if re.fullmatch(r"-{2,}|—|–", token) else token
