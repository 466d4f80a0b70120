"""Annotated data in the files of its releases; where answers point is looked up in the pictures that a model sees."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw

from sphinx_jax.data.formats import (
    coco,
    documents_layout,
    flickr_entities,
    questions,
    refcoco,
    text_in_pictures,
    visual_genome,
)
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped, Found, Source
from sphinx_jax.data.image import load_image, padded_resize
from sphinx_jax.data.tasks import COCO_KEYPOINTS, Box, parse_answer, parse_boxes

RED, BLUE, GREEN, BLACK = (255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 0, 0)
LANDSCAPE, PORTRAIT = (40, 20), (16, 50)
SIZES = pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT], ids=["landscape", "portrait"])
PIXELS = 500  # side of the square that is looked at: 10 or more for each of a picture
SLACK = 4  # of which two decimals are off by 2.5 at most


def written(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def drawn(path: Path, size, boxes=()) -> None:
    """A black picture, in PNG whatever its name, with rectangles of (colour, x, y, width, height)."""
    picture = Image.new("RGB", size, BLACK)
    for colour, x, y, width, height in boxes:
        ImageDraw.Draw(picture).rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG")  # JPEG would blur the edges that are looked for


def read(form, file: Path, root: Path | None = None):
    found = list(form.read(Source(file, root)))
    kept = [entry.item for entry in found if isinstance(entry, Found)]
    return kept, [entry for entry in found if isinstance(entry, Dropped)]


def only(form, file: Path, root: Path | None = None):
    (item,), dropped = read(form, file, root)
    assert not dropped and len(item.turns) == len(item.tasks)
    return item


def answers(item, task: str) -> list[tuple[str, str]]:
    return [turn for turn, name in zip(item.turns, item.tasks, strict=True) if name == task]


def seen(item) -> np.ndarray:
    return padded_resize(load_image(item.image), PIXELS).astype(int)


def lies_on(item, box: Box, colour) -> bool:
    """Whether all within a box of an answer has a colour, and nothing around it."""
    left, top, right, bottom = (round(v * PIXELS) for v in (box.x1, box.y1, box.x2, box.y2))
    alike = np.abs(seen(item) - colour).max(-1) < 128  # half a colour, where an edge is
    inside = alike[top + SLACK : bottom - SLACK, left + SLACK : right - SLACK]
    assert inside.size
    alike = np.pad(alike, 2 * SLACK)  # the box may end where the square does
    around = alike[top + SLACK : bottom + 3 * SLACK, left + SLACK : right + 3 * SLACK].copy()
    around[2 * SLACK : -2 * SLACK, 2 * SLACK : -2 * SLACK] = False
    ring = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
    return bool(inside.all() and not ring.any())


def coco_file(tmp_path, size, annotations, categories=((1, "person"), (47, "wine glass"))) -> dict:
    return {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "width": size[0], "height": size[1]}],
        "annotations": [{"id": n, "image_id": 7, **row} for n, row in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


FIRST, SECOND = (2, 3, 6, 5), (10, 10, 5, 8)


def red_and_blue(path: Path, size) -> None:
    drawn(path, size, [(RED, *FIRST), (BLUE, *SECOND)])


def renamed(held: dict, name: str) -> dict:
    held["images"][0]["file_name"] = name
    return held


@SIZES
def test_objects_of_coco_lie_where_they_are_drawn(tmp_path, size):
    red_and_blue(tmp_path / "train2017" / "7.png", size)
    rows = [
        {"bbox": SECOND, "category_id": 1, "iscrowd": 0},
        {"bbox": FIRST, "category_id": 47, "iscrowd": 0},
        {"bbox": [0, 0, 50, 50], "category_id": 1, "iscrowd": 1},
    ]
    file = written(
        tmp_path / "annotations" / "instances_train2017.json", renamed(coco_file(tmp_path, size, rows), "7.png")
    )
    item = only(coco.INSTANCES, file)
    assert item.image == str(tmp_path / "train2017" / "7.png")
    told = {question: parse_answer("detection", answer) for question, answer in answers(item, "detection")}
    (people,) = told["Detect all people shown in the image."]
    (glass,) = told["Detect all wine glasses shown in the image."]
    assert lies_on(item, people, BLUE) and lies_on(item, glass, RED)


def test_boxes_of_one_category_are_one_turn_from_the_left(tmp_path):
    rows = [{"bbox": box, "category_id": 1} for box in (SECOND, FIRST)]
    item = only(coco.INSTANCES, written(tmp_path / "a.json", coco_file(tmp_path, LANDSCAPE, rows)))
    (_, answer), *others = item.turns
    first, second = parse_boxes(answer)
    assert first.x2 < second.x1 and not others


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_is_the_same_part_of_the_picture_in_its_square(tmp_path, data):
    width, height = (data.draw(st.integers(1, 2000)) for _ in range(2))
    edges = [data.draw(st.floats(-0.5 * width, 1.5 * side)) for side in (width, height, width, height)]
    box = (min(edges[::2]), min(edges[1::2]), abs(edges[0] - edges[2]), abs(edges[1] - edges[3]))
    held = coco_file(tmp_path, (width, height), [{"bbox": box, "category_id": 1}])
    (items, dropped) = read(coco.INSTANCES, written(tmp_path / "a.json", held))
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    seen_edges = [
        (left + min(max(box[0], 0), width)) / side,
        (top + min(max(box[1], 0), height)) / side,
        (left + min(max(box[0] + box[2], 0), width)) / side,
        (top + min(max(box[1] + box[3], 0), height)) / side,
    ]
    if dropped:
        assert not items and dropped[0].reason == "no usable annotation"
        # nothing that two decimals can tell is lost
        assert min(seen_edges[2] - seen_edges[0], seen_edges[3] - seen_edges[1]) <= 0.01 + 1e-9
    else:
        (told,) = parse_boxes(items[0].turns[0][1])
        assert told.area > 0
        np.testing.assert_allclose((told.x1, told.y1, told.x2, told.y2), seen_edges, atol=0.0051)


def test_a_box_that_goes_beyond_the_picture_ends_with_it(tmp_path):
    rows = [{"bbox": [-10, 50, 40, 40], "category_id": 1}, {"bbox": [500, 5, 9, 9], "category_id": 47}]
    item = only(coco.INSTANCES, written(tmp_path / "a.json", coco_file(tmp_path, (100, 80), rows)))
    ((_, answer),) = item.turns
    assert answer == "[0.00, 0.60, 0.30, 0.90]"  # 10 pixels of padding above, and none of a box on the padding


KEYPOINTS_OF_TWO = {"left_shoulder": (8, 4), "right_ankle": (3, 17)}


def dotted(path: Path, size) -> None:
    colours = (RED, GREEN)
    dots = [(colour, x - 1, y - 1, 3, 3) for colour, (x, y) in zip(colours, KEYPOINTS_OF_TWO.values(), strict=True)]
    drawn(path, size, dots)


def flat(names, hidden=()) -> list[int]:
    return [
        number
        for name in names
        for number in ((*KEYPOINTS_OF_TWO[name], 1 if name in hidden else 2) if name in KEYPOINTS_OF_TWO else (9, 9, 0))
    ]


@SIZES
@pytest.mark.parametrize(
    ("form", "names"), [(coco.KEYPOINTS, COCO_KEYPOINTS), (coco.CROWDPOSE, coco.CROWDPOSE_KEYPOINTS)]
)
def test_key_points_lie_on_what_is_drawn(tmp_path, size, form, names):
    dotted(tmp_path / "000000000007.png", size)
    rows = [
        {"bbox": [1, 2, 9, 17], "keypoints": flat(names, hidden=["left_shoulder"]), "category_id": 1, "iscrowd": 0},
        {"bbox": [1, 2, 9, 17], "keypoints": [0] * 3 * len(names), "category_id": 1, "iscrowd": 0},
        {"bbox": [0, 0, 40, 50], "keypoints": flat(names), "category_id": 1, "iscrowd": 1},
    ]
    held = renamed(coco_file(tmp_path, size, rows), "000000000007.png")
    item = only(form, written(tmp_path / "keypoints.json", held))
    ((question, answer),) = answers(item, "pose")
    pose = parse_answer("pose", answer)
    there = {name: point for name, point in zip(COCO_KEYPOINTS, pose.points, strict=True) if point}
    assert there.keys() == KEYPOINTS_OF_TWO.keys()
    pixels, (region,) = seen(item), parse_boxes(question)
    for name, colour in zip(KEYPOINTS_OF_TWO, (RED, GREEN), strict=True):
        point = there[name]
        assert np.abs(pixels[round(point.y * PIXELS), round(point.x * PIXELS)] - colour).max() < 128
        assert region.x1 < point.x < region.x2 and region.y1 < point.y < region.y2


def test_key_points_go_by_the_names_of_the_file(tmp_path):
    names = coco.CROWDPOSE_KEYPOINTS[::-1]
    held = coco_file(tmp_path, PORTRAIT, [{"bbox": [1, 2, 9, 17], "keypoints": flat(names), "category_id": 1}])
    held["categories"][0]["keypoints"] = names
    item = only(coco.CROWDPOSE, written(tmp_path / "crowdpose_train.json", held))
    pose = parse_answer("pose", item.turns[0][1])
    assert [n for n, p in zip(COCO_KEYPOINTS, pose.points, strict=True) if p] == list(KEYPOINTS_OF_TWO)
    assert pose.points[COCO_KEYPOINTS.index("left_shoulder")].y < pose.points[-1].y


def test_captions_of_a_picture_are_its_turns(tmp_path):
    captions = ["A dog.", "A brown\n dog. ", "A dog.", ""]
    held = coco_file(tmp_path, LANDSCAPE, [{"caption": caption} for caption in captions])
    item = only(coco.CAPTIONS, written(tmp_path / "captions_train2017.json", held))
    assert [answer for _, answer in item.turns] == ["A dog.", "A brown dog."]
    assert set(item.tasks) == {"short_caption"} and item.id == "7"


@SIZES
@pytest.mark.parametrize(
    ("form", "folder"), [(documents_layout.PUBLAYNET, "train"), (documents_layout.DOCLAYNET, "PNG")]
)
def test_parts_of_a_page_are_told_from_the_top(tmp_path, size, form, folder):
    red_and_blue(tmp_path / folder / "page.png", size)
    rows = [{"bbox": SECOND, "category_id": 1}, {"bbox": FIRST, "category_id": 2}]
    held = renamed(coco_file(tmp_path, size, rows, [(1, "Text"), (2, "Section-header")]), "page.png")
    item = only(form, written(tmp_path / "COCO" / "train.json", held), tmp_path)
    header, text = parse_answer("layout", answers(item, "layout")[0][1])
    assert (header.kind, text.kind) == ("section-header", "text")
    assert lies_on(item, header.box, RED) and lies_on(item, text.box, BLUE)


def test_damage_costs_its_picture_and_annotations_of_no_picture_are_told(tmp_path):
    held = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": 50, "height": 40} for n in range(6)
        ] + [{"id": 6, "file_name": "6.jpg", "width": 0, "height": -3}, "nothing", {"width": 5}],
        "annotations": [
            {"image_id": 0, "bbox": FIRST, "category_id": 1},
            {"image_id": 1, "bbox": [1, 2, 3], "category_id": 1},
            {"image_id": 2, "bbox": [1, 2, float("inf"), 4], "category_id": 1},
            {"image_id": 3, "bbox": FIRST, "category_id": 99},
            {"image_id": 4, "bbox": [5, 5, 0, 20], "category_id": 1},
            {"image_id": 6, "bbox": FIRST, "category_id": 1},
            {"image_id": 77, "bbox": FIRST, "category_id": 1},
            None,
        ],
        "categories": [{"id": 1, "name": "bench"}],
    }  # fmt: skip
    items, dropped = read(coco.INSTANCES, written(tmp_path / "instances.json", held))
    assert [item.id for item in items] == ["0"]
    damaged, unusable = "annotation is damaged", "no usable annotation"
    assert dropped == [
        ("1.jpg", damaged),
        ("2.jpg", damaged),
        ("3.jpg", damaged),
        ("4.jpg", unusable),
        ("5.jpg", unusable),
        ("6.jpg", "picture is missing"),
        ("picture 7", damaged),
        ("picture 8", damaged),
        ("77", "picture is not in the file's list"),
        ("?", damaged),
    ]


def test_pictures_are_named_by_absolute_paths_and_not_looked_for(tmp_path, monkeypatch):
    (tmp_path / "pictures" / "train2017").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    held = coco_file(tmp_path, PORTRAIT, [{"caption": "A dog."}])
    file = written(tmp_path / "captions_train2017.json", held)
    inside = str(tmp_path / "pictures" / "train2017" / "000000000007.jpg")
    assert only(coco.CAPTIONS, file, Path("pictures")).image == inside
    assert only(coco.CAPTIONS, file, Path("elsewhere")).image == str(tmp_path / "elsewhere" / "000000000007.jpg")
    file = written(file, renamed(held, "train2017/000000000007.jpg"))
    assert only(coco.CAPTIONS, file, Path("pictures")).image == inside


def test_a_picture_of_unknown_size_is_measured_as_it_is_shown(tmp_path):
    held = coco_file(tmp_path, PORTRAIT, [{"bbox": [0, 0, 25, 25], "category_id": 1}])
    for key in ("width", "height"):
        del held["images"][0][key]
    file = written(tmp_path / "instances.json", held)
    assert read(coco.INSTANCES, file) == ([], [("000000000007.jpg", "picture is missing")])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "000000000007.jpg", exif=exif)
    assert only(coco.INSTANCES, file).turns[0][1] == "[0.25, 0.00, 0.50, 0.25]"
    (tmp_path / "000000000007.jpg").write_bytes(b"no picture")
    assert read(coco.INSTANCES, file) == ([], [("000000000007.jpg", "picture is damaged")])


def genome(tmp_path, size, name: str, entry: dict, listed: bool = True) -> Path:
    red_and_blue(tmp_path / "VG_100K_2" / "5.jpg", size)
    if listed:
        url = "https://cs.stanford.edu/people/rak248/VG_100K_2/5.jpg"
        record = {"image_id": 5, "width": size[0], "height": size[1], "url": url, "coco_id": 42, "flickr_id": None}
        written(tmp_path / "image_data.json", [record])
    return written(tmp_path / name, [entry])


def region(box, phrase: str) -> dict:
    return dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"phrase": phrase, "image_id": 5}


@SIZES
@pytest.mark.parametrize("listed", [True, False])
def test_regions_of_visual_genome_both_ways(tmp_path, size, listed):
    regions = [
        region(FIRST, "the red box."),
        region(SECOND, "a blue box"),
        region(FIRST, "A box"),
        region(SECOND, "a box"),
    ]
    file = genome(tmp_path, size, "region_descriptions.json", {"id": 5, "regions": regions}, listed)
    (found,) = visual_genome.REGIONS.read(Source(file))
    assert found.carried.get("coco_id") == (42 if listed else None)
    told = {question.rpartition(": ")[2]: parse_answer("rec", a) for question, a in answers(found.item, "rec")}
    assert told.keys() == {"the red box.", "a blue box."}  # "a box" is either
    assert lies_on(found.item, told["the red box."], RED) and lies_on(found.item, told["a blue box."], BLUE)
    back = {answer: parse_boxes(question)[0] for question, answer in answers(found.item, "reg")}
    assert lies_on(found.item, back["A box"], RED) and lies_on(found.item, back["a box"], BLUE)


def thing(box, **named) -> dict:
    return dict(zip("xywh", box, strict=True)) | named


@SIZES
def test_a_relationship_asks_for_its_subject(tmp_path, size):
    rows = [
        {"predicate": "ON", "subject": thing(FIRST, name="people"), "object": thing(SECOND, names=["car"])},
        {"predicate": "of", "subject": thing(FIRST, name="wheel"), "object": thing(SECOND, name="car")},
        {"predicate": "OF", "subject": thing(SECOND, name="Wheel"), "object": thing(SECOND, name="car")},
    ]
    file = genome(tmp_path, size, "relationships.json", {"image_id": 5, "relationships": rows})
    item = only(visual_genome.RELATIONSHIPS, file)
    ((question, answer),) = answers(item, "relation")
    assert question.endswith("describes : people on car.")
    assert lies_on(item, parse_answer("relation", answer), RED)


def test_questions_of_visual_genome_without_its_sizes(tmp_path):
    rows = [{"question": "What is it?", "answer": "A box.", "qa_id": 1}, {"question": "Why?", "answer": ""}]
    entry = {"id": 5, "qas": rows}
    item = only(visual_genome.QUESTIONS, genome(tmp_path, PORTRAIT, "question_answers.json", entry, listed=False))
    assert item.turns == (("What is it?\nAnswer the question using a single word or phrase.", "A box"),)
    assert item.image == str(tmp_path / "VG_100K_2" / "5.jpg")
    file = written(tmp_path / "question_answers.json", [entry, {"id": 6, "qas": rows}, None, {"id": 5}])
    damaged = "annotation is damaged"
    assert read(visual_genome.QUESTIONS, file)[1] == [("6", "picture is missing"), ("?", damaged), ("5", damaged)]


def refs_file(tmp_path, size, refs) -> Path:
    held = coco_file(tmp_path, size, [{"bbox": FIRST}, {"bbox": SECOND}])
    written(tmp_path / "instances.json", renamed(held, "7.png"))
    file = tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps(refs, protocol=2))
    return file


def ref(number: int, split: str, *phrases: str, image: int = 7) -> dict:
    sentences = [{"sent": phrase, "raw": phrase.upper(), "tokens": phrase.split()} for phrase in phrases]
    return {"image_id": image, "ann_id": number, "split": split, "sentences": sentences, "file_name": "7_1.png"}


@SIZES
def test_refs_of_training_both_ways(tmp_path, size):
    red_and_blue(tmp_path / "train2014" / "7.png", size)
    refs = [
        ref(0, "train", "red box", "the left"),
        ref(1, "val", "blue"),
        ref(1, "train", "right"),
        ref(1, "testA", "r"),
        ref(0, "train", "elsewhere", image=8),
        ref(9, "val", "nowhere", image=9),
    ]
    (item,), dropped = read(refcoco.REFCOCO, refs_file(tmp_path, size, refs))
    assert dropped == [("8", "picture is not in the file's list")]
    told = [(question.rpartition(": ")[2], parse_answer("rec", a)) for question, a in answers(item, "rec")]
    assert [phrase for phrase, _ in told] == ["red box.", "the left.", "right."]
    assert [lies_on(item, box, colour) for (_, box), colour in zip(told, (RED, RED, BLUE), strict=True)] == [True] * 3
    back = [(answer, parse_boxes(question)[0]) for question, answer in answers(item, "reg")]
    assert back == [(phrase.removesuffix("."), box) for phrase, box in told]


class Hostile:
    def __reduce__(self):
        return (print, ("a program ran",))


def test_a_pickle_that_runs_programs_is_refused(tmp_path, capsys):
    file = refs_file(tmp_path, LANDSCAPE, [Hostile()])
    with pytest.raises(BadData, match=r"refs\(unc\).p"):
        read(refcoco.REFCOCO, file)
    assert not capsys.readouterr().out


ENTITIES = """<annotation><filename>36.jpg</filename><size><width>{}</width><height>{}</height><depth>3</depth></size>
<object><name>1</name><name>3</name><bndbox>{}</bndbox></object>
<object><name>2</name><bndbox>{}</bndbox></object>
<object><name>2</name><bndbox>{}</bndbox></object>
<object><name>4</name><scene>1</scene><nobndbox>0</nobndbox></object>
</annotation>"""


def counted_from_one(box) -> str:
    x, y, width, height = box
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    return "".join(f"<{name}>{value}</{name}>" for name, value in edges.items())


def entities(tmp_path, size) -> Path:
    red_and_blue(tmp_path / "flickr30k-images" / "36.jpg", size)
    folder = tmp_path / "entities"
    boxes = [counted_from_one(box) for box in (FIRST, SECOND, FIRST)]
    written(folder / "Annotations" / "36.xml", ENTITIES.format(*size, *boxes))
    lines = [
        "[/EN#1/people/clothing A red man] 's [/EN#2/other two things] stand , in [/EN#4/scene a yard] .",
        "[/EN#0/notvisual This] is [/EN#4/scene a yard] .",
        "[/EN#9/people Nobody] sees [/EN#3/people him] .",
    ]
    written(folder / "Sentences" / "36.txt", "\n".join(lines) + "\n")
    written(folder / "train.txt", "36\n37\n")
    written(folder / "Annotations" / "38.xml", "<annotation>")
    return folder


@SIZES
def test_phrases_of_captions_are_grounded(tmp_path, size):
    (item,), dropped = read(flickr_entities.FLICKR_ENTITIES, entities(tmp_path, size))
    assert dropped == [("37", "annotation is damaged")]
    (_, first), (_, second) = answers(item, "grounded_caption")
    assert first.startswith("<p>A red man</p>[") and "]'s <p>two things</p>[" in first
    assert first.endswith("] stand, in a yard.") and second.startswith("Nobody sees <p>him</p>[")
    man, things = parse_answer("grounded_caption", first)
    assert lies_on(item, man.boxes[0], RED) and len(man.boxes) == 1
    assert [lies_on(item, *pair) for pair in zip(things.boxes, (BLUE, RED), strict=True)] == [True, True]
    assert parse_answer("grounded_caption", second)[0].boxes == man.boxes


def test_a_folder_of_entities_needs_its_list(tmp_path):
    folder = entities(tmp_path, PORTRAIT)
    (folder / "train.txt").write_text("38\n")
    assert read(flickr_entities.FLICKR_ENTITIES, folder) == ([], [("38", "annotation is damaged")])
    (folder / "train.txt").unlink()
    with pytest.raises(BadData, match="train.txt"):
        read(flickr_entities.FLICKR_ENTITIES, folder)


SHORT = "\nAnswer the question using a single word or phrase."


def asked(form, file: Path, root: Path | None = None) -> dict[str, list[tuple[str, str]]]:
    """Turns by the names of pictures below the root."""
    items, dropped = read(form, file, root)
    assert not dropped and {task for item in items for task in item.tasks} == {"vqa"}
    assert all(question.endswith(SHORT) for item in items for question, _ in item.turns)
    base = root or file.parent
    return {
        str(Path(item.image).relative_to(base)): [(q.removesuffix(SHORT), a) for q, a in item.turns] for item in items
    }


def vqa_files(tmp_path, prefix: str, ids=(1, 2, 3)) -> Path:
    rows = [("What?", 9), ("Who?", 11), ("Where?", 9)]
    given = [["a dog", "dog", "dog"], ["man", "men", "man"], ["there", "here"]]
    told = [
        {"question_id": n, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(words)]}
        for n, words in zip(ids, given, strict=True)
    ]
    written(tmp_path / f"{prefix}mscoco_train2014_annotations.json", {"annotations": told, "data_subtype": "train2014"})
    questions_of = [{"question_id": n, "question": q, "image_id": i} for n, (q, i) in enumerate(rows, 1)]
    return written(tmp_path / f"{prefix}OpenEnded_mscoco_train2014_questions.json", {"questions": questions_of})


@pytest.mark.parametrize(("form", "prefix"), [(questions.VQAV2, "v2_"), (questions.OKVQA, "")])
def test_the_commonest_answer_is_learnt(tmp_path, form, prefix):
    (tmp_path / "train2014").mkdir()
    assert asked(form, vqa_files(tmp_path, prefix)) == {
        "train2014/COCO_train2014_000000000009.jpg": [("What?", "dog"), ("Where?", "there")],
        "train2014/COCO_train2014_000000000011.jpg": [("Who?", "man")],
    }


def test_answers_of_another_split_are_refused(tmp_path):
    file = vqa_files(tmp_path, "v2_", ids=(101, 102, 103))
    with pytest.raises(BadData, match="another split"):
        read(questions.VQAV2, file)
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(BadData, match="v2_mscoco_train2014_annotations.json"):
        read(questions.VQAV2, file)


@pytest.mark.parametrize(
    ("form", "held", "expected"),
    [
        (
            questions.TEXTVQA,
            {"data": [{"image_id": "ab", "question": "Say?", "answers": ["stop", "go", "go"], "question_id": 3}]},
            {"train_images/ab.jpg": [("Say?", "go")]},
        ),
        (
            questions.DOCVQA,
            {"data": [{"image": "documents/x_1.png", "question": "Total?", "answers": ["$5", "5"], "questionId": 1}]},
            {"documents/x_1.png": [("Total?", "$5")]},
        ),
        (
            questions.CHARTQA,
            [{"imgname": "c.png", "query": "How many?", "label": "4"}, {"imgname": "c.png", "query": "A?", "label": 7}],
            {"png/c.png": [("How many?", "4"), ("A?", "7")]},
        ),
        (
            questions.GQA,
            {
                "1": {"imageId": "23", "question": "Is it?", "answer": "yes"},
                "2": {"imageId": "n4", "question": "What?", "answer": "car"},
                "3": {"imageId": "23", "question": "Red?", "answer": "no"},
            },
            {"images/23.jpg": [("Is it?", "yes"), ("Red?", "no")], "images/n4.jpg": [("What?", "car")]},
        ),
        (
            questions.OCRVQA,
            {
                "00": {
                    "imageURL": "http://a/b.gif",
                    "questions": ["Who?", "When?"],
                    "answers": ["I", "Now"],
                    "split": 1,
                },
                "01": {"imageURL": "http://a/c.jpg", "questions": ["Who?"], "answers": ["You"], "split": 3},
            },
            {"images/00.gif": [("Who?", "I"), ("When?", "Now")]},
        ),
    ],
    ids=lambda value: getattr(value, "title", ""),
)
def test_questions_of_each_release(tmp_path, form, held, expected):
    file = written(tmp_path / "train.json", held)
    assert {Path(name).name: turns for name, turns in asked(form, file).items()} == {
        Path(name).name: turns for name, turns in expected.items()
    }
    for name in expected:
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
    assert asked(form, file, tmp_path / "pictures") == expected


def test_questions_without_answers_and_damaged_ones_are_told(tmp_path):
    rows = [
        {"image_id": "a", "question": "What?"},
        {"image_id": "b", "question": None, "answers": ["x"]},
        {"question": "What?", "answers": ["x"]},
        {"image_id": "d", "question": "What \ud800?", "answers": ["x"]},
        {"image_id": "e", "question": "<image>\nWhat?", "answers": ["x"]},
    ]
    items, dropped = read(questions.TEXTVQA, written(tmp_path / "TextVQA_0.5.1_train.json", {"data": rows}))
    damaged = "annotation is damaged"
    assert dropped == [("a", "no usable annotation"), ("b", damaged), ("?", damaged), ("d", damaged)]
    assert [item.turns for item in items] == [(("What?" + SHORT, "x"),)]


def test_questions_with_choices_are_answered_by_a_letter(tmp_path):
    problem = {"question": "Which?", "choices": ["ant", "bee"], "answer": 1, "hint": "Look.", "image": "image.png"}
    problems = {
        "1": problem,
        "2": problem | {"image": None},
        "3": problem,
        "4": problem | {"answer": 2},
        "5": problem | {"hint": "", "answer": 0},
    }
    written(tmp_path / "pid_splits.json", {"train": ["1", "2", "4", "5"], "test": ["3"]})
    (tmp_path / "images" / "train").mkdir(parents=True)
    items, dropped = read(questions.SCIENCEQA, written(tmp_path / "problems.json", problems))
    assert dropped == [("2", "question has no picture"), ("4", "annotation is damaged")]
    assert [item.image for item in items] == [str(tmp_path / f"images/train/{n}/image.png") for n in "15"]
    choices = (
        "Question: Which?\nChoices:\nA. ant\nB. bee\nAnswer with the option's letter from the given choices directly."
    )
    assert [item.turns for item in items] == [(("Context: Look.\n" + choices, "B"),), ((choices, "A"),)]
    assert items[0].tasks == ("multiple_choice",)


def spotted(item) -> dict[str, Box]:
    regions = parse_answer("text_spotting", answers(item, "text_spotting")[0][1])
    assert [region.box for region in regions] == parse_answer("text_detection", answers(item, "text_detection")[0][1])
    return {region.text: region.box for region in regions}


def outline(box) -> tuple[float, ...]:
    x, y, width, height = box
    return x, y, x + width, y, x + width, y + height, x, y + height


@SIZES
def test_texts_of_textocr(tmp_path, size):
    red_and_blue(tmp_path / "train_images" / "ab.jpg", size)
    words = [("stop", SECOND), (".", (1, 1, 9, 9)), ("GO", FIRST), ("thin", (4, 3, 0.01, 20))]
    anns = {
        f"ab_{n}": {"image_id": "ab", "points": outline(box), "utf8_string": text}
        for n, (text, box) in enumerate(words)
    }
    image = {"id": "ab", "width": size[0], "height": size[1], "set": "train", "file_name": "train/ab.jpg"}
    held = {"imgs": {"ab": image, "cd": image}, "anns": anns, "imgToAnns": {"ab": list(anns)}}
    (item,), dropped = read(text_in_pictures.TEXTOCR, written(tmp_path / "TextOCR_0.1_train.json", held))
    assert dropped == [("cd", "no usable annotation")]
    boxes = spotted(item)
    assert list(boxes) == ["GO", "stop"]
    assert lies_on(item, boxes["GO"], RED) and lies_on(item, boxes["stop"], BLUE)


@SIZES
def test_texts_of_icdar(tmp_path, size):
    red_and_blue(tmp_path / "pictures" / "img_1.png", size)
    labels = tmp_path / "gt"
    first, second = (",".join(map(str, outline(box))) for box in (FIRST, SECOND))
    lines = f"\ufeff{second},1,000\r\n{first},Exit\r\n1,1,9,1,9,9,1,9,###\r\n"
    written(labels / "gt_img_1.txt", lines)
    written(labels / "gt_img_2.txt", lines)
    drawn(tmp_path / "pictures" / "img_3.png", size)
    written(labels / "gt_img_3.txt", "1,2,3,a sign\n")
    (item,), dropped = read(text_in_pictures.ICDAR, labels, tmp_path / "pictures")
    assert dropped == [("img_2", "picture is missing"), ("img_3", "annotation is damaged")]
    assert {reason for _, reason in read(text_in_pictures.ICDAR, labels, tmp_path / "nowhere")[1]} == {
        "picture is missing"
    }
    boxes = spotted(item)
    assert list(boxes) == ["Exit", "1,000"]
    assert lies_on(item, boxes["Exit"], RED) and lies_on(item, boxes["1,000"], BLUE)


FORMATS = {
    form.title: form
    for module in (coco, documents_layout, questions, refcoco, text_in_pictures, visual_genome)
    for form in vars(module).values()
    if isinstance(form, type(coco.CAPTIONS))
}


@pytest.mark.parametrize("title", FORMATS)
@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[1]", "{}", '{"a": 1}', '{"images": [], "annotations": [{"other": 1}]}', '{"data": {"a": 1}}'],
)
def test_a_file_of_another_format_is_one_line_that_names_it(tmp_path, title, content):
    file = written(tmp_path / "some_questions.json", content)
    with pytest.raises(BadData, match="some_questions.json") as error:
        read(FORMATS[title], file)
    assert "\n" not in str(error.value)
