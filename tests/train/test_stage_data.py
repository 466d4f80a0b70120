"""What a training stage takes of people's own list, what it leaves out, and what is told before it begins."""

import dataclasses
import json
import types

import pytest
from conftest import DATA, tiny_config
from PIL import Image

from sphinx_jax.command import LONGEST, shortened
from sphinx_jax.config import ConfigError
from sphinx_jax.data.rows import Shape
from sphinx_jax.data.sources import Data, DataConfig
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.recipe.stages.evaluate import EvaluateStage, questions
from sphinx_jax.train.settings import TrainStage, shapes
from sphinx_jax.train.stage_data import (
    check_usable,
    fitted,
    held_out_sources,
    left_out,
    sources_of,
    whole,
    with_rows,
    with_steps,
)

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
STAGE = TrainStage(start="fresh", epochs=1.0, batch=10, length=200, domains={"*": 1.0})
TOKENIZER = load_tokenizer(DATA / "tokenizer.model")


def listed(folder, pictures: int, texts: int, missing: int = 0, **keys) -> Data:
    """People's own list, of some pictures that are there, some that are not, and some texts."""
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    names = ["a.png"] * pictures + ["nowhere.png"] * missing
    items = [{"image": str(folder / name), "conversations": TALK} | keys for name in names]
    (folder / "x.json").write_text(json.dumps(items + [{"conversations": TALK}] * texts))
    (folder / "x.yaml").write_text("META:\n  - {path: x.json}\n")
    return Data(DataConfig(playground=None, meta={"train": str(folder / "x.yaml")}), folder)


@pytest.mark.parametrize(
    ("pictures", "texts", "unit", "rows", "steps"),
    [
        (4, 6, 1, {"image": 4, "text": 6}, 1),
        (20, 0, 1, {"image": 10}, 2),
        (0, 15, 1, {"text": 10}, 2),
        (40, 1, 1, {"image": 9, "text": 1}, 5),  # every picture is seen
        (1, 40, 1, {"image": 1, "text": 9}, 5),  # and every text
        (4, 6, 10, {"image": 10, "text": 10}, 1),  # no kind has less than a row on each device
    ],
)
def test_a_step_takes_pictures_and_texts_in_the_proportion_of_the_list(tmp_path, pictures, texts, unit, rows, steps):
    data = listed(tmp_path, pictures, texts)
    s = with_rows(STAGE, data, unit)
    assert s.rows() == rows
    assert with_steps(s, sources_of(s, data), every=True).steps == steps
    if len(rows) == 2:
        share = texts / (pictures + texts)
        assert (s.image_weight, s.text_weight) == pytest.approx((1 - share, share))


def test_a_model_of_text_alone_leaves_pictures_out_and_says_how_many(tmp_path):
    text_only = dataclasses.replace(
        tiny_config(), views=None, clip=None, convnext=None, dinov2=None, blip2=None, qformer=None
    )
    data, s = listed(tmp_path, 4, 6), fitted(text_only, STAGE)
    assert s.rows() == {"text": 10} and "4 of 10 items have pictures" in left_out(s, data, {})[0]
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        fitted(text_only, dataclasses.replace(STAGE, text_batch=0))
    with pytest.raises(ConfigError, match="has no text alone"):
        sources_of(s, listed(tmp_path, 4, 0))


def test_texts_that_a_stage_does_not_take_are_counted(tmp_path):
    data = listed(tmp_path, 4, 6)
    s = with_rows(dataclasses.replace(STAGE, text_batch=0), data, 1)
    assert s.rows() == {"image": 10} and "6 of 10 items are text alone" in left_out(s, data, {})[0]


@pytest.mark.parametrize(("missing", "length", "says"), [(6, 200, "6 of 10 items"), (0, 20, "4 of 4 items")])
def test_a_list_of_no_use_is_told_before_the_first_step(tmp_path, missing, length, says):
    data, s = listed(tmp_path, 4, 0, missing), dataclasses.replace(STAGE, text_batch=0, length=length)
    with pytest.raises(ConfigError, match=rf"finetune: {says} tried.*unusable=") as error:
        check_usable("finetune", s, data, sources_of(s, data), shapes(tiny_config(), s), TOKENIZER)
    assert len(str(error.value)) <= LONGEST


def test_a_share_that_is_allowed_is_let_be(tmp_path):
    data, s = listed(tmp_path, 4, 0, 6), dataclasses.replace(STAGE, text_batch=0, unusable=0.6)
    check_usable("finetune", s, data, sources_of(s, data), {"image": Shape(200, 32)}, TOKENIZER)


def test_a_domain_that_matches_nothing_is_named_with_those_there_are(tmp_path):
    data = listed(tmp_path, 2, 1, domain="cats")
    with pytest.raises(ConfigError, match="of domain 'cast'; its domains are cats"):
        data.items("train", "cast")
    with pytest.raises(ConfigError, match="has no pictures; its 3 items are text alone"):
        listed(tmp_path, 0, 3).items("train", "*")


def test_a_list_without_tasks_asks_for_them_where_it_is_evaluated(tmp_path):
    s = EvaluateStage(start="fresh", domains=("*",), split="train")
    with pytest.raises(ConfigError, match='give items a "task"'):
        questions(types.SimpleNamespace(data=listed(tmp_path, 2, 0)), s)
    (tmp_path / "more").mkdir()
    assert len(questions(types.SimpleNamespace(data=listed(tmp_path / "more", 2, 0, task="vqa")), s)) == 2


def test_a_long_message_keeps_its_head_and_the_fix_at_its_end():
    said = shortened("error: " + "names, " * 100 + "and so on; give another --workdir")
    assert len(said) <= LONGEST and said.startswith("error: names") and said.endswith("; give another --workdir")
    assert shortened("error: short\nand whole") == "error: short and whole"


def sets(folder, *entries: dict) -> Data:
    """People's own list of several files, with as many pictures and texts each as its entry says."""
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    meta = []
    for entry in entries:
        entry = dict(entry)
        name, pictures, texts = entry.pop("file"), entry.pop("pictures", 0), entry.pop("texts", 0)
        image = {"image": str(folder / "a.png"), "task": entry.pop("task", ""), "domain": entry.pop("domain", "")}
        items = [image | {"conversations": TALK}] * pictures + [{"conversations": TALK}] * texts
        (folder / f"{name}.json").write_text(json.dumps(items))
        meta.append({"path": f"{name}.json"} | entry)
    (folder / "x.yaml").write_text(json.dumps({"META": meta}))
    return Data(DataConfig(playground=None, meta={"train": str(folder / "x.yaml")}), folder)


def shares(s: TrainStage, data: Data, kind: str = "image") -> dict[str, float]:
    of_kind = sources_of(s, data)[kind]
    return {one.name: one.weight / sum(one.weight for one in of_kind) for one in of_kind}


def test_without_weights_each_item_of_a_list_counts_alike(tmp_path):
    data = sets(
        tmp_path, {"file": "a", "pictures": 30}, {"file": "b", "pictures": 10, "texts": 7}, {"file": "c", "texts": 1}
    )
    s = with_rows(STAGE, data, 1)
    assert shares(s, data) == {"a": 0.75, "b": 0.25}
    assert shares(s, data, "text") == {"b": 7 / 8, "c": 1 / 8}


def test_weights_of_a_list_are_shares_whatever_the_size_of_its_data_sets(tmp_path):
    data = sets(
        tmp_path,
        {"file": "a", "pictures": 30, "weight": 1},
        {"file": "b", "pictures": 10, "texts": 10, "weight": 2},
        {"file": "c", "texts": 5, "weight": 1},
    )
    s = with_rows(STAGE, data, 1)
    # half of b, which is half of all, is text
    assert shares(s, data) == {"a": 0.5, "b": 0.5} and shares(s, data, "text") == {"b": 0.5, "c": 0.5}
    assert (s.image_weight, s.text_weight) == pytest.approx((0.5, 0.5)) and s.rows() == {"image": 5, "text": 5}


def test_domains_have_their_shares_and_data_sets_theirs_within(tmp_path):
    data = sets(
        tmp_path,
        {"file": "a", "pictures": 30, "domain": "real"},
        {"file": "b", "pictures": 10, "domain": "real"},
        {"file": "c", "pictures": 1, "domain": "synthetic"},
    )
    s = dataclasses.replace(STAGE, domains={"real": 1.0, "synthetic": 3.0}, text_batch=0)
    assert shares(s, data) == {"real/a": 3 / 16, "real/b": 1 / 16, "synthetic/c": 0.75}
    s = dataclasses.replace(s, sets={"a": 1, "b": 2, "c": 5})
    assert shares(s, data) == pytest.approx({"real/a": 1 / 12, "real/b": 2 / 12, "synthetic/c": 0.75})
    with pytest.raises(ConfigError, match="sets: none of these data sets has pictures of domain 'synthetic'"):
        sources_of(dataclasses.replace(s, sets={"a": 1}), data)
    with pytest.raises(ConfigError, match="sets: unknown data set 'bb'.*'b'"):
        sources_of(dataclasses.replace(s, sets={"bb": 1}), data)


def test_items_without_the_tasks_of_a_stage_do_not_count(tmp_path):
    data = sets(
        tmp_path,
        {"file": "a", "pictures": 30, "task": "vqa"},
        {"file": "b", "pictures": 10, "task": "rec"},
        {"file": "c", "pictures": 9, "task": "reg"},
    )
    s = dataclasses.replace(STAGE, tasks={"rec": 1.0, "vqa": 0.5}, text_batch=0)
    assert shares(s, data) == {"a": 0.75, "b": 0.25}
    assert left_out(dataclasses.replace(s, sets={"a": 1}), data, {}) == ["2 of its data sets are not in the mix (b, c)"]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"weight": 1}, {}], "entry 1 has no weight"),
        ([{"weight": 0}], "weight must be a number above 0, not 0"),
        ([{"weight": True}], "weight must be"),
        ([{"name": "a/b"}], "without slash and dot"),
        ([{"name": "v1.5"}], "without slash and dot"),
        ([{"weight": float("inf")}], "weight must be a number above 0"),
        ([{"count": float("nan")}], "count must be a whole number"),
        ([{"name": "a"}, {"name": "a"}], 'two data sets have the name "a"'),
        ([{"count": 0}], "count must be a whole number"),
        ([{"count": 99}], "count is 99, and there are 4 items"),
        ([{"count": 2, "ratio": 0.5}], "has a count and a ratio"),
    ],
)
def test_an_entry_that_makes_no_sense_is_named(tmp_path, entries, says):
    data = sets(tmp_path, *({"file": f"f{n}", "pictures": 4} | entry for n, entry in enumerate(entries)))
    with pytest.raises(ValueError, match=says):
        data.names("train")


def test_data_sets_of_one_file_name_are_told_apart(tmp_path):
    data = sets(tmp_path, *[{"file": "a", "pictures": 4}] * 3, {"file": "a", "pictures": 4, "name": "a-2", "count": 3})
    folder = tmp_path.name
    assert data.names("train") == [f"{folder}-a", f"{folder}-a-2", f"{folder}-a-3", "a-2"]
    assert [len(one.items) for one in data.sets("train", "*")] == [4, 4, 4, 3]


def test_weights_of_a_stage_are_split_among_the_pictures_and_texts_of_a_data_set(tmp_path):
    data = sets(tmp_path, {"file": "mixed", "pictures": 99, "texts": 1}, {"file": "texts", "texts": 50})
    s = with_rows(dataclasses.replace(STAGE, batch=100, sets={"mixed": 1}), data, 1)
    assert s.rows() == {"image": 99, "text": 1} and shares(s, data, "text") == {"mixed": 1.0}
    with pytest.raises(ConfigError, match="sets names none of mixed, texts, which has some"):
        sources_of(
            dataclasses.replace(STAGE, sets={"none": 1, "mixed": 0}, text_batch=2),
            sets(
                tmp_path,
                {"file": "mixed", "pictures": 99, "texts": 1},
                {"file": "texts", "texts": 50},
                {"file": "none", "pictures": 3},
            ),
        )


def test_an_epoch_has_what_is_repeated_as_often_as_it_comes_and_what_is_held_out_once(tmp_path):
    data = sets(tmp_path, {"file": "a", "pictures": 30, "task": "pose"}, {"file": "b", "pictures": 10, "task": "vqa"})
    s = dataclasses.replace(STAGE, repeats={"pose": 2}, text_batch=0, evaluate_every=1, held_out="train")
    found = sources_of(s, data)
    assert with_steps(s, found).steps == 7 and shares(s, data) == {"a": 6 / 7, "b": 1 / 7}
    held = held_out_sources("tune", s, data, shapes(tiny_config(), s), TOKENIZER)
    assert [len(one.epoch) for one in held["image"]] == [40]
    with pytest.raises(ConfigError, match="dance"):
        sources_of(dataclasses.replace(s, repeats={"dance": 2}), data)


def test_all_domains_and_one_of_them_are_held_out_once_each(tmp_path):
    data = sets(tmp_path, {"file": "a", "pictures": 30, "domain": "real"}, {"file": "b", "pictures": 10})
    s = dataclasses.replace(STAGE, domains={"*": 1.0, "real": 1.0}, text_batch=0)
    assert [len(one.items) for one in whole(sources_of(s, data), s, data)["image"]] == [40, 30]


def test_what_cannot_be_used_is_judged_of_all_data_sets_together(tmp_path):
    data = sets(tmp_path, *({"file": f"s{n}", "pictures": 4} for n in range(20)))
    for n in (3, 9):
        items = json.loads((tmp_path / f"s{n}.json").read_text())
        (tmp_path / f"s{n}.json").write_text(json.dumps([items[0] | {"image": "nowhere.png"}, *items[1:]]))
    s = with_rows(STAGE, data, 1)
    check_usable("finetune", s, data, sources_of(s, data), shapes(tiny_config(), s), TOKENIZER)
    strict = dataclasses.replace(s, unusable=0.0)
    with pytest.raises(ConfigError, match="finetune: 2 of 80 items tried of 's[39]' and 19 more data sets"):
        check_usable("finetune", strict, data, sources_of(s, data), shapes(tiny_config(), s), TOKENIZER)
