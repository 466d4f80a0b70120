"""Converts model weights between the published files, Hugging Face's and checkpoints of this project.

Published SPHINX weights into a checkpoint, in bfloat16:
  python tools/convert_checkpoint.py SPHINX-1k/ sphinx_1k/ --dtype bf16

A base and what was trained on top of it, early files without meta.json and config.json:
  python tools/convert_checkpoint.py llama2-13b/ sphinx-stage2/ out/ --model sphinx --tokenizer tokenizer.model

What would become what, without reading an array (a listing of keys and shapes does as a source too):
  python tools/convert_checkpoint.py SPHINX-1k/ --dry-run

A checkpoint back into published files for eight-way tensor parallelism, or its decoder for Hugging Face:
  python tools/convert_checkpoint.py sphinx_1k/ out/ --to accessory --shards 8
  python tools/convert_checkpoint.py sphinx_1k/ out/ --to hf

A new SPHINX from public parts; projections and tags are born fresh:
  python tools/convert_checkpoint.py assemble new/ --model sphinx_1k --decoder Llama-2-13b-hf/ \\
      --clip clip-vit-large-patch14/ --convnext convnext_xxlarge/ --dinov2 dinov2-giant/ --blip2 blip2-opt-2.7b/
"""

import argparse
from pathlib import Path

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import assemble, convert, foreign
from sphinx_jax.checkpoint.foreign.verify import verify, verify_foreign
from sphinx_jax.command import plain_errors


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s SOURCE... OUT [options]",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="SOURCE OUT", help="folders, later ones on top of earlier ones; OUT"
    )
    parser.add_argument("--to", choices=convert.FORMS, default="orbax", help="form of OUT (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=1, help="files of a published folder (default: %(default)s)")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32; default: each leaf's own (--to hf: one that holds all)")
    parser.add_argument("--mesh", help="cut leaves along the shards of a mesh, e.g. fsdp=8 or fsdp=4,tensor=2")
    parser.add_argument("--model", help="llama_type or name (sphinx_1k) where meta.json is missing")
    parser.add_argument("--config", help="config.json where the source has none")
    parser.add_argument("--tokenizer", help="tokenizer.model or tokenizer.json, or a folder with one")
    parser.add_argument("--quick-gelu", action=argparse.BooleanOptionalAction, help="CLIP's activation by release date")
    parser.add_argument(
        "--allow-missing", action="append", default=[], metavar="PATTERN", help="keys that may be absent"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="LOSS",
        help="nonfinite: take NaN and infinity as they are; underflow: values that are too small for --dtype",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print every key -> leaf, shapes and bytes; read no array"
    )
    parser.add_argument("--verify", action="store_true", help="read both sides again and compare every leaf")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    for part in ("decoder", "clip", "convnext", "dinov2", "blip2"):
        parser.add_argument(f"--{part}", metavar="DIR", help=f"assemble: folder of the {part}")
    args = parser.parse_args()
    parser.set_defaults(**dict.fromkeys(vars(args)))  # to tell what was given from what is so by default
    args.given = [name for name, value in vars(parser.parse_args()).items() if value not in (None, [])]
    return args


def run(args: argparse.Namespace) -> None:
    if args.paths[0] == "assemble":
        convert.check_options("assemble", args.to, args.given)
        args.paths = args.paths[1:]
        encoders = {kind: getattr(args, kind) for kind in assemble.ENCODERS if getattr(args, kind)}
        if not (args.model and args.decoder):
            raise ValueError("assemble needs --model NAME and --decoder DIR")
        if not args.paths:
            raise ValueError("assemble needs where to write: assemble OUT --model NAME --decoder DIR")
        convert_foreign(args, assemble.open_parts(args.model, args.decoder, encoders), args.paths[0])
        return
    *sources, out = args.paths if len(args.paths) > 1 else (*args.paths, None)
    if out is None and not args.dry_run:
        raise ValueError("give a source and where to write: SOURCE OUT")
    sources = [str(store.chosen_in(Path(source))) for source in sources]
    if len(sources) == 1 and store.is_complete(sources[0]):
        convert.check_options("a checkpoint of ours", args.to, args.given)
        if args.dry_run:
            lines = (
                convert.leaf_lines(sources[0])
                if args.to == "orbax"
                else convert.plan_lines(sources[0], args.to, args.shards)
            )
            print("\n".join(lines))
            return
        given = {"allow": convert.known_losses(args.allow), "quiet": args.quiet}
        dtype = convert.known_dtype(args.dtype)
        print(convert.from_checkpoint(sources[0], out, args.to, shards=args.shards, dtype=dtype, **given))
        if args.verify:
            reader, config = stream.Reader(sources[0]), store.read_config(sources[0])
            count = verify_foreign(reader.read, out, config, **given)
            print(f"{count} tensors are the same")
        return
    convert.check_options("published files", args.to, args.given)
    found = foreign.open_foreign(
        sources,
        model=args.model,
        config=args.config,
        tokenizer=args.tokenizer,
        quick_gelu=args.quick_gelu,
        allow_missing=args.allow_missing,
    )
    convert_foreign(args, found, out)


def convert_foreign(args: argparse.Namespace, found: foreign.Foreign, out: str | None) -> None:
    dtype, mesh = convert.known_dtype(args.dtype), convert.parse_mesh(args.mesh)
    if args.dry_run:
        print("\n".join(convert.describe(found, dtype)))
        return
    given = {"allow": convert.known_losses(args.allow), "quiet": args.quiet}
    if not (args.verify and store.is_complete(out)):
        print(convert.write(found, out, args.to, shards=args.shards, dtype=dtype, mesh=mesh, **given))
    if args.verify:
        count = (
            verify(found, out, **given) if args.to == "orbax" else verify_foreign(found.row, out, found.config, **given)
        )
        print(f"{count} tensors are the same")


if __name__ == "__main__":
    with plain_errors():
        run(arguments())
