"""The SPHINX recipe at nano size, in minutes on two cores: two domains, three mixes, one picture answered."""

from copy import deepcopy

from ml_collections import ConfigDict

from sphinx_jax.config import family, to_dict
from sphinx_jax.evaluate.metrics import METRICS

CAPTIONS = {"short_caption": 1.0, "detailed_caption": 1.0, "grounded_caption": 2.0}
# captions are known from pre-training; questions are short, so more of them fit into a step
TASKS = dict.fromkeys(METRICS, 1.0) | {task: 0.3 for task in CAPTIONS}


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "SPHINX quickstart"
    c.about = (
        "The SPHINX recipe at nano size: pre-train on real pictures, continue on synthetic ones, mix the weights,",
        "fine-tune on mixed tasks, evaluate on held-out pictures, write a report. 10 to 15 minutes on two cores.",
    )
    c.seed = 0
    c.model = to_dict(family("sphinx_nano"))
    c.data = {"playground": "quick"}
    c.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    c.stages = ("pretrain_real", "continue_synthetic", "mix", "finetune", "evaluate", "benchmarks", "show")
    shared = {  # copied for each stage, so that a setting on the command line changes that stage alone
        "kind": "train",
        "batch": 16,
        "turns": 8,
        "isolate_turns": True,
        "length": 144,
        "text_batch": 4,
        "text_length": 128,
        "text_weight": 0.25,
        "optimizer": "muon",
        "optimizer_settings": {"adam_learning_rate": 0.3},
        "clip": 1.0,
        "warmup": 30,
        "cache_features": True,
    }
    pretraining = CAPTIONS | {"rec": 1.0, "reg": 1.0}
    c.stage = {
        "pretrain_real": deepcopy(shared)
        | {
            "start": "parts",
            "steps": 450,
            "rate": 1e-2,
            "floor": 2e-3,
            "domains": {"real": 1.0},
            "tasks": dict(pretraining),
        },
        "continue_synthetic": deepcopy(shared)
        | {
            "start": "pretrain_real",
            "steps": 180,
            "rate": 3e-3,
            "domains": {"synthetic": 1.0},
            "tasks": dict(pretraining),
        },
        "mix": {
            "kind": "mix",
            "real": "pretrain_real",
            "synthetic": "continue_synthetic",
            "tasks": dict(CAPTIONS),
            "metric": "caption_loss",
            "length": 112,
            "pictures": 128,
        },
        "finetune": deepcopy(shared)
        | {
            "start": "mix",
            "steps": 1100,
            "rate": 8e-3,
            "optimizer_settings": {"adam_learning_rate": 0.1},
            "domains": {"real": 1.0, "synthetic": 1.0},
            "turns": 6,
            "length": 112,
            "text_batch": 2,
            "turn_power": 0.5,
            "tasks": dict(TASKS),
            "repeats": {"pose": 2, "layout": 2, "text_spotting": 2},  # few pictures have them
        },
        "evaluate": {"kind": "evaluate", "start": "finetune", "limit": 500},
        "benchmarks": {
            "kind": "benchmarks",
            "start": "finetune",
            "names": ("vqav2", "pope", "docvqa", "chartqa", "refcoco", "coco_caption"),
            "limit": 64,
        },
        "show": {"kind": "show", "card": "benchmarks"},
        "chat": {"kind": "chat"},
    }
    return c
