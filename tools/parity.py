"""Compares this implementation with the reference's recorded numbers and prints a table of the worst differences.

python tools/parity.py RECORDS

Differences over their bound are bold in the table and named on stderr, and the exit status is 1.
"""

import argparse
import sys
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.measure import parity

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of records: */ckpt, */expected.npz, …, and images/")
    with plain_errors():
        rows = parity.measure(parser.parse_args().records)
    print(parity.table(rows))
    sys.exit("\n".join(parity.over(rows)) or 0)
