"""Compares this implementation with the reference's recorded numbers and prints a table of the worst differences.

python tools/parity.py RECORDS > docs/parity.md
"""

import argparse
from pathlib import Path

from sphinx_jax.evaluate import parity

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of records: */ckpt, */expected.npz, …, and images/")
    print(parity.table(parser.parse_args().records))
