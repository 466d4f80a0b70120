"""Memory that is freed stays with the process, or goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

# 8 arrays of 32 MiB, one after the other: how often a page of them had to be had from the system
SCRIPT = """
import resource, sys
import numpy as np
from sphinx_jax import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for what in (heap.keep, heap.give_back, heap.keep):
    what()
    np.ones(2**22)
    before = faults()
    for _ in range(8):
        np.ones(2**22)
    print(faults() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the heap is not glibc's"
)
def test_what_is_freed_is_kept_or_given_back_as_was_said_last():
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    kept, given_back, again = map(int, said.split())
    assert kept < 8 and again < 8  # other allocations may take a page
    assert given_back >= 8 * 16  # where pages are as large as they get, 2 MiB
