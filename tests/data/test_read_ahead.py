"""Files are read ahead of their turn by threads, in order."""

import threading

import pytest

from sphinx_jax.data import read_ahead as module
from sphinx_jax.data.read_ahead import read_ahead


def test_nothing_is_waited_for_in_vain_and_nothing_is_lost_before_an_error(monkeypatch):
    monkeypatch.setattr(module, "READERS", 3)
    pulled = []

    def numbers():
        for n in range(6):
            pulled.append(n)
            yield n
        raise OSError("gone")

    found = read_ahead(lambda n: n * n, numbers(), lambda n: False)
    assert next(found).result() == 0 and pulled == [0]
    assert [done.result() for _, done in zip(range(5), found, strict=False)] == [1, 4, 9, 16, 25]
    with pytest.raises(OSError, match="gone"):
        next(found)
    begun = threading.Barrier(3, timeout=60)  # as many are read at a time

    def read(n: int) -> int:
        if n < 3:
            begun.wait()
        return n

    assert [done.result() for done in read_ahead(read, iter(range(20)))] == list(range(20))
