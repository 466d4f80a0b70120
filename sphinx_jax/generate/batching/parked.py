"""Rows that nobody continues, held apart: of conversations that take turns each finds what was read of it."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from sphinx_jax.config import ModelConfig
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.jobs import Slot
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.model.cache import Cache
from sphinx_jax.sharding import device_bytes

WORTH = 64  # positions, at least, for which a row is held
MOST = 3  # rows
FREE = 0.25  # of a device's memory, without which none is


@dataclass(eq=False)
class Parked:
    """What a slot had: its keys and values are the one row of a cache."""

    slot: Slot
    cache: Cache

    def copy(self, into: Cache, row: int, sizes: Sizes) -> Cache:
        """Row `row` of another cache, which is taken over, becomes this one."""
        cache = self.cache
        for size in sizes.positions:  # one after the other, as they are compiled
            if cache.positions < size <= into.positions:
                cache = programs.resized(cache, [0], size)
        return programs.copy_row(into, cache, 0, row)


def park(config: ModelConfig, sizes: Sizes, slot: Slot, cache: Cache, number: int) -> Parked:
    """Row `number` of a cache, held for what the slot says is there."""
    row = programs.empty(config, 1, sizes.room(len(slot.ids) - slot.held))
    return Parked(slot, programs.copy_row(row, cache, number, 0))


def is_worth_it(slot: Slot, taken: int = 0) -> bool:
    """Whether enough would be lost with a slot of which so many positions are taken over."""
    return slot.sequence is None and len(slot.ids) - max(slot.held, taken) >= WORTH


def has_room(cache: Cache, positions: int = 0) -> bool:
    """Whether the devices of a cache have memory to spare; a CPU does not say, and has.

    Args:
      positions: of all rows of one that is to be made beside it.
    """
    arrays = jax.tree.leaves(cache)
    if not arrays[0].is_fully_addressable:  # all processes have to do the same, and may have more or less to spare
        return False
    known = [stats for device in arrays[0].devices() if "bytes_limit" in (stats := device.memory_stats() or {})]
    more = device_bytes(cache) * positions / (arrays[0].shape[0] * cache.positions)
    return all(s["bytes_limit"] - s["bytes_in_use"] - more > FREE * s["bytes_limit"] for s in known)
