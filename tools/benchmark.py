"""Measures this implementation beside something else on the same machine, in turn.

A mix of two checkpoints of 0.7 GB beside a copy of the same bytes, from a cold cache:
  python tools/benchmark.py mix --folder /tmp/bench

The training step beside the same decoder in transformers and PyTorch, and the frozen encoders (pip install
'sphinx_jax[torch]'):
  python tools/benchmark.py train --dim 512 --layers 4 --batch 8 --length 256

Answers beside transformers and PyTorch, each side in a process of its own: reading prompts, each token after them, and
64 requests that arrive together (pip install 'sphinx_jax[torch]'):
  python tools/benchmark.py generate --folder /tmp/bench

Sixteen questions about one picture, all at once beside one after the other:
  python tools/benchmark.py questions

A benchmark of docs/benchmarks.md asked at once, beside its questions answered one after the other:
  python tools/benchmark.py evaluate --checkpoint runs/quickstart/finetune --name vqav2 --path benchmarks/vqav2

Prepared data of 10,000 to 10 million items: opening, memory, reading; pictures beside Pillow alone; a list in lines:
  python tools/benchmark.py data --folder /tmp/bench

The step of a recipe on what is here, with fresh weights and made-up rows: milliseconds, tokens a second, MFU.
A GPU holds a few layers of the 13B model, and a layer is what is measured:
  python tools/benchmark.py step --config configs/sphinx_1k.py --stage finetune --config.model.decoder.layers=6 \\
      --config.stage.finetune.batch=8 --config.stage.finetune.text_batch=8

What a checkpoint costs that is written beside the steps, by windows of steps with one and without:
  python tools/benchmark.py saves --config configs/sphinx_tiny_1k.py --stage align --smoke --folder /tmp/saves

What fewer bits cost a recipe's model on held-out data:
  python tools/benchmark.py quantise --workdir runs/quickstart

What the settings of an answer cost and save (detail, grammars, keys and values in 8 bits), by a recipe's model on
held-out questions; docs/answering.md is made of it:
  python tools/benchmark.py answers --workdir runs/quickstart

The quickstart of another version and of this one, each from nothing: minutes and scores:
  python tools/benchmark.py quickstart --old 92eaf72 --folder /tmp/first_hour

All that wants an accelerator, on the one that is here, in under nine minutes on a GPU of 80 GB:
  python tools/benchmark.py device
"""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from absl import flags

from sphinx_jax import heap
from sphinx_jax.command import plain_errors
from sphinx_jax.measure.peers import mix

ROOT = Path(__file__).parents[1]
DEVICE_RECIPES = ("sphinx_1k", "sphinx_tiny_1k")  # the largest of which a few layers fit is measured


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    mix = kinds.add_parser("mix", help="tools/mix_weights.py beside cp")
    mix.add_argument("--folder", type=Path, required=True, help="where the checkpoints are made, and kept")
    mix.add_argument("--layers", type=int, default=10, help="69 MB each (default: %(default)s)")
    mix.add_argument("--sources", type=int, default=2, help="how many checkpoints (default: %(default)s)")
    mix.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    mix.add_argument("--method", default="linear", help="one with weights alone (default: %(default)s)")
    train = kinds.add_parser("train", help="our step beside transformers + PyTorch")
    train.add_argument("--what", choices=("decoder", "encoders", "all"), default="all", help="(default: %(default)s)")
    train.add_argument("--dim", type=int, default=512, help="width of the decoder (default: %(default)s)")
    train.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    train.add_argument("--batch", type=int, default=8, help="sequences (default: %(default)s)")
    train.add_argument("--length", type=int, default=256, help="tokens of each (default: %(default)s)")
    train.add_argument("--views", type=int, default=8, help="pictures for the encoders (default: %(default)s)")
    train.add_argument("--rounds", type=int, default=5, help="of which the best counts (default: %(default)s)")
    generate = kinds.add_parser("generate", help="our answers beside transformers + PyTorch")
    generate.add_argument("--folder", type=Path, required=True, help="where 1.1 GB of weights are made, and kept")
    generate.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    generate.add_argument(
        "--requests", type=int, default=64, help="that arrive together; 0 leaves that out (default: %(default)s)"
    )
    generate.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of both sides (default: %(default)s)"
    )
    questions = kinds.add_parser("questions", help="about one picture, at once beside one after the other")
    questions.add_argument("--layers", type=int, default=4, help="of the decoder (default: %(default)s)")
    questions.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    evaluate = kinds.add_parser("evaluate", help="a benchmark at once beside respond in a loop")
    evaluate.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint, or a training stage's folder")
    evaluate.add_argument("--name", default="vqav2", help="of the benchmark (default: %(default)s)")
    evaluate.add_argument("--path", type=Path, required=True, help="its files")
    evaluate.add_argument("--count", type=int, default=200, help="questions (default: %(default)s)")
    evaluate.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    data = kinds.add_parser("data", help="prepared data by its size, its pictures, and a list in lines")
    data.add_argument("--folder", type=Path, required=True, help="where the data is made, and kept")
    data.add_argument("--rounds", type=int, default=5, help="of which the best counts (default: %(default)s)")
    of_recipe = "also takes --config, --config.key=value, --stage and --smoke, as python -m sphinx_jax.main"
    step = kinds.add_parser(
        "step", help=f"the training step of a recipe; {of_recipe}", description=of_recipe, allow_abbrev=False
    )
    step.add_argument("--steps", type=int, default=10, help="that are timed (default: %(default)s)")
    saves = kinds.add_parser(
        "saves", help=f"what a checkpoint costs; {of_recipe}", description=of_recipe, allow_abbrev=False
    )
    saves.add_argument("--folder", type=Path, required=True, help="for the checkpoints; ends with one of them")
    saves.add_argument("--steps", type=int, default=20, help="in a window (default: %(default)s)")
    saves.add_argument("--rounds", type=int, default=3, help="windows of each sort (default: %(default)s)")
    few = kinds.add_parser("quantise", help="the held-out loss of a recipe's model in 8 and 4 bits")
    few.add_argument("--workdir", type=Path, required=True, help="of a recipe that was run, e.g. runs/quickstart")
    answers = kinds.add_parser("answers", help="what detail, grammars and a cache in 8 bits cost and save")
    answers.add_argument("--workdir", type=Path, required=True, help="of a recipe that was run, e.g. runs/quickstart")
    answers.add_argument("--limit", type=int, default=500, help="questions a task and domain (default: %(default)s)")
    first = kinds.add_parser("quickstart", help="of another version beside this one's: minutes and scores")
    first.add_argument("--old", required=True, metavar="REVISION", help="of the repository, e.g. a commit")
    first.add_argument("--folder", type=Path, required=True, help="for both runs; what is done is kept")
    first.add_argument("--smoke", action="store_true", help="both at nano size, to see that it runs")
    device = kinds.add_parser("device", help="all that wants an accelerator: parity, step, decoding, few bits, saves")
    device.add_argument("--out", type=Path, help="JSON lines that go on (default: runs/device/<the device>.jsonl)")
    device.add_argument("--only", nargs="+", default=(), metavar="NAME", help="parity decode step int8 nf4 saves")
    device.add_argument("--fresh", action="store_true", help="run anew what --out has")
    args, args.recipe = parser.parse_known_args()
    if args.recipe and args.kind not in ("step", "saves"):
        parser.error(f"unrecognized arguments: {' '.join(args.recipe)}")
    return args


def compare_mix(args: argparse.Namespace) -> Iterator[str]:
    yield from mix.measure(
        args.folder,
        Path(__file__).with_name("mix_weights.py"),
        layers=args.layers,
        sources=args.sources,
        rounds=args.rounds,
        method=args.method,
    ).lines()


def compare_quantised(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import quantised

    found = list(quantised.losses(args.workdir))
    for kind, loss, size in found:
        yield f"{kind:<8} loss {loss:.4f} ({loss - found[0][1]:+.4f})  decoder's matrices {size:8.2f} MiB"


def compare_train(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure.peers import encoders, sides, train

    yield sides.HEADER
    for pair in sides.pairs(train.product, args.rounds):
        yield pair.line()
    if args.what != "encoders":
        config = {"dim": args.dim, "layers": args.layers, "heads": args.dim // 64}
        for pair in sides.pairs(train.decoder, args.rounds, config, args.batch, args.length):
            yield pair.line()
    if args.what != "decoder":
        for pair in sides.pairs(encoders.encoders, args.rounds, args.views):
            yield pair.line()


def compare_generate(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure.peers import generate

    yield from generate.measure(args.folder, args.rounds, args.requests, dtype=args.dtype)


def compare_evaluations(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import benchmarks

    yield from benchmarks.measure(args.checkpoint, args.name, args.path, args.count, args.rounds)


def compare_questions(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import questions

    yield from questions.measure(questions.config(args.layers), args.rounds)


def compare_answers(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import answering

    yield from answering.measure(args.workdir, args.limit)


def compare_quickstarts(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import first_hour

    yield from first_hour.measure(ROOT, args.old, args.folder, ("--smoke",) if args.smoke else ())


def measure_data(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import data

    yield from data.measure(args.folder, args.rounds)


def measure_step(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import step

    yield from step.measure(*stage_of(args.recipe), args.steps)


def measure_saves(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure import step

    yield from step.measure_saves(*stage_of(args.recipe), args.steps, args.rounds, args.folder)


def measure_device(args: argparse.Namespace) -> Iterator[str]:
    from sphinx_jax.measure.device import checks

    sys.path.append(str(ROOT))
    recipes = {name: import_module(f"configs.{name}").get_config().to_dict() for name in DEVICE_RECIPES}
    setting = checks.Setting(str(ROOT / "tests" / "fixtures"), recipes)
    yield from checks.run(setting, args.out, args.only, args.fresh)


def stage_of(flags_given: list[str]) -> tuple[Any, str]:
    """The recipe, and the stage of it, that flags name."""
    from sphinx_jax import main
    from sphinx_jax.recipe import runner

    main.parse(["benchmark.py", *flags_given])
    if main.CONFIG.value is None or not flags.FLAGS.stage:
        raise ValueError("give --config and --stage, e.g. --config configs/sphinx_1k.py --stage finetune")
    return runner.parse(main.recipe_values(), origins=False), flags.FLAGS.stage


if __name__ == "__main__":
    with plain_errors(flags.Error):
        args = arguments()
        if args.kind != "mix":  # whose command runs without
            heap.keep_on_cpu()
        work = {
            "mix": compare_mix,
            "train": compare_train,
            "generate": compare_generate,
            "questions": compare_questions,
            "evaluate": compare_evaluations,
            "data": measure_data,
            "step": measure_step,
            "saves": measure_saves,
            "quantise": compare_quantised,
            "answers": compare_answers,
            "quickstart": compare_quickstarts,
            "device": measure_device,
        }
        for line in work[args.kind](args):
            print(line, flush=True)
