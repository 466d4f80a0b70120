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
# # SPHINX from nothing, at nano size
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/quickstart.ipynb)
#
# SPHINX ([arXiv 2311.07575](https://arxiv.org/abs/2311.07575)) mixes three things: visual embeddings, tuning tasks and model
# weights. Here the whole recipe runs on pictures that the package makes itself, with exact labels: pre-train on real
# pictures, continue on synthetic ones, mix the two, fine-tune on many tasks, evaluate on held-out pictures, and ask. Nothing
# is downloaded. It takes minutes on two CPU cores; a TPU or GPU trains for more steps in that time.

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
# ## The recipe
#
# One command runs the stages of [`configs/quickstart.py`](https://github.com/sphinx-jax/sphinx_jax/blob/main/configs/quickstart.py)
# in order. It goes on where it stopped, should the runtime be lost; `--config.key=value` changes a setting.

# %%
steps = {"pretrain_real": 450, "continue_synthetic": 180, "finetune": 1100}
more = SCALE * (3 if tpu or extra else 1)
flags = [f"--config.stage.{stage}.steps={max(4, round(more * count))}" for stage, count in steps.items()]
flags += [f"--config.stage.{stage}.warmup={max(1, round(min(more, 1) * 30))}" for stage in steps]
flags += [f"--config.data.playground={'quick' if SCALE == 1 else 'nano'}"]  # how many pictures are made
flags += [f"--config.stage.evaluate.limit={max(8, round(min(more, 1) * 500))}"]
# !python -m sphinx_jax.main --config configs/quickstart.py {" ".join(flags)}

# %% [markdown]
# ## What came out
#
# Each score stands beside two baselines: the best constant answer to each kind of question, and the same model without the
# picture.

# %%
import json

from IPython.display import Image, Markdown, display

from sphinx_jax.report.score_table import markdown_table

display(Markdown(markdown_table(json.loads(pathlib.Path("runs/quickstart/scores.json").read_text()))))

# %% [markdown]
# The weight mix: the validation loss of both domains, real and synthetic, at each mix of the two pre-trained models. Mixed
# weights are better at both than one would fear, and often better at each than the model of the other domain.

# %%
display(Image("runs/quickstart/beta.png", width=700))

# %% [markdown]
# Held-out pictures, what was asked, what was expected (dashed) and what the model said (solid):

# %%
display(Image("runs/quickstart/grid.png", width=1000))

# %% [markdown]
# The same model, asked questions in the files of public benchmarks by their own rules. They are made of the playground's
# held-out pictures, so the numbers say nothing of the real ones:

# %%
display(Markdown(pathlib.Path("runs/quickstart/benchmarks/card.md").read_text()))

# %% [markdown]
# The losses of the stages, and of which pictures and tasks each took its tokens. `runs/quickstart/report.html` has all of this
# on one page.

# %%
display(Image("runs/quickstart/loss.png", width=1000))
display(Image("runs/quickstart/seen.png", width=1000))

# %% [markdown]
# ## Ask it
#
# Pictures that no stage was trained on, several questions about each. Half to two thirds of the answers are right to the
# letter.

# %%
import io

import PIL.Image

import sphinx_jax
from sphinx_jax.data.playground import make_picture
from sphinx_jax.report.drawing import with_places

model = sphinx_jax.from_pretrained("runs/quickstart")
right, count = 0, 0
for number in range(8):
    example = make_picture(0, "test", "real", number)
    picture = PIL.Image.open(io.BytesIO(example.image))
    asked = [turn for turn in example.turns if turn.task in ("vqa", "short_caption")][:3]
    for turn, said in zip(asked, model.respond_many(picture, [turn.question for turn in asked]), strict=True):
        right, count = right + (said == turn.answer), count + 1
        wanted = "" if said == turn.answer else f"   expected: {turn.answer}"
        print(f"{number} {turn.question.splitlines()[0]:60} {said}{wanted}")
print(f"{right} of {count} to the letter")

# %% [markdown]
# The answer about a place is a value, in pixels, with a confidence.

# %%
boxes = model.detect(picture, "objects")
print(*boxes, sep="\n")
with_places(picture, boxes)

# %% [markdown]
# ## Go on
#
# * your own pictures and questions: the notebook
#   [`finetune`](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/finetune.ipynb)
# * the mix of weights, in depth:
#   [`mix_weights`](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/mix_weights.ipynb)
# * published weights:
#   [`chat`](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/chat.ipynb)
