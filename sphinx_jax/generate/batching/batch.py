"""The running batch: sequences enter it and leave it one by one, whatever the others are at.

Prompts are read apart, a few rows and a piece at a time, and then take a slot among those that are being continued; so
long prompts do not hold up answers. Rows, positions and pieces come in few sizes, so few programs are compiled.
"""

from __future__ import annotations

import itertools
import math
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.beginnings import Beginnings
from sphinx_jax.generate.batching.jobs import Job, Reading, Slot, in_common
from sphinx_jax.generate.batching.pictures import Pictures
from sphinx_jax.generate.batching.programs import NOTHING, STEPS
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.generate.batching.slots import SHARED, Slots
from sphinx_jax.generate.batching.stops import Stops
from sphinx_jax.model.blueprint import Leaves
from sphinx_jax.model.cache import Common

Beside = tuple[tuple[jax.Array, ...] | None, Common | None]  # pictures and beginnings of rows that are read
SOON = 4  # steps between two looks where somebody reads along, and between two pieces of others' prompts
BUSY = 8  # and where somebody waits for a slot


class Batch:
    """Sequences on their way, and those that wait for a slot.

    Args:
      leaves: as `blueprint.apart` gives them.
      pictures: what looks at those of the sequences.
      stops: what ends a sequence on the device; sequences may have more, which the host finds.
      sizes: of its programs.
    """

    def __init__(self, config: ModelConfig, leaves: Leaves, pictures: Pictures, stops: Stops, mesh: Mesh, sizes: Sizes):
        self.config, self.leaves, self.pictures, self.mesh = config, leaves, pictures, mesh
        self.stops, self.sizes = stops, sizes
        self.waiting: deque[Job] = deque()
        self.table = jax.numpy.asarray(stops.table(config.decoder.vocab_size))
        # with the same model: pictures that it has read are copied.  Weakly, or two that hold each other would stay
        self.neighbour: weakref.ref[Batch] | None = None
        self._ticks = itertools.count(1)
        self.forget()

    def forget(self) -> None:
        """Nothing is on its way, and nothing of what was."""
        self._slots = Slots(self.config, self.sizes)
        self._reading: Reading | None = None
        self._entering: list[Job] = []
        self.beginnings = Beginnings(self.config, self.sizes)

    @property
    def active(self) -> list[int]:
        """Slots whose sequence is being continued."""
        return [i for i, slot in enumerate(self._slots) if slot.sequence is not None and not self._is_read(i)]

    @property
    def _other(self) -> Batch | None:
        return self.neighbour() if self.neighbour else None

    @property
    def streams(self) -> bool:
        """Whether somebody reads along what is being continued."""
        return any(need(self._slots[i].sequence).streamed for i in self.active)

    @property
    def _is_read_along(self) -> bool:
        """Whether somebody reads along, here or beside."""
        return self.streams or bool(self._other and self._other.streams)

    def _is_read(self, slot: int) -> bool:
        return self._reading is not None and slot in self._reading.slots

    def step(self) -> None:
        """Read some of the prompts that wait, then continue all answers by a few tokens.

        An error of the device ends all that were on their way with it; where the step is interrupted they go on with
        the next.
        """
        try:
            with jax.set_mesh(self.mesh):
                self._drop_cancelled()
                # whoever is answered, here or beside, waits for about one piece of others' prompts
                room = self.sizes.between if self.active or (self._other and self._other.active) else math.inf
                while room > 0 and (self._reading or self._admit()):
                    positions, ended = self._read()
                    # who has his answer already is told before others are read, and who reads along his first token
                    if ended or (self._is_read_along and room == math.inf):
                        break
                    room -= positions
                if self.active:
                    if not self.waiting and self._reading is None:
                        self._slots.shrink()
                        self.beginnings.shrink(len(self._slots), self._slots.named)
                    self._continue()
        except BaseException as error:
            running = [slot.sequence for slot in self._slots if slot.sequence is not None]
            running += [s for s in self._entering if s not in running]
            begun = {s.named for s in self._reading.sequences if s.begins} if self._reading else set()
            running += [s for s in list(self.waiting) if s.named in begun and s not in running]
            self.forget()
            if not isinstance(error, Exception):
                for sequence in running:
                    sequence.settle()
                self.waiting.extendleft(reversed([s for s in running if not s.done and s not in self.waiting]))
                raise
            if not running:
                raise
            # what the frames of the error hold is not kept with it
            traceback.clear_frames(error.__traceback__)
            for sequence in running:
                sequence.seen = None
                if not sequence.done:
                    sequence.error = error

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.sequence is not None and slot.sequence.cancelled:
                slot.sequence.ended = slot.sequence.ended or "cancelled"
        for i in self.active:
            self._slots[i].settle()
        for sequence in [s for s in list(self.waiting) if s.cancelled or s.done]:
            sequence.seen = None
            if not sequence.done:
                sequence.ended = "cancelled"
            self.waiting.remove(sequence)

    def _admit(self) -> bool:
        """Give slots to the next that wait, and begin to read their prompts."""
        room = min(len(self._slots.free) + self.sizes.rows[-1] - len(self._slots), len(self.waiting))
        if not room:
            return False
        if self._is_read_along:  # pictures and prompts of many take long
            room = 1
        count = next(p for p in reversed(self.sizes.prompts) if p <= room)
        self._entering = [self.waiting[i] for i in range(count)]
        self._look(self._entering)
        if self.beginnings.lacks(self._entering[0]):
            waiting = [s for s in self._entering if self.beginnings.lacks(s)]
            other = self._other
            there = [s for s in waiting if not other.beginnings.lacks(s)] if other else []
            if not other or waiting[0] not in there:
                self._read_beginnings([s for s in waiting if s not in there])
                return True
            self._take_over_beginnings(there, other.beginnings)
        self._entering = self._first_of_each([s for s in self._entering if not self.beginnings.lacks(s)])
        count = next(p for p in reversed(self.sizes.prompts) if p <= len(self._entering))

        def positions(count: int) -> int:
            return self.sizes.room(max(s.need for s in self._entering[:count]))

        count = max(p for p in self.sizes.prompts if p <= count and p in self.sizes.together(positions(p)))
        # before one of them takes another's place
        sources = [self._slots.best_source(s) for s in self._entering[:count]]
        lefts = [len(s.ids) - held for s, (held, _) in zip(self._entering, sources, strict=False)]
        count = self.sizes.worth(lefts, positions(count))
        sources = sources[:count]
        chosen = self._entering = self._entering[:count]
        for sequence in chosen:
            self.waiting.remove(sequence)
        larger = positions(count) < self._slots.positions
        if larger and not self.active and all(source is None for _, source in sources):
            self._slots.clear()  # of what was longer nothing goes on here
        self._make_room(count, positions(count))
        self.beginnings.use(chosen)
        ids = [sequence.ids for sequence in chosen]
        reading = Reading(chosen, ids, [], [], programs.empty(self.config, count, positions(count)))
        for row, (sequence, (shared, source)) in enumerate(zip(chosen, sources, strict=True)):
            if source is not None:
                reading.cache = self._slots.copy(reading.cache, row, source)
            state = self.stops.after(0, *sequence.tokens)
            # nothing can be taken from it until it is read: what it shares lies with those that are being read
            slot = Slot(sequence, [], sequence.named, sequence.held, next(self._ticks), state)
            reading.slots.append(self._slots.enter(slot, shared, source))
            reading.held.append(shared)
        self._reading, self._entering = reading, []
        return True

    def _take_over_beginnings(self, waiting: Sequence[Job], others: Beginnings) -> None:
        """Copy what these sequences begin with from others, for some of their pictures, the first's among them."""
        firsts = self._place_for_beginnings(waiting)
        busy = self._slots.named | {s.named for s in firsts}
        self.beginnings.take_over(others, [need(s.named) for s in firsts], busy, len(self._slots))

    def _place_for_beginnings(self, waiting: Sequence[Job]) -> list[Job]:
        """One sequence for each of some of their pictures, for which there is a place then."""
        firsts = list({s.named: s for s in waiting}.values())
        positions = self.sizes.room(self.beginnings.positions)
        firsts = firsts[: max(p for p in self.sizes.together(positions) if p <= len(firsts))]
        # the slots that they are going to take, without which there may be no place for what is read
        self._make_room(len(firsts), max(s.need for s in firsts))
        return firsts

    def _read_beginnings(self, waiting: Sequence[Job]) -> None:
        """Begin to read what these sequences begin with, for some of their pictures."""
        firsts = self._place_for_beginnings(waiting)
        positions = self.sizes.room(self.beginnings.positions)
        jobs = [Job(s.text[:1], 0, self.stops, picture=s.picture, seen=s.seen, begins=True) for s in firsts]
        cache = programs.empty(self.config, len(jobs), positions)
        self._reading = Reading(jobs, [job.ids for job in jobs], [], [0] * len(jobs), cache)
        self._entering = []

    def _look(self, chosen: Sequence[Job]) -> None:
        """Positions for the pictures of these prompts, after BOS."""
        new = [s for s in chosen if s.picture is not None and s.seen is None]
        for sequence, seen in zip(new, self.pictures.see([need(s.picture) for s in new]), strict=True):
            sequence.seen = seen

    def _first_of_each(self, chosen: Sequence[Job]) -> list[Job]:
        """Those to be read now: of prompts that begin alike (questions about one picture, several answers to one
        question) the first, where it is worth a pass of its own that the others take the beginning over from it."""
        now: list[tuple[Job, list[int]]] = []
        saved = 0
        for sequence in chosen:
            held, before = self._slots.best_source(sequence)[0], sequence.before
            shared = max((in_common(ids, s.named, before, sequence.named) for s, ids in now), default=0)
            if shared < max(sequence.held + SHARED, held + 1):
                now.append((sequence, sequence.ids))
            else:
                saved += shared - held
        return [sequence for sequence, _ in now] if saved > self.sizes.overhead else list(chosen)

    def _make_room(self, more: int, positions: int) -> None:
        """Slots for so many more, with so many positions; to begin with, few may need few beginnings."""
        if self._slots.make_room(more, positions):
            self.beginnings.shrink(len(self._slots), {s.named for s in self._entering})

    def _read(self) -> tuple[int, bool]:
        """One piece of the prompts that are being read; those that are read take their slots.

        A last token that is left alone is read as answers are continued.  Returns the positions that were read, and
        whether something has ended with them.
        """
        reading, size = self._reading, 0
        assert reading is not None
        count, room = len(reading.sequences), reading.cache.positions
        if reading.left:
            most = self.sizes.between if self._is_read_along else math.inf
            size = self.sizes.piece(reading.left, count, room, most)
            piece = programs.nothing_read(count, size)
            # as they were when reading began: with its first token more of a sequence may be among the beginnings
            rows = [self._slots[i] for i in reading.slots] or reading.sequences
            for row, (sequence, held) in enumerate(zip(reading.sequences, reading.held, strict=True)):
                # a piece that would not fit into the cache reads again what lies before it
                piece.start[row] = min(held + reading.read, rows[row].held + room - size)
                sequence.put(piece, row)
            visual = self._visual(reading.sequences) if (piece.tokens < 0).any() else None
            common = self.beginnings.common(rows, range(count))
            reading.cache, hidden = programs.prefill(self.config, self.leaves, reading.cache, *piece, visual, common)
            self._begin(hidden, piece.start)
            self._judge(hidden, piece.start)
            reading.read += size
        if reading.left:
            return count * size, False
        self._reading = None
        if reading.beginnings:
            busy = self._slots.named | {s.named for s in reading.sequences}
            for row, sequence in enumerate(reading.sequences):
                self.beginnings.put(need(sequence.named), reading.cache, row, busy, len(self._slots))
            return count * size, False
        for row, (number, sequence) in enumerate(zip(reading.slots, reading.sequences, strict=True)):
            self._slots.cache = programs.copy_row(self._slots.cache, reading.cache, row, number)
            slot = self._slots[number]
            read = reading.ids[row]
            slot.ids = read if row in reading.begun else read[:-1]
            if sequence.judged_from:
                sequence.ended = sequence.ended or "judged"
            slot.settle()
        return count * size, any(sequence.done for sequence in reading.sequences)

    def _begin(self, hidden: jax.Array, start: np.ndarray) -> None:
        """The first tokens of those whose prompts end with the piece that is being read from `start` (P,) on."""
        reading = need(self._reading)
        last = np.array([len(ids) for ids in reading.ids], np.int32) - 1 - start
        if reading.beginnings:
            return
        open_ = [row for row, s in enumerate(reading.sequences) if row not in reading.begun and not s.judged_from]
        ends = [row for row in open_ if 0 <= last[row] < hidden.shape[1]]
        if not ends:
            return
        self._choose(hidden, last, [slot if row in ends else None for row, slot in enumerate(reading.slots)])
        reading.begun.update(ends)

    def _choose(self, hidden: jax.Array, last: np.ndarray, slots: Sequence[int | None]) -> None:
        """The next token of the sequences in these slots, from what the last layer made of them at `last` (P,)."""
        going = [slot for slot in slots if slot is not None]
        rows = self._slots.rows([slot or 0 for slot in slots], going)
        allowed = self.allowed([None if slot is None else self._slots[slot].sequence for slot in slots])
        inside = np.clip(last, 0, hidden.shape[1] - 1)
        rows, made = programs.begin(self.config, self.leaves, hidden, inside, rows, self.table, allowed)
        states, (new, chances, others) = jax.tree.map(np.asarray, (rows.state, made))
        for row, slot in enumerate(slots):
            if slot is not None and (sequence := self._slots[slot].sequence) is not None:
                self._slots[slot].state = int(states[row])
                if others is not None and not sequence.done:
                    tokens, likely = (x[row] for x in others)
                    fits = np.isfinite(likely)
                    sequence.others[len(sequence.said)] = tokens[fits], likely[fits]
                sequence.add(int(new[row]), float(chances[row]))

    def allowed(self, sequences: Sequence[Job | None]) -> np.ndarray | None:
        """(P, V) bool: the tokens that each may go on with; None, any."""
        return None

    def _judge(self, hidden: jax.Array, start: np.ndarray) -> None:
        """Of those to be judged: how likely is what follows the positions of the piece that is being read."""
        sequences, length = need(self._reading).sequences, hidden.shape[1]
        following = np.full((len(sequences), length), NOTHING, np.int32)
        for row, sequence in enumerate(sequences):
            if sequence.judged_from:
                # a piece may read again what was judged
                first = sequence.judged_at + len(sequence.judged)
                tokens = sequence.ids[max(first, start[row] + 1) : start[row] + 1 + length]
                place = max(first - start[row] - 1, 0)
                following[row, place : place + len(tokens)] = tokens
        if (following == NOTHING).all():
            return
        chances = np.asarray(programs.judge(self.config, self.leaves, hidden, np.maximum(following, 0)))
        for sequence, those, wanted in zip(sequences, chances, following != NOTHING, strict=True):
            sequence.judged += those[wanted].tolist()

    def _visual(self, sequences: Sequence[Job | None]) -> tuple[jax.Array, ...]:
        """What is read of the picture of each; of another's, where there is none."""
        seen = [sequence.seen if sequence else None for sequence in sequences]
        one = next(s for s in seen if s is not None)
        return tuple((s or one).visual for s in seen)

    def _continue(self) -> None:
        """A few more tokens for every answer."""
        active = self.active
        sequences = [self._slots[i].sequence for i in active]
        waiting = bool(self.waiting) or self._reading is not None
        may_enter = self._reading is not None or (bool(self.waiting) and len(active) < self.sizes.rows[-1])
        steps = SOON if may_enter else BUSY if waiting else STEPS
        if self._is_read_along:
            steps = SOON
        # then others may come, or those that go on take fewer rows
        fewer = [size for size in self.sizes.rows if size < len(self._slots)]
        enough = len(active) // self.sizes.leaving if waiting else len(active) - max([0, *fewer])
        enough = max(1, enough)
        arguments = (self._slots.rows(range(len(self._slots)), active), self.table, np.int32(steps), np.int32(enough))
        common = self.beginnings.common(list(self._slots), active)
        cache = self._slots.cache
        self._slots.cache, rows, *new = programs.decode(self.config, self.leaves, cache, *arguments, common)
        states, made, chances = (np.asarray(x) for x in (rows.state, *new))
        for i, sequence in zip(active, sequences, strict=True):
            assert sequence is not None
            slot = self._slots[i]
            new = [token for token in made[i].tolist() if token != NOTHING]
            # the last one is not in the cache yet
            slot.ids = (sequence.ids + new)[:-1]
            for token, chance in zip(new, chances[i].tolist(), strict=False):
                sequence.add(token, chance)
            slot.used, slot.state = next(self._ticks), int(states[i])
            slot.settle()

    def warm_going_on(self, rows: int, positions: int, beside: Iterable[Beside]) -> None:
        """Compile what continues so many rows."""
        few = np.int32(1)
        for seen, common in beside:
            if seen is None:
                cache, idle = programs.empty(self.config, rows, positions), programs.idle(rows)
                programs.decode(self.config, self.leaves, cache, idle, self.table, few, few, common)
