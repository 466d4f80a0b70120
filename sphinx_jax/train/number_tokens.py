"""A start for number pieces: a tokenizer whose two-decimal numbers are single pieces knows nothing of their order."""

from __future__ import annotations

import re

import jax
import numpy as np

from sphinx_jax.data.tokenizer import Tokenizer

REACH = 0.1  # numbers this far apart are hardly alike
SPREAD = 0.1  # root mean square of the start, that of a trained table


def order_numbers(table: jax.Array, tokenizer: Tokenizer, seed: int) -> jax.Array:
    """Embedding table (V, D) whose pieces “0.00” to “1.00” are near where the numbers are near.

    Each dimension is a smooth random function of the number (a Gaussian process of length `REACH`).  With random
    vectors a model has to learn a hundred unrelated classes for each coordinate before it learns what to point at.
    A tokenizer without such pieces leaves the table as it is.
    """
    found = ((i, tokenizer.decode([i])) for i in range(tokenizer.vocab_size))
    values = {i: float(text) for i, text in found if re.fullmatch(r"[01]\.\d\d", text)}
    if not values:
        return table
    number = np.array(list(values.values()))
    alike = np.exp(-np.square((number[:, None] - number) / REACH) / 2)
    factor = np.linalg.cholesky(alike + 1e-6 * np.eye(len(number)))
    smooth = SPREAD * factor @ np.random.default_rng(seed).normal(size=(len(number), table.shape[1]))
    return table.at[np.array(list(values))].set(smooth.astype(table.dtype))
