"""The published recipes, from which configs/sphinx_*.py take theirs (arXiv 2311.07575; SPHINX-X: 2402.05935).

Numbers marked † are not published; they are this project's choice, or that of the authors' code for other models.

What a recipe reads from disk are data lists, YAML files such as

    META:
      - {path: pairs.jsonl, root: pictures/}
      - {path: text.jsonl}

of JSON or JSON-lines files, or of folders that tools/prepare_data.py wrote, with a `weight` each where their sizes are
not their shares.  Stage 1 takes pictures with what was found written beside them, each with its domain, and
text:

    {"image": "0001.jpg", "text": "A lighthouse at dusk.", "domain": "real"}
    {"text": "A document, as long as it is."}

and the other stages conversations: {"image": "0001.jpg", "conversations": [{"from": "human", "value": "…"}, …]}.
`start` is a folder that tools/convert_checkpoint.py wrote: the language model and encoders that others trained.
"""

from ml_collections import ConfigDict

from sphinx_jax.config import family, to_dict
from sphinx_jax.model.blueprint import FROZEN


def _recipe(model: str, about: str) -> ConfigDict:
    c = ConfigDict()
    c.title = model
    c.about = (about,)
    c.seed = 0
    c.model = to_dict(family(model)) | {"dtype": "bfloat16"}
    c.mesh = {"tensor": 0, "expert": 0}  # what the number of devices and of rows asks for
    c.data = {
        "playground": None,
        "meta": {
            "pretrain": "data/pretrain.yaml",
            "train": "data/finetune.yaml",
            "validation": "data/validation.yaml",
            "test": "data/test.yaml",
        },
    }
    return c


def _step(model: str, device_rows: int) -> dict:
    """What every stage shares: memory, not mathematics."""
    return {
        "kind": "train",
        "remat": "full",
        "device_rows": device_rows,
        "pack_text": True,
        "workers": 8,
        "save_every": 500,
        "keep": 2,
    }


def sphinx(model: str, device_rows: int) -> ConfigDict:
    """SPHINX: pre-train on real pictures, continue on synthetic captions, mix the two, fine-tune on mixed tasks."""
    c = _recipe(model, f"{model}: pre-training on two domains, the mix of their weights, fine-tuning on mixed tasks.")
    start = f"checkpoints/{model}_parts"
    pretrain = _step(model, device_rows) | {
        "split": "pretrain",
        "batch": 640,
        "length": 128,
        "text_batch": 128,
        "text_length": 512,  # 65,536 tokens; cut so †
        "rate": 5e-5,
        "floor": 5e-6,
        "warmup": 2000,
        "weight_decay": 0.1,
        "clip": 8.0,  # clip †
        "optimizer_settings": {"b1": 0.9, "b2": 0.95},
    }
    c.stages = ("pretrain_real", "continue_synthetic", "mix", "finetune")
    c.stage = {
        "chat": {"kind": "chat"},
        "pretrain_real": dict(pretrain) | {"start": start, "steps": 180_000, "domains": {"real": 1.0}},
        "continue_synthetic": dict(pretrain)
        | {
            "start": "pretrain_real",
            "steps": 20_000,
            "rate": 5e-6,
            "floor": 0.0,
            "warmup": 100,  # †
            "domains": {"synthetic": 1.0},
        },
        "mix": {"kind": "mix", "real": "pretrain_real", "synthetic": "continue_synthetic", "batch": 128},
        "finetune": finetune(model, device_rows, "mix", 2e-5, 128, 0.03),
    }
    return c


def sphinx_x(model: str, device_rows: int, aligned: tuple[str, ...], rate: float) -> ConfigDict:
    """SPHINX-X: the projections are aligned, then everything but the encoders trains in one stage.

    `aligned`: patterns of the leaves that do not train in the first of the two.
    """
    c = _recipe(model, f"{model}: alignment of the projections, then one stage on all tasks.")
    align = _step(model, device_rows) | {
        "split": "pretrain",
        "start": f"checkpoints/{model}_parts",
        "steps": 5000,
        "batch": 256,
        "length": 128,  # †
        "rate": 1e-3,
        "warmup": 100,
        "clip": 8.0,
        "domains": {"*": 1.0},
        "text_batch": 0,  # †
        "frozen": aligned,
    }
    c.stages = ("align", "finetune")
    tuned = finetune(model, device_rows, "align", rate, 256, 0.01)
    c.stage = {"align": align, "finetune": tuned, "chat": {"kind": "chat"}}
    return c


def finetune(model: str, device_rows: int, start: str, rate: float, batch: int, warmup_epochs: float) -> dict:
    """One epoch of the mix of tasks: pictures and, with them, as many † rows of text alone."""
    return _step(model, device_rows) | {
        "start": start,
        "epochs": 1.0,
        "batch": batch,
        "length": 512,
        "domains": {"*": 1.0},
        "text_batch": batch,
        "text_length": 512,  # †
        "rate": rate,
        "warmup_epochs": warmup_epochs,
        "clip": 8.0,
        "weight_decay": 0.0,
        "frozen": FROZEN,
    }
