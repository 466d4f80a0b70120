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
# # Pods that are not there
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/scale.ipynb)
#
# What a published recipe needs of a TPU pod is found by compiling its real steps for that pod, which nobody has to own. Then
# the meshes that a run is laid out on, with eight virtual devices, and a profile of training steps.

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
# ## Compile ahead
#
# The compiler of TPUs comes with `libtpu` and runs on a CPU. SPHINX-Tiny-1k, fine-tuned on a host of eight v5e chips: memory
# of each chip, what the step computes and receives, and how fast it could be.

# %%
# !pip install -qq -e '.[tpu]'
smoke = "--smoke" if SCALE < 1 else ""  # at nano size
# !python tools/compile_ahead.py --config configs/sphinx_tiny_1k.py --topology v5e:2x4 --stage finetune --nolargest {smoke}

# %% [markdown]
# A token of an answer on one chip, as Colab has it: the decoder's matrices whole, and in 8 bits.

# %%
# !python tools/compile_ahead.py --config configs/sphinx_tiny_1k.py --topology v5e:1x1 --serve 1 {smoke}

# %% [markdown]
# The same command made [the table](https://github.com/sphinx-jax/sphinx_jax/blob/main/docs/ahead.md) of the published recipes.
# Its pods of 64 and 256 chips: GiB of each chip, and a step at best.

# %%
import json

from IPython.display import Markdown, display

made = [json.loads(line) for line in pathlib.Path("docs/ahead.jsonl").read_text().splitlines()]
lines = ["| recipe | stage | pod | peak | of | at best | MFU at most |", "|---|---|---|--:|--:|--:|--:|"]
steps = [row for row in made if "train" in row]
for row in sorted(steps, key=lambda row: (row["config"], row["stage"], row["topology"])):
    need, gib = row["train"], 2**30
    sizes = f"{need['peak_bytes'] / gib:.1f} | {row['hbm_bytes'] / gib:.1f}"
    best = f"{need['roofline_seconds']:.2f} s | {need['mfu_bound']:.0%}"
    lines.append(f"| {row['config']} | {row['stage']} | {row['topology']} | {sizes} | {best} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Meshes
#
# A mesh says how many devices share the batch (`data`), the weights (`fsdp`), and each matrix (`tensor`). The same recipe runs
# on all of them. Eight virtual devices show what lies where:

# %%
code = """
import jax
from sphinx_jax.config import family
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.sharding import make_mesh

plan = blueprint(family("sphinx_nano"))
for axes in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "tensor": 4}):
    mesh = make_mesh(**axes)
    leaf = plan.abstract(mesh)["decoder/blocks/ffn/up"]
    print(f"{str(axes):30} an FFN matrix {leaf.shape}: {leaf.sharding.spec}, each device {leaf.sharding.shard_shape(leaf.shape)}")
"""
# !XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python -c '{code}'

# %% [markdown]
# A nano form of a published recipe on a mesh of eight, from end to end:

# %%
# !XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python -m sphinx_jax.main \
#     --config configs/sphinx_tiny_1k.py --smoke --config.mesh.fsdp=4 --config.mesh.tensor=2

# %% [markdown]
# ## A profile
#
# `--profile=4:8` traces the steps 4 to 7. XProf opens the folder (`pip install xprof` and
# `xprof --logdir=runs/traced/pretrain_real/profile`); what took longest can be read here as well.

# %%
# !python -m sphinx_jax.main --config configs/quickstart.py --workdir runs/traced --stage pretrain_real --profile=4:8 --config.data.playground=nano \
#     --config.stage.pretrain_real.steps=10 --config.stage.pretrain_real.warmup=2

# %%
import collections

import jax

trace = max(pathlib.Path("runs/traced").rglob("*.xplane.pb"))
spent = collections.Counter()
for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
        for event in line.events:
            if line.name == "XLA Ops" or "hlo_op" in dict(event.stats):
                spent[event.name.split(".")[0].split(" ")[0]] += event.duration_ns
total = sum(spent.values())
for name, nanoseconds in spent.most_common(8):
    print(f"{nanoseconds / total:6.1%}  {name}")
