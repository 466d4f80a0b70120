"""Fine-tunes any converted model on people's own conversations, in full or by LoRA.

python -m sphinx_jax.main --config configs/finetune.py:FOLDER --config.data.meta.train=list.yaml
python -m sphinx_jax.main --config configs/finetune.py:FOLDER,lora=16 --config.data.meta.train=list.yaml
python -m sphinx_jax.main --config configs/finetune.py:FOLDER,lora=16,nf4 --config.data.meta.train=list.yaml

FOLDER is what tools/convert_checkpoint.py wrote, or a checkpoint or training stage of this project.  The list is of the
published form, YAML with META: [{path: conversations.jsonl, root: pictures/}, …].  It may hold pictures, texts or both:
a step takes both in the proportion of the list, and an epoch sees each item.  A model that takes text alone leaves
pictures out, and says how many.  int8 and nf4 keep the frozen decoder in few bits.  It computes in bfloat16; on a CPU
--config.model.dtype=float32 is faster.  Hyper-parameters are the published ones of stage 2; LoRA's rate † is this
project's choice.
"""

from ml_collections import ConfigDict

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.model.blueprint import FROZEN
from sphinx_jax.model.lora import BASE
from sphinx_jax.model.quantise import QTYPES
from sphinx_jax.recipe.origin import origin


def get_config(what: str = "") -> ConfigDict:
    folder, *options = what.split(",")
    if not folder:
        raise ConfigError("say what to fine-tune: --config configs/finetune.py:FOLDER, or FOLDER,lora=16")
    start, model = origin(folder)
    c = ConfigDict()
    c.title = f"Fine-tuning {folder}"
    c.model = model | {"dtype": "bfloat16"}
    c.tokenizer = str(start)
    c.data = {"playground": None, "meta": {"train": "data/finetune.yaml"}}
    c.mesh = {"tensor": 0, "expert": 0}
    c.stages = ("finetune",)
    stage = {
        "kind": "train",
        "start": str(start),
        "epochs": 1.0,
        "batch": 128,
        "device_rows": 1,
        "length": 512,
        "text_length": 512,
        "domains": {"*": 1.0},
        "rate": 2e-5,
        "warmup_epochs": 0.03,
        "clip": 8.0,
        "weight_decay": 0.0,
        "remat": "full",
        "save_every": 500,
        "frozen": FROZEN,
    }
    for option in options:
        name, _, value = option.partition("=")
        if name == "lora":
            rank = value or "16"
            if not rank.isdigit():
                raise ConfigError(f"lora={rank}: the rank is a number, e.g. lora=16")
            c.model.decoder.lora_rank = int(rank)
            stage |= {"frozen": (*FROZEN, *BASE), "rate": 2e-4}  # †
        elif name in QTYPES:
            stage["quantize"] = name
        else:
            raise unknown("option of configs/finetune.py", option, ("lora=16", *QTYPES))
    c.stage = {"finetune": stage, "chat": {"kind": "chat"}}
    return c
