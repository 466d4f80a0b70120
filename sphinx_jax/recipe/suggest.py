"""What to try once a recipe has run to its end, as commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from sphinx_jax.checkpoint import store
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages.chat import ChatStage
from sphinx_jax.recipe.stages.show import EXAMPLE, TAUGHT
from sphinx_jax.train.settings import TrainStage

COMMAND = "python -m sphinx_jax.main"


def things_to_try(run: Run, given: Sequence[str]) -> list[str]:
    """Lines for a terminal; none where nothing was trained.

    given: flags that name this recipe and its workdir, as `--config configs/quickstart.py`.
    """
    recipe = run.recipe
    kinds = [(name, recipe.settings[name]) for name in dict.fromkeys((*recipe.stages, *recipe.settings))]
    trained = [
        n for n, s in kinds if isinstance(s, TrainStage) and store.newest(run.folder(n) / "checkpoints") is not None
    ]
    if not trained:
        return []
    again = f"{COMMAND} {shlex.join(given)}"
    lines = ["", "Things to try:"]
    picture = run.workdir / EXAMPLE
    for name in [n for n, s in kinds if isinstance(s, ChatStage)][:1]:
        image = f" --config.stage.{name}.image={shlex.quote(_near(picture))}" if picture.exists() else ""
        lines += ["  talk with it about a picture:", f"    {again} --stage {name}{image}"]
    lora = "" if recipe.model.decoder.lora_rank else ",lora=8"
    taught = run.workdir / TAUGHT
    # of the one picture that is listed there an epoch is a step
    few = [f"--config.stage.finetune.{each}" for each in ("batch=1", "epochs=20") if taught.exists()]
    if (dtype := recipe.model.dtype) != "bfloat16":  # which is the recipe's for fine-tuning, for accelerators
        few.append(f"--config.model.dtype={dtype}")
    listed = shlex.quote(_near(taught)) if taught.exists() else "list.yaml"
    lines += [
        f"  teach it pictures and questions of your own{', listed as here' * taught.exists()}:",
        f"    {COMMAND} --config finetune:{shlex.quote(_near(run.folder(trained[-1])))}{lora} "
        f"{' '.join([f'--config.data.meta.train={listed}', *few])} --workdir runs/taught",
    ]
    if len(trained) > 1 and Path("tools").is_dir():  # a clone
        folders = shlex.join(_near(run.folder(name)) for name in trained[:2])
        lines += [
            "  mix the weights of two of its stages:",
            f"    python tools/mix_weights.py --sources {folders} --weights 0.5 0.5 --out mixed",
        ]
    elif picture.exists():
        asked = f"sphinx_jax.from_pretrained({_near(run.workdir)!r}).detect({_near(picture)!r}, 'things')"
        lines += ["  find things in Python:", f"    python -c {shlex.quote(f'import sphinx_jax; print({asked})')}"]
    return lines


def _near(path: Path) -> str:
    """The path as one would type it here."""
    here = isinstance(path, Path) and path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if here else str(path)
