"""What a batch keeps account of: sequences, the slots that they take, and the prompts that are being read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sphinx_jax.config import need
from sphinx_jax.generate.batching.guide import Guide
from sphinx_jax.generate.batching.pictures import Picture, Seen
from sphinx_jax.generate.batching.programs import Piece
from sphinx_jax.generate.batching.stops import Stops
from sphinx_jax.model.cache import Cache


@dataclass(eq=False)
class Job:
    """One prompt, and what follows it.

    Attributes:
      text: token ids, BOS first.
      most: tokens that may follow.
      seen: what the decoder reads of its picture, from the time the prompt is read on.
      said: tokens, and the log-probability of each.
      others: of some of them, by their numbers, the likeliest of those that could have stood there, with theirs.
      judged_from: where it is not continued but judged: the number of the first token of `text` that is.
      judged: log-probabilities of the tokens from there on.
    """

    text: list[int]
    most: int
    stops: Stops
    rule: tuple[float, float, int] = (0.0, 1.0, 0)  # temperature, top_p, top_k
    seed: int = 0
    picture: Picture | None = None
    seen: Seen | None = None
    streamed: bool = False
    cancelled: bool = False
    said: list[tuple[int, float]] = field(default_factory=list)
    others: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    state: int = 0  # of its own stops
    judged_from: int = 0
    begins: bool = False  # nothing but what all about its picture begin with, to be held for them
    guide: Guide | None = None  # through its grammar
    judged: list[float] = field(default_factory=list)
    ending: str = ""  # why it is about to end
    ended: str = ""  # why: stop, length, cancelled, judged
    error: BaseException | None = None

    @property
    def tokens(self) -> list[int]:
        return [token for token, _ in self.said]

    @property
    def ids(self) -> list[int]:
        """The whole sequence; -1 - w is position w of the picture."""
        return self.text[:1] + (self.seen.ids if self.seen else []) + self.text[1:] + self.tokens

    @property
    def before(self) -> list[int]:
        """As much of `ids` as need not be read where it is held already: what follows it has to be."""
        return self.ids[: self.judged_at - 1] if self.judged_from else self.ids[:-1]

    @property
    def judged_at(self) -> int:
        """The position of the first token that is judged."""
        return self.judged_from + (len(self.seen.ids) if self.seen else 0)

    @property
    def named(self) -> str | None:
        """Sequences with pictures of one name have the same picture."""
        return self.picture.as_read if self.picture else None

    def turned(self, start: int, count: int) -> np.ndarray:
        """(count,) int32: by which positions those from `start` on are turned; what was left out counts."""
        at = np.arange(start, start + count, dtype=np.int32)
        if self.seen is None or not self.seen.left_out:
            return at
        of_picture = np.concatenate([[0], self.seen.turned])
        inside = of_picture[np.minimum(at, len(of_picture) - 1)]
        return np.where(at < len(of_picture), inside, at + self.seen.left_out).astype(np.int32)

    def put(self, piece: Piece, row: int) -> None:
        """Make a row of a piece this sequence's, from the piece's `start` on."""
        start, length = piece.start[row], piece.tokens.shape[1]
        ids = self.ids[start : start + length]
        piece.tokens[row, : len(ids)] = ids
        piece.turned[row] = self.turned(start, length)

    @property
    def done(self) -> bool:
        return bool(self.ended) or self.error is not None

    @property
    def held(self) -> int:
        """As many of `before` are held for all about its picture: BOS and the picture's."""
        return min(1 + len(self.seen.ids), len(self.before)) if self.seen and not self.begins else 0

    @property
    def need(self) -> int:
        """Positions that it may take beside those."""
        return len(self.text) + (len(self.seen.ids) if self.seen else 0) + self.most - self.held

    def add(self, token: int, logprob: float) -> None:
        """Take one more token, unless it has ended, and those that must follow it."""
        if self.done:
            return
        self.said.append((token, logprob))
        ended = self._end_at(self.stops.after(self.state, token))
        if self.guide is not None:
            self.guide.take(token)
            ended = self._forced(ended)
        self._end(ended)

    def force(self) -> None:
        """Take the tokens that its grammar leaves no choice of."""
        self._end(self._forced(self.ended))

    def settle(self) -> None:
        """Whatever `add` was at when it was interrupted."""
        ended = self.ended or self.ending
        if self.guide is not None:
            self.guide.restart(self.tokens)
        if not ended:
            ended = self._end_at(self.stops.after(0, *self.tokens))
            if self.guide is not None:
                ended = self._forced(ended)
        self._end(ended)

    def _end_at(self, state: int) -> str:
        """Why it ends with this state of its stops; "" where it goes on."""
        self.state = state
        if state == self.stops.stopped:
            return "stop"
        return "length" if len(self.said) >= self.most else ""

    def _forced(self, ended: str) -> str:
        """Take what must follow, unless it has ended; why it has with that."""
        guide, whole = need(self.guide), True
        for token in guide.forced():
            whole = whole and not ended
            if whole:
                self.said.append((token, 0.0))
                ended = self._end_at(self.stops.after(self.state, token))
        return "stop" if guide.ended and whole and ended in ("", "length") else ended

    def _end(self, ended: str) -> None:
        """Written last: other threads take what has ended for whole."""
        self.ending = ended  # what is cut below does not show it any more
        error = self.guide.error if self.guide is not None else None
        # what a limit has cut off keeps what the grammar would have let end; a stream has shown it
        if ended == "length" and self.guide is not None and not self.streamed:
            whole = self.guide.whole(self.tokens)
            if whole is not None:
                count, closing = whole
                self.others = {number: other for number, other in self.others.items() if number < count}
                self.said[count:] = [(token, 0.0) for token in closing]
        self.error = self.error or error
        self.ended = self.ended or ended


@dataclass
class Slot:
    """A row of the cache: whose it is, and the ids whose keys and values are there, the first `held` of them among
    the beginnings."""

    sequence: Job | None = None
    ids: list[int] = field(default_factory=list)
    named: str | None = None  # the picture
    held: int = 0
    used: int = 0  # when it was last
    state: int = 0  # of the stop table

    def settle(self) -> None:
        """Be free again where its sequence has ended, which needs its picture no more."""
        if self.sequence is not None and self.sequence.done:
            self.sequence.seen = None
            self.sequence = None

    def shares(self, sequence: Job) -> int:
        """How many positions of a sequence are there, if some are in the row itself."""
        if self.held != sequence.held:
            return 0
        return in_common(self.ids, self.named, sequence.before, sequence.named)


def in_common(ids: Sequence[int], picture: str | None, others: Sequence[int], other: str | None) -> int:
    """How many positions two sequences begin with alike, each with the name of its picture."""
    same, most = 0, min(len(ids), len(others))
    if picture != other:  # the numbers of their positions say nothing
        most = next((i for i in range(most) if ids[i] < 0), most)
    while same < most:  # by halves: lists are compared faster than numbers
        middle = (same + most + 1) // 2
        if ids[same:middle] == others[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same


@dataclass
class Reading:
    """Prompts that are being read together, each for the slot it will take; or beginnings, for none."""

    sequences: list[Job]
    ids: list[list[int]]  # that are to be read of each
    slots: list[int]
    held: list[int]  # positions of each that were there before
    cache: Cache
    read: int = 0  # since then, of each
    begun: set[int] = field(default_factory=set)  # rows whose first token is there

    @property
    def beginnings(self) -> bool:
        return self.sequences[0].begins

    @property
    def left(self) -> int:
        """Positions that are still to be read. A last token that is left alone is read as answers are continued, which
        the last position of a picture cannot be."""
        left = max(len(ids) - held for ids, held in zip(self.ids, self.held, strict=True)) - self.read
        pictures = any(sequence.ids[-1] < 0 for sequence in self.sequences)
        return left if left > (0 if pictures else 1) else 0
