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
# # Chat with published SPHINX weights
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/chat.ipynb)
#
# Loads a published folder as it is, answers questions about a picture of yours, and draws the boxes and points that it
# answers with. SPHINX-Tiny-1k takes 6.1 of the 15.75 GiB of one chip of a TPU v5e in bfloat16; the 13B models want eight chips, or an
# accelerator of 80 GB. Without weights a nano member of the family with random weights, in the published file format, takes
# their place, so that every cell runs; what it says means nothing.

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
# ## What fits
#
# Before anything is downloaded: the weights of each member of the family, and the memory that is here.

# %%
import jax

import sphinx_jax
from sphinx_jax.config import FAMILY
from sphinx_jax.model.blueprint import held_bytes

GIB = 2**30
devices = jax.devices()
dtype = "float32" if devices[0].platform == "cpu" else "bfloat16"  # in which weights are loaded below
limit = (devices[0].memory_stats() or {}).get("bytes_limit")
memory = len(devices) * limit if limit else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
print(f"{len(devices)} × {devices[0].device_kind}, {memory / GIB:.0f} GiB together")
print(f"{'':16}{'parameters':>12}{dtype:>12}{'decoder int8':>16}")
for name in FAMILY:
    count = sphinx_jax.count_parameters(name)["total"]
    whole, few = (held_bytes(name, dtype, quantize) for quantize in (None, "int8"))
    fits = "fits" if 1.2 * whole < memory else "fits in int8" if 1.2 * few < memory else "too large"
    print(f"{name:16}{count / 1e9:10.2f} B{whole / GIB:8.1f} GiB{few / GIB:12.1f} GiB  {fits}")

# %% [markdown]
# ## The weights
#
# The authors publish them on the Hugging Face hub, in the repository `Alpha-VLLM/LLaMA2-Accessory`. Name a folder of it, or
# a folder of your own, e.g. on Google Drive.

# %%
HUB_FOLDER = (
    ""  # @param ["", "finetune/mm/SPHINX/SPHINX-Tiny", "finetune/mm/SPHINX/SPHINX-Tiny-1k"] {"allow-input": true}
)
YOUR_FOLDER = ""  # @param {"type": "string"}
QUANTIZE = ""  # @param ["", "int8"]

if HUB_FOLDER:
    from huggingface_hub import snapshot_download

    hub = snapshot_download("Alpha-VLLM/LLaMA2-Accessory", allow_patterns=f"{HUB_FOLDER}/*")
    weights = f"{hub}/{HUB_FOLDER}"
else:
    weights = YOUR_FOLDER or "tests/fixtures/llama_ens_light/ckpt"
print(weights, *sorted(os.listdir(weights)))

# %%
model = sphinx_jax.from_pretrained(weights, dtype=dtype, quantize=QUANTIZE or None)
print(f"{model.config.name}: {model.config.image_positions} positions a picture")

# %% [markdown]
# ## A picture
#
# Upload one (the folder on the left) and name it, or take the astronaut that scikit-image carries.

# %%
import PIL.Image
import skimage.data

PICTURE = ""  # @param {"type": "string"}
picture = PIL.Image.open(PICTURE) if PICTURE else PIL.Image.fromarray(skimage.data.astronaut())
picture

# %% [markdown]
# ## A conversation
#
# Turns are pairs of question and answer; the last answer is open. What was read before is not read again.

# %%
turns = []
for question in ("What is in the picture?", "What is behind it?"):
    answer = model.respond([*turns, [question, None]], picture, max_new_tokens=48 if SCALE == 1 else 8)
    turns.append([question, answer])
    print(f"> {question}\n{answer}\n")

# %% [markdown]
# Several questions about one picture are answered at once; the picture is looked at once.

# %%
questions = ["Is there a person?", "What colour is the suit?", "Where was it taken?", "How many flags are there?"]
for question, answer in zip(questions, model.respond_many(picture, questions, max_new_tokens=16), strict=True):
    print(f"> {question}\n{answer}\n")

# %% [markdown]
# ## Places
#
# The published wording of a task asks for boxes; here the answer is kept to its form, and read into values, in pixels.
# Random weights answer with boxes too, but these mean nothing.

# %%
from sphinx_jax.report.drawing import with_places

places = model.ground(picture, "the face of the woman")
for box in places:
    corners = ", ".join(f"{at:.0f}" for at in (box.x1, box.y1, box.x2, box.y2))
    print(f"from left, top to right, bottom: {corners}; confidence {box.confidence:.2f}")
with_places(picture, places)

# %% [markdown]
# How a place looks that is right: the astronaut's face, in a box written by hand.

# %%
from sphinx_jax.data.tasks import Box

face = Box(172, 62, 270, 185)
astronaut = PIL.Image.fromarray(skimage.data.astronaut())
with_places(astronaut, [face])

# %% [markdown]
# Key points of what is in a box, here of the whole picture:

# %%
pose = model.pose(picture, Box(0, 0, *picture.size))
with_places(picture, pose)

# %% [markdown]
# ## Answers that keep to a form
#
# Choices, a regular expression, or a JSON schema:

# %%
from sphinx_jax.data import answer_grammar

yes_no = answer_grammar.of_choices(["yes", "no"])
print(model.respond([["Is there a person in the picture?", None]], picture, grammar=yes_no, temperature=0.0))

# %% [markdown]
# ## Convert once, load faster
#
# A checkpoint of ours loads shard by shard onto any number of devices.

# %%
# !JAX_PLATFORMS=cpu python tools/convert_checkpoint.py {weights} converted --verify --quiet

# %%
asked = {"turns": [[questions[0], None]], "image": picture, "temperature": 0.0, "max_new_tokens": 8}
before = model.respond(**asked)
del model  # two may not fit
model = sphinx_jax.from_pretrained("converted", dtype=dtype, quantize=QUANTIZE or None)
assert model.respond(**asked) == before
print(before)
