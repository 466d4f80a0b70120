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
# # Fine-tune on your own pictures
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/finetune.ipynb)
#
# Twenty lines make a small data set in the form that people have: pictures in a folder, and a list of questions and answers.
# A model is fine-tuned on it by LoRA, scored on pictures that were held out, before and after; then LoRA is merged into its
# weights, and the decoder exported for Hugging Face. The base is a nano model that is trained here first, so that all of it
# takes minutes; the command for a converted published folder is the same.

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
# ## A base
#
# The first stage of the quickstart: captions and places in real pictures. (With published weights this is
# `python tools/convert_checkpoint.py SPHINX-Tiny sphinx_tiny --dtype bf16`.)

# %%
base = "runs/base/pretrain_real"
steps = max(4, round(450 * SCALE))
world = "quick" if SCALE == 1 else "nano"  # how many pictures are made
# !python -m sphinx_jax.main --config configs/quickstart.py --workdir runs/base --stage pretrain_real --config.data.playground={world} \
#     --config.stage.pretrain_real.steps={steps} --config.stage.pretrain_real.warmup={min(30, steps - 1)}

# %% [markdown]
# ## Your data
#
# Traffic lights, drawn. What the model is to learn is which lamp is lit, a question that the base has never seen.

# %%
import json
import random

from PIL import Image, ImageDraw

LAMPS = {"red": "#e02020", "yellow": "#f0c020", "green": "#20b040"}
draw_from = random.Random(0)


def traffic_light(lit: str) -> Image.Image:
    picture = Image.new("RGB", (160, 160), draw_from.choice(["#bcd4e6", "#d8d8d8", "#8fa98f", "#40506a"]))
    pen, x, y = ImageDraw.Draw(picture), draw_from.randint(10, 90), draw_from.randint(5, 30)
    pen.rectangle([x, y, x + 46, y + 120], fill="#202020")
    for i, (name, colour) in enumerate(LAMPS.items()):
        top = y + 6 + 38 * i
        pen.ellipse([x + 7, top, x + 39, top + 32], fill=colour if name == lit else "#383838")
    return picture


def make(split: str, count: int) -> list[dict]:
    os.makedirs(f"lights/{split}", exist_ok=True)
    items = []
    for number in range(count):
        lit = draw_from.choice(list(LAMPS))
        traffic_light(lit).save(f"lights/{split}/{number}.png")
        turns = [{"from": "human", "value": "Which lamp is lit?"}, {"from": "gpt", "value": lit}]
        items.append({"image": f"{split}/{number}.png", "conversations": turns})
    pathlib.Path(f"lights/{split}.json").write_text(json.dumps(items))
    pathlib.Path(f"lights/{split}.yaml").write_text(f"META:\n  - {{path: {split}.json}}\n")
    return items


items = make("train", 240)
held_out = make("held_out", 48)
print(json.dumps(items[0], indent=1))
Image.open("lights/" + items[0]["image"])

# %% [markdown]
# ## LoRA
#
# Low-rank matrices beside those of the decoder train, and the projections of the encoders; everything else is frozen.

# %%
steps = max(4, round(120 * SCALE))
# !python -m sphinx_jax.main --config configs/finetune.py:{base},lora=8 --workdir runs/lights \
#     --config.data.meta.train=lights/train.yaml --config.model.dtype=float32 \
#     --config.stage.finetune.epochs=0 --config.stage.finetune.steps={steps} --config.stage.finetune.warmup_epochs=0 \
#     --config.stage.finetune.warmup=2 --config.stage.finetune.batch=16 --config.stage.finetune.device_rows=16 \
#     --config.stage.finetune.length=64 --config.stage.finetune.rate=5e-3

# %% [markdown]
# ## Before and after, on held-out pictures

# %%
import sphinx_jax

pictures = ["lights/" + item["image"] for item in held_out]
right = [item["conversations"][1]["value"] for item in held_out]
prompt = "### Human: Which lamp is lit?\n### Assistant:"


def score(folder: str) -> float:
    """The share of held-out pictures whose lit lamp a model names."""
    model = sphinx_jax.from_pretrained(folder)
    said = model.generate([prompt] * len(pictures), pictures, temperature=0.0, max_new_tokens=8)
    print(f"{folder}: e.g. {[text.strip() for text in said[:4]]}, expected {right[:4]}")
    return sum(a.strip(" .").lower() == b for a, b in zip(said, right, strict=True)) / len(right)


before, after = score(base), score("runs/lights/finetune")
print(f"exact match before {before:.2f}, after {after:.2f}")
assert SCALE < 1 or after > max(0.8, before)

# %% [markdown]
# ## Merge and export
#
# The merged checkpoint has the shapes of the base. The decoder alone goes into a folder that transformers reads; members of
# the published family go back into published files with `--to accessory`.

# %%
# !JAX_PLATFORMS=cpu python tools/mix_weights.py --sources runs/lights/finetune --weights 1 --merge-lora --out lights_merged \
#     --quiet
# !JAX_PLATFORMS=cpu python tools/convert_checkpoint.py lights_merged lights_hf --to hf --quiet
# !ls lights_merged lights_hf

# %%
merged = score("lights_merged")
assert abs(merged - after) <= 1 / len(right)
