"""Mixes the weights of checkpoints into one checkpoint, in the memory of a few rows.

The paper's mix of two pre-trainings, β = 0.3:
  python tools/mix_weights.py --method linear --sources real/ synthetic/ --weights 0.3 0.7 --out mix/

What two fine-tunes learnt, added to their base; published folders in, a published folder out:
  python tools/mix_weights.py --method ties --sources chat/ grounding/ --weights 1 1 --set density=0.5 \\
      --base SPHINX/ --out both/ --to accessory --dtype bfloat16

A mergekit recipe on any checkpoints, first without reading an array:
  python tools/mix_weights.py --recipe merge.yaml --out merged/ --dry-run

The weights that are best on held-out data of a recipe, found without writing a mix; then the mix:
  python tools/mix_weights.py --learn --sources real/ synthetic/ --workdir runs/quickstart --report found/ --out mix/

The same on public benchmarks, as docs/benchmarks.md has their folders; one folder chooses, another is reported:
  python tools/mix_weights.py --sweep --sources real/ synthetic/ --benchmarks val/ test/ --judge score --report found/

Where two fine-tunes fight, before they are mixed: cosine and sign conflict of their changes, by layer and module:
  python tools/mix_weights.py --interference --sources chat/ grounding/ --base SPHINX/ --out interference/

A weight may depend on the place, as YAML: a list runs over the depth, a table over patterns or kinds of modules
(attention, ffn, norms, projections, embeddings):
  --weights "{attention: [0.2, 0.8], 'decoder/**': 0.5, '*': 1}" 0.5

Methods:
{methods}.
"""

import argparse
import json
import textwrap
from dataclasses import replace
from pathlib import Path

from sphinx_jax.checkpoint.foreign import convert
from sphinx_jax.command import plain_errors
from sphinx_jax.config import ConfigError
from sphinx_jax.report import interference as interference_report
from sphinx_jax.weight_mix import settings as mix_settings
from sphinx_jax.weight_mix.methods import METHODS
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.write import new_folder
from sphinx_jax.weight_mix.write import write as write_mix


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.replace("{methods}", textwrap.indent(textwrap.fill(", ".join(METHODS), 110), "  ")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", default="linear", help="how to mix (default: %(default)s)")
    parser.add_argument(
        "--sources", nargs="+", metavar="FOLDER", help="checkpoints: ours, Orbax, published, Hugging Face"
    )
    parser.add_argument("--weights", nargs="+", metavar="WEIGHT", help="one for each source, used as given")
    parser.add_argument("--base", metavar="FOLDER", help="what the sources were tuned from")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="other parameters of the method; a list of one per source where it has one for each",
    )
    parser.add_argument(
        "--recipe", metavar="FILE", help="mergekit's YAML, or the recipe.json of a mix, to make it again"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write; it appears when it is complete")
    parser.add_argument("--to", choices=convert.FORMS, default="orbax", help="form of OUT (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=1, help="files of a published folder (default: %(default)s)")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32; default: as in the first source")
    parser.add_argument(
        "--missing",
        choices=mix_settings.MISSING,
        default="error",
        help="a leaf that a source lacks: refuse, take it from the first that has it, or leave it out (default: error)",
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        action="extend",
        default=[],
        metavar="WHAT",
        help="let pass what is refused: a field that differs between the models (tokenizer, rope_theta, …; the mix has "
        "that of one), nonfinite (NaN and infinity), underflow (what is too small for --dtype)",
    )
    parser.add_argument(
        "--merge-lora",
        action="store_true",
        help="add LoRA to its weights first; only methods that are plain sums can keep it (and do, side by side)",
    )
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--sweep", action="store_true", help="try a grid of weights of two or three checkpoints")
    search.add_argument("--greedy", action="store_true", help="average those that together do best")
    search.add_argument("--learn", action="store_true", help="a weight for each module and layer, by gradient")
    parser.add_argument("--workdir", metavar="FOLDER", help="a recipe's, whose held-out data judge the mixes")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="FOLDER",
        help="benchmarks that judge the mixes in place of a recipe's data: a folder that chooses, and one that is "
        "reported (of one alone pictures in turn do either)",
    )
    parser.add_argument("--names", nargs="+", metavar="BENCHMARK", help="of those; default: all that the folders have")
    parser.add_argument(
        "--judge", choices=("loss", "score"), help="loss of the benchmarks' right answers, or score (default: loss)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each benchmark (default: 256)")
    parser.add_argument(
        "--grid", nargs="+", type=float, metavar="WEIGHT", help="weights that a sweep tries (default: 0 to 1 by 0.1)"
    )
    parser.add_argument("--report", metavar="FOLDER", help="where to write the numbers of a search and their picture")
    search.add_argument(
        "--interference",
        action="store_true",
        help="mix nothing: write interference.json and .png, how the sources' changes to the base fit together",
    )
    parser.add_argument("--process", default="0/1", metavar="I/N", help="this is process I of N that share the leaves")
    parser.add_argument("--dry-run", action="store_true", help="print what would be mixed; read no array")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    args = parser.parse_args()
    parser.set_defaults(**dict.fromkeys(vars(args)))  # to tell what was given from what is so by default
    args.given = {name: value for name, value in vars(parser.parse_args()).items() if value not in (None, [])}
    return args


def run(args: argparse.Namespace) -> None:
    way = mix_settings.way_of(args.given)
    if way == "interference":
        compare(args)
        return
    expected = None
    if way == "flags":
        mix = mix_settings.from_flags(
            args.method,
            args.sources or (),
            args.weights or (),
            args.settings,
            base=args.base,
            dtype=args.dtype,
            missing=args.missing,
            allow=tuple(args.allow),
            merge_lora=args.merge_lora,
        )
    elif way == "recipe":
        mix = mix_settings.read_recipe(Path(args.recipe))
        mix = replace(
            mix, **{name: args.given[name] for name in ("dtype", "missing", "merge_lora") if name in args.given}
        )
        if args.allow:
            mix = replace(mix, allow=tuple(args.allow))
        if args.recipe.endswith(".json"):
            expected = json.loads(Path(args.recipe).read_text()).get("hashes")
    else:
        mix = search(args, way)
        if not args.out and not args.dry_run:
            return
    if args.dry_run:
        print("\n".join(Mixer(mix, Path()).describe()))
        return
    need_out(args)
    process, processes = parse_process(args.process)
    done = write_mix(
        mix,
        args.out,
        form=args.to,
        shards=args.shards,
        process=process,
        processes=processes,
        expected=expected,
        quiet=args.quiet,
    )
    print(done)


def search(args: argparse.Namespace, way: str) -> mix_settings.Mix:
    from sphinx_jax.recipe.stages import mix_choice

    if not args.sources or not (args.workdir or args.benchmarks):
        raise ConfigError(
            "a search needs checkpoints and what judges them: --sources A B --workdir runs/quickstart, or --benchmarks "
            "FOLDER"
        )
    judged = {name: getattr(args, name) for name in ("benchmarks", "names", "judge", "limit") if name in args.given}
    if judged and not args.benchmarks:
        raise ConfigError(f"--{next(iter(judged))} is of benchmarks: --benchmarks FOLDER")
    folders = [*args.sources, *filter(None, [args.base])]
    if args.out:  # a search takes long
        new_folder(args.out, folders)
    found = mix_choice.choose(
        way,
        folders,
        args.workdir,
        judged=judged,
        grid=args.grid or mix_choice.GRID,
        allow=args.allow,
        quiet=args.quiet,
    )
    print("\n".join(found.lines()))
    for file in found.save(Path(args.report)) if args.report else ():
        print(file)
    return replace(found.mix, dtype=args.dtype)


def compare(args: argparse.Namespace) -> None:
    need_out(args)
    found = interference_report.write(
        args.sources or [], args.base, args.out, missing=args.missing, allow=args.allow, quiet=args.quiet
    )
    print(interference_report.table(found))
    print(f"\n{args.out}: interference.json, interference.png")


def need_out(args: argparse.Namespace) -> None:
    if not args.out:
        raise ConfigError("give a folder to write: --out FOLDER")


def parse_process(text: str) -> tuple[int, int]:
    try:
        process, processes = map(int, text.split("/"))
    except ValueError:
        raise ConfigError(f"--process {text} is not of the form I/N") from None
    if not 0 <= process < processes:
        raise ConfigError(f"--process {text}: there are processes 0 to {processes - 1}")
    return process, processes


if __name__ == "__main__":
    given = arguments()
    goes_on = given.to == "orbax" and not {"interference", "sweep", "greedy", "learn"} & given.given.keys()
    with plain_errors(stopped=f"stopped; the same command {'goes on' if goes_on else 'begins anew'}"):
        run(given)
