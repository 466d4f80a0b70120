"""Public benchmarks by name: their files in the forms people have, and the rules that score answers.

questions = BENCHMARKS["vqav2"].read(Path("data/vqav2")).questions
"""

from sphinx_jax.evaluate.benchmarks import (
    blink,
    choices,
    coco,
    college,
    described,
    documents,
    hallusion,
    iconqa,
    judged,
    ocrbench,
    referring,
    rotated,
    single,
    star,
    tdiuc,
    vqa,
    yes_or_no,
)
from sphinx_jax.evaluate.forms.reading import Benchmark
from sphinx_jax.evaluate.question import BadBenchmark, Question, Score

BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": vqa.VQAV2,
    "okvqa": vqa.OKVQA,
    "gqa": single.GQA,
    "vizwiz": vqa.VIZWIZ,
    "textvqa": vqa.TEXTVQA,
    "ocrvqa": single.OCRVQA,
    "scienceqa": choices.SCIENCEQA,
    "pope": yes_or_no.POPE,
    "mme": yes_or_no.MME,
    "mmbench": rotated.MMBENCH,
    "mmbench_cn": rotated.MMBENCH_CN,
    "ccbench": rotated.MMBENCH,
    "seed": choices.SEED,
    "refcoco": referring.REFCOCO,
    "refcoco+": referring.REFCOCO_PLUS,
    "refcocog": referring.REFCOCOG,
    "coco_caption": described.COCO_CAPTION,
    "flickr30k_caption": described.FLICKR30K_CAPTION,
    "nocaps": described.NOCAPS,
    "tdiuc": tdiuc.TDIUC,
    "ocrbench": ocrbench.OCRBENCH,
    "hallusionbench": hallusion.HALLUSIONBENCH,
    "mmstar": star.MMSTAR,
    "realworldqa": star.REALWORLDQA,
    "docvqa": documents.DOCVQA,
    "infovqa": documents.INFOVQA,
    "chartqa": documents.CHARTQA,
    "ai2d": choices.AI2D,
    "mmmu": college.MMMU,
    "blink": blink.BLINK,
    "iconqa": iconqa.ICONQA,
    "mmvet": judged.MMVET,
    "llava_bench": judged.LLAVA_BENCH,
    "mathvista": judged.MATHVISTA,
    "vsr": single.VSR,
    "coco_detection": coco.DETECTION,
    "coco_keypoints": coco.KEYPOINTS,
}

__all__ = ["BENCHMARKS", "BadBenchmark", "Benchmark", "Question", "Score"]
