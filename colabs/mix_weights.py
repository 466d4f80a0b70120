# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mix the weights of two checkpoints
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/mix_weights.ipynb)
#
# Two fine-tunes of one model can be averaged into a model that is better than both: SPHINX mixes one pre-trained on real
# pictures with one that went on with synthetic ones. Here both are trained at nano size; then come the curve over the weight
# β, weights for every module and layer, TIES beside the plain mix, the map of where two fine-tunes fight, and an export. The
# tool reads checkpoints of ours, Orbax's, published folders and Hugging Face's, a few rows at a time.

# %% [markdown]
# First the package, with what the accelerator at hand needs. On Colab: *Runtime → Change runtime type* chooses a TPU or a GPU.

# %%
import os
import pathlib
import shutil

SOURCE = os.environ.get("SPHINX_JAX_SOURCE", "https://github.com/sphinx-jax/sphinx_jax")
SCALE = float(os.environ.get("SPHINX_JAX_SCALE", 1))  # share of the steps to train
FOLDER = os.environ.setdefault("SPHINX_JAX_FOLDER", os.path.abspath("sphinx_jax"))
tpu = any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
extra = "[tpu]" if tpu else "[cuda]" if shutil.which("nvidia-smi") else ""
# !test -d {FOLDER} || git clone -q --depth 1 {SOURCE} {FOLDER}
# %cd -q {FOLDER}
# !pip install -qq -e '.{extra}'

# %% [markdown]
# ## Two checkpoints
#
# The first two training stages of the quickstart, and a second continuation with another seed.

# %%
counts = {"pretrain_real": max(4, round(450 * SCALE)), "continue_synthetic": max(4, round(180 * SCALE))}
flags = [
    f"--config.stage.{stage}.steps={n} --config.stage.{stage}.warmup={min(30, n - 1)}" for stage, n in counts.items()
]
world = "quick" if SCALE == 1 else "nano"  # how many pictures are made
run = f"python -m sphinx_jax.main --config configs/quickstart.py --config.data.playground={world} {' '.join(flags)}"
real, synthetic, other = "runs/mix/pretrain_real", "runs/mix/continue_synthetic", "runs/other/continue_synthetic"
# !{run} --workdir runs/mix --stage pretrain_real
# !{run} --workdir runs/mix --stage continue_synthetic
# !{run} --workdir runs/other --stage continue_synthetic --config.stage.continue_synthetic.start={real} --config.seed=1

# %% [markdown]
# ## The curve over β
#
# The caption loss of held-out pictures of both domains, at each mix; no mix is written to be judged.

# %%
from IPython.display import Image, display

# !python tools/mix_weights.py --sweep --sources {real} {synthetic} --workdir runs/mix --report sweep --out mixed --quiet
display(Image("sweep/sweep.png", width=700))

# %% [markdown]
# ## A weight for every module and layer
#
# Learnt by gradient on the validation split.

# %%
# !python tools/mix_weights.py --learn --sources {real} {synthetic} --workdir runs/mix --report learn --quiet
display(Image("learn/learn.png", width=900))

# %% [markdown]
# ## Where two fine-tunes fight
#
# Two continuations from one base: the cosine of their changes, and the share of entries that they move in opposite
# directions, by layer and module.

# %%
# !python tools/mix_weights.py --interference --base {real} --sources {synthetic} {other} --out fights --quiet
display(Image("fights/interference.png", width=900))

# %% [markdown]
# ## TIES beside the plain mix
#
# TIES drops small changes and lets the majority decide each sign. Both are judged as above: the ends of a sweep over two
# sources are the sources themselves.

# %%
sources = f"--base {real} --sources {synthetic} {other}"
# !python tools/mix_weights.py --method task_arithmetic {sources} --weights 0.5 0.5 --out plain --quiet
# !python tools/mix_weights.py --method ties {sources} --weights 0.5 0.5 --set density=0.5 --out ties --quiet
# !python tools/mix_weights.py --sweep --sources plain ties --grid 0 1 --workdir runs/mix --report compared --quiet

# %% [markdown]
# ## Export
#
# The decoder of the mix, for Hugging Face. `mixed/recipe.json` says how it was made, with a hash of every source.

# %%
# !JAX_PLATFORMS=cpu python tools/convert_checkpoint.py mixed mixed_hf --to hf --quiet
# !ls mixed_hf
# !head -c 600 mixed/recipe.json
