"""Programs of a batch compiled before they are needed: in a running batch a request would wait for each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.batch import Batch, Beside
from sphinx_jax.paths import MIN_SECONDS, PROGRAMS


def keep_programs() -> None:
    """Keep what is compiled for other processes, where nothing says yet where to."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float(MIN_SECONDS))
    # whatever was compiled before has settled that there is none
    compilation_cache.reset_cache()


def warm_up(batch: Batch) -> Iterator[str]:
    """Compile whatever may be needed, saying before each program what it is."""
    sizes, config = batch.sizes, batch.config
    visual = batch.pictures.warm_up() if config.has_vision else None
    for positions, larger in itertools.zip_longest(sizes.positions, sizes.positions[1:]):
        pieces = [p for p in sizes.pieces if p <= positions]
        for count, size in itertools.product(sizes.together(positions), pieces):
            for beside in _beside(batch, count, sizes.beginnings[-1], visual):
                yield f"reading {count} x {size} of {positions}"
                read, cache = programs.nothing_read(count, size), programs.empty(config, count, positions)
                _, hidden = programs.prefill(config, batch.leaves, cache, *read, *beside)
            allowed = batch.allowed([None] * count)
            programs.begin(config, batch.leaves, hidden, read.start, programs.idle(count), batch.table, allowed)
            programs.judge(config, batch.leaves, hidden, read.tokens)
        for rows, more in itertools.zip_longest(sizes.rows, sizes.rows[1:]):
            yield f"continuing {rows} of {positions}"
            batch.warm_going_on(rows, positions, _beside(batch, rows, sizes.most_beginnings(rows), visual))
            cache = programs.empty(config, rows, positions)
            for fewer in (p for p in sizes.positions if p <= positions):
                for count in sizes.together(fewer):
                    cache = programs.copy_row(cache, programs.empty(config, count, fewer), 0, 0)
                    programs.copy_row(programs.empty(config, count, fewer), cache, 0, 0)
            if larger:
                programs.resized(cache, range(rows), larger)
            if more:
                grown = programs.resized(cache, [0] * more, positions)
                programs.resized(grown, [0] * rows, positions)
    if visual is not None:
        yield "holding pictures"
        batch.beginnings.warm_up()


def _beside(batch: Batch, rows: int, most: int, visual: jax.Array | None) -> Iterator[Beside]:
    """What so many rows are read with: pictures, or beginnings, at most so many."""
    yield None, None
    if visual is not None:
        yield (visual,) * rows, None
        for places in batch.sizes.beginnings:
            if places <= most:
                yield None, batch.beginnings.nobodys(places, rows)
