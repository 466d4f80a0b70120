"""Memory that is freed stays with the process, or goes back to the system."""

import ctypes
import os
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
# a step that takes 33 MiB, more than glibc keeps by itself, beside its result, as a command carries it out
STEP = """
import resource
from sphinx_jax import heap

heap.keep_on_cpu()
import jax
import jax.numpy as jnp

step = jax.jit(lambda x: jnp.sort(jnp.outer(x, x)).sum())
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(jnp.arange(2960.0)).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # the heap may still grow
"""

of_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the heap is not glibc's"
)


def printed(script):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return map(int, done.stdout.split())


@of_glibc
def test_what_is_freed_is_kept_or_given_back_as_was_said_last():
    kept, given_back, again = printed(SCRIPT)
    assert kept < 8 and again < 8  # other allocations may take a page
    assert given_back >= 8 * 16  # where pages are as large as they get, 2 MiB


@of_glibc
def test_a_step_finds_the_memory_of_the_one_before():
    (faults,) = printed(STEP)
    assert faults < 500  # of 8,500 pages
