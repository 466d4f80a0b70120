"""The playground's questions in the files of public benchmarks, as people have those: a path to try with a nano model.

write(items, Path("benchmarks"))    # benchmarks/vqav2/…, benchmarks/refcoco/…, …
"""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.tasks import COCO_KEYPOINTS, INSTRUCTIONS, Box, PaddedSquare, parse_answer, parse_boxes

SPLIT = "val2014"
ANNOTATORS = 10  # of a question of VQAv2
ROTATION = 1_000_000  # between the numbers of a question of MMBench and of its next rotation
LETTERS = "ABCD"
PEOPLE = "people"  # the phrase whose boxes are detected
PERSON = {"id": 1, "name": "person", "supercategory": "person"}
# the field of an instruction that says what is asked
FIELDS = {"vqa": "{question}", "rec": "{phrase}", "detection": "{phrase}", "pose": "{box}"}
NUMBERS = ("count",)  # kinds whose answers are numbers
READ = "What is the value of"  # how a question about a chart begins


class Asked(NamedTuple):
    """A question of the playground, without its instruction."""

    number: int  # of the picture, from 1
    image: bytes
    kind: str
    text: str
    answer: str

    @property
    def name(self) -> str:
        return f"COCO_{SPLIT}_{self.number:012d}.png"

    @property
    def frame(self) -> PaddedSquare:
        with Image.open(io.BytesIO(self.image)) as image:
            return PaddedSquare(*image.size)


def write(items: Iterable[Item], folder: Path) -> dict[str, int]:
    """Write pictures and questions of these items below `folder`; returns how many questions each benchmark got."""
    asked = list(_asked(items))
    writers: dict[str, tuple[str, Callable[[Path, Sequence[Asked]], None]]] = {
        "vqav2": ("vqa", _vqa),
        "pope": ("vqa", _pope),
        "chartqa": ("vqa", _charts),
        "docvqa": ("vqa", _documents),
        "mmbench": ("multiple_choice", _choices),
        "refcoco": ("rec", _phrases),
        "coco_caption": ("short_caption", _captions),
        "coco_detection": ("detection", _people),
        "coco_keypoints": ("pose", _poses),
    }
    counts = {}
    for name, (task, writer) in writers.items():
        chosen = [one for its, one in asked if its == task and _fits(name, one)]
        if chosen:
            (folder / name).mkdir(parents=True, exist_ok=True)
            writer(folder / name, chosen)
            counts[name] = len(chosen)
    return counts


def _asked(items: Iterable[Item]) -> Iterator[tuple[str, Asked]]:
    for number, item in enumerate(items, 1):
        if not isinstance(item.image, bytes):
            continue
        for task, kind, (question, answer) in zip(item.tasks, item.kinds or (), item.turns, strict=True):
            before, _, after = INSTRUCTIONS[task].template.partition(FIELDS.get(task, "{"))
            text = question.removeprefix(before).removesuffix(after) if task in FIELDS else question
            yield task, Asked(number, item.image, kind, text, answer)


def _fits(name: str, one: Asked) -> bool:
    if name == "pope":
        return one.kind == "yes_no"
    if name == "coco_detection":
        return one.text == PEOPLE
    chart = one.text.startswith(READ)
    if name in ("chartqa", "docvqa"):
        return one.kind == "read" and chart == (name == "chartqa")
    return True


def _pictures(folder: Path, asked: Sequence[Asked]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in {a.number: a for a in asked}.values():
        (folder / one.name).write_bytes(one.image)


def _json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def _vqa(folder: Path, asked: Sequence[Asked]) -> None:
    _pictures(folder / SPLIT, asked)
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": SPLIT}
    questions, annotations = [], []
    for number, one in enumerate(asked):
        ids = {"image_id": one.number, "question_id": number}
        kind = "yes/no" if one.answer in ("yes", "no") else "number" if one.kind in NUMBERS else "other"
        answers = [{"answer_id": i + 1, "answer": one.answer, "answer_confidence": "yes"} for i in range(ANNOTATORS)]
        questions.append(ids | {"question": one.text})
        types = {"question_type": one.kind, "answer_type": kind, "multiple_choice_answer": one.answer}
        annotations.append(ids | types | {"answers": answers})
    _json(folder / f"v2_OpenEnded_mscoco_{SPLIT}_questions.json", about | {"questions": questions})
    _json(folder / f"v2_mscoco_{SPLIT}_annotations.json", about | {"annotations": annotations})


def _pope(folder: Path, asked: Sequence[Asked]) -> None:
    """All as the random split: the playground asks for what might be there, whatever is common."""
    _pictures(folder / SPLIT, asked)
    rows = (
        {"question_id": number, "image": one.name, "text": one.text, "label": one.answer}
        for number, one in enumerate(asked, 1)
    )
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _charts(folder: Path, asked: Sequence[Asked]) -> None:
    _pictures(folder / "png", asked)
    _json(folder / "test_human.json", [{"imgname": one.name, "query": one.text, "label": one.answer} for one in asked])


def _documents(folder: Path, asked: Sequence[Asked]) -> None:
    _pictures(folder / "documents", asked)
    rows = [
        {
            "questionId": number,
            "question": one.text,
            "question_types": [],
            "image": f"documents/{one.name}",
            "answers": [one.answer],
            "data_split": "val",
        }
        for number, one in enumerate(asked)
    ]
    _json(folder / "val_v1.0.json", {"dataset_name": "playground", "dataset_split": "val", "data": rows})


def _choices(folder: Path, asked: Sequence[Asked]) -> None:
    """Each question in every rotation of its choices, the k-th moved k places to the front."""
    heads = ("index", "question", "hint", *LETTERS, "answer", "category", "image", "l2-category", "split")
    with open(folder / "MMBench_DEV_EN.tsv", "w", newline="") as file:
        table = csv.DictWriter(file, heads, delimiter="\t")
        table.writeheader()
        for number, one in enumerate(asked):
            body, _, listed = one.text.partition("\nChoices:\n")
            choices = [line.partition(". ")[2] for line in listed.splitlines() if line[1:2] == "."]
            right = choices[LETTERS.index(one.answer)]
            for k in range(len(choices)):
                turned = choices[k:] + choices[:k]
                picture = base64.b64encode(one.image).decode() if k == 0 else str(number)
                row = dict(zip(LETTERS, turned, strict=False)) | {"answer": LETTERS[turned.index(right)]}
                row |= {"index": number + k * ROTATION, "question": body.partition("Question: ")[2], "image": picture}
                table.writerow(row | {"category": "playground", "l2-category": "playground", "split": "dev"})


def _phrases(folder: Path, asked: Sequence[Asked]) -> None:
    _pictures(folder / SPLIT, asked)
    annotations, refs = [], []
    for number, one in enumerate(asked):
        annotations.append(_annotation(number, one, parse_answer("rec", one.answer)))
        words = {"sent_id": number, "sent": one.text, "raw": one.text, "tokens": one.text.split()}
        ref = {"ref_id": number, "ann_id": number, "image_id": one.number, "category_id": 1, "split": "val"}
        refs.append(ref | {"file_name": one.name, "sent_ids": [number], "sentences": [words]})
    _annotated(folder / "instances.json", asked, annotations, {"id": 1, "name": "thing"})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def _captions(folder: Path, asked: Sequence[Asked]) -> None:
    _pictures(folder / SPLIT, asked)
    images = [{"id": number, "file_name": name} for number, name in {a.number: a.name for a in asked}.items()]
    told = [{"id": i, "image_id": one.number, "caption": one.answer} for i, one in enumerate(asked)]
    _json(folder / "captions_val2014.json", {"images": images, "annotations": told})


def _annotation(number: int, one: Asked, relative: Box) -> dict[str, Any]:
    """A box as COCO has it, the area that of the box: the playground has no outlines."""
    box = one.frame.to_pixels(relative)
    corner = [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
    ids = {"id": number, "image_id": one.number, "category_id": 1, "iscrowd": 0}
    return ids | {"bbox": corner, "area": corner[2] * corner[3]}


def _annotated(
    file: Path, asked: Sequence[Asked], annotations: Sequence[dict[str, Any]], category: dict[str, Any]
) -> None:
    images = {}
    for one in asked:
        frame = one.frame
        images[one.number] = {"id": one.number, "file_name": one.name, "width": frame.width, "height": frame.height}
    _json(file, {"images": list(images.values()), "annotations": annotations, "categories": [category]})


def _people(folder: Path, asked: Sequence[Asked]) -> None:
    """Pictures that have people: of others no question says that there are none."""
    _pictures(folder / SPLIT, asked)
    boxes = [(one, box) for one in asked for box in parse_answer("detection", one.answer)]
    annotations = [_annotation(number, one, box) for number, (one, box) in enumerate(boxes, 1)]
    _annotated(folder / f"instances_{SPLIT}.json", asked, annotations, PERSON)


def _poses(folder: Path, asked: Sequence[Asked]) -> None:
    """Each person that is asked about; one that is asked about twice is there once."""
    _pictures(folder / SPLIT, asked)
    people = {(one.number, one.text): one for one in asked}
    annotations = []
    for number, one in enumerate(people.values(), 1):
        (box,) = parse_boxes(one.text)
        points = one.frame.to_pixels(parse_answer("pose", one.answer)).points
        # seen and labelled is 2
        numbers = [number for point in points for number in ((point.x, point.y, 2) if point else (0, 0, 0))]
        there = {"keypoints": numbers, "num_keypoints": sum(point is not None for point in points)}
        annotations.append(_annotation(number, one, box) | there)
    _annotated(folder / f"person_keypoints_{SPLIT}.json", asked, annotations, PERSON | {"keypoints": COCO_KEYPOINTS})
