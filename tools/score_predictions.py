"""Scores what a model answered to a public benchmark, without the model.

From the original release, a parquet copy, a table of VLMEvalKit or a list of the authors' evaluation:
  python tools/score_predictions.py vqav2 data/vqav2 predictions.jsonl
  python tools/score_predictions.py refcoco refcoco/val-00000-of-00001.parquet predictions.jsonl --protocol reference

A line of predictions is {"key": …, "prediction": "text"}; keys are the benchmark's own ids, or numbers of questions.
"""

import argparse
import json
import sys
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.predictions import PROTOCOLS, score_predictions
from sphinx_jax.report.benchmark_lines import lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("path", type=Path, help="a file or folder of the benchmark, in any of its forms")
    parser.add_argument("predictions", type=Path, help="lines of {key, prediction}, or COCO's own results")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="official", help="default: official")
    parser.add_argument("--root", type=Path, help="where the benchmark's other files and pictures are")
    parser.add_argument("--json", action="store_true", help="print metric, score, per_item and parts as JSON")
    given = parser.parse_args()
    scored = score_predictions(given.benchmark, given.path, given.predictions, given.protocol, given.root)
    for note in scored.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(scored.as_json()) if given.json else lines(scored))


if __name__ == "__main__":
    with plain_errors():
        main()
