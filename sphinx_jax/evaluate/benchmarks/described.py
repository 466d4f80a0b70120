"""Pictures that are described: captions of COCO and Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, parquet_rows, tabled
from sphinx_jax.evaluate.question import BadBenchmark, Question
from sphinx_jax.evaluate.rules import captions


def _picture(key: int | str, picture: Any, answers: Any, **labels: str) -> Question:
    return Question(key, "", picture, tuple(answers), labels=labels)


def _number(name: str) -> int | str:
    """COCO's number of a picture, from its file's name."""
    end = Path(name).stem.rpartition("_")[2]
    return int(end) if end.isdigit() else name


def _coco(found: Found) -> list[Question] | None:
    for path in found.named("captions_val*.json", "captions_*.json"):
        held = read_json(path)
        told = _by_picture(held)
        return [_picture(i["id"], i["file_name"], told[i["id"]]) for i in held["images"] if i["id"] in told]
    return None


def _by_picture(held: dict[str, Any]) -> dict[int, list[str]]:
    told: dict[int, list[str]] = {}
    for annotation in held["annotations"]:
        told.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return told


def _nocaps(found: Found) -> list[Question] | None:
    """In COCO's form, with the domain of each picture; parquet columns are from memory."""
    for path in found.named("nocaps_*.json"):
        held = read_json(path)
        told = _by_picture(held)
        return [_picture(i["id"], i["file_name"], told[i["id"]], split=i.get("domain", "")) for i in held["images"]]
    return None


def _karpathy(key: str):
    """Karpathy's file, whose pictures all count; `split` says which of them a paper reports."""

    def read(found: Found) -> list[Question] | None:
        for path in found.named("dataset_*.json"):
            return [
                _picture(i.get(key, i["filename"]), i["filename"], [s["raw"] for s in i["sentences"]], split=i["split"])
                for i in read_json(path)["images"]
            ]
        return None

    return read


def _tokens(found: Found) -> list[Question] | None:
    """Lines of `picture#number`, a tab, and a caption."""
    told: dict[str, list[str]] = {}
    for path in found.named("*.token")[:1]:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            name, tab, caption = line.partition("\t")
            if not tab:
                raise BadBenchmark(f"{path}: line {number} is not a picture, a tab and a caption")
            told.setdefault(name.partition("#")[0], []).append(caption)
    return [_picture(name, name, of_picture) for name, of_picture in told.items()] or None


def _parquet(name: str, answers: str, numbers: bool):
    def read(found: Found) -> list[Question] | None:
        rows = parquet_rows(found, (name, answers))
        return [
            _picture(_number(row[name]) if numbers else row[name], row.get("image"), row[answers]) for row in rows
        ] or None

    return read


def _table(found: Found) -> list[Question] | None:
    return tabled(found, ("image", "answer"), lambda i, row: _picture(i, row["image"], f.listed(row["answer"])))


COCO_CAPTION = Benchmark(
    "COCO captions",
    {
        "release": _coco,
        "karpathy": _karpathy("cocoid"),
        "parquet": _parquet("question_id", "answer", True),
        "table": _table,
    },
    {"official": captions.official},
    numbered=("table",),
    counts={"Karpathy test": 5000},
)
NOCAPS = Benchmark(
    "NoCaps",
    {"release": _nocaps, "parquet": _parquet("image_file_name", "annotations_captions", False)},
    {"official": captions.official},
    counts={"val": 4500},
)
FLICKR30K_CAPTION = Benchmark(
    "Flickr30k captions",
    {"karpathy": _karpathy("filename"), "release": _tokens, "parquet": _parquet("filename", "caption", False)},
    {"official": captions.official},
    counts={"Karpathy test": 1000},
)
