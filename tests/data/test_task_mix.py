"""The stream: deterministic, resumable, the same for any number of workers and processes."""

import collections
import dataclasses
import io
import itertools
import json

import grain
import numpy as np
import pytest
from conftest import DATA, born, tiny_config
from PIL import Image

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.image import BadImage
from sphinx_jax.data.rows import DOMAIN_NUMBERS, TASKS, Rows, Shape, Source
from sphinx_jax.data.task_mix import names, rows, task_mix
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.train.features import cache_features, pictures_hash

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
SHAPE = Shape(200, image_size=16, turns=2, isolate_turns=True)


def picture(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), (colour, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def items(domain: str, count: int = 12) -> list[Item]:
    turns = (
        ("What is it?", "a cat"),
        ("Where is it?", "[0.10, 0.20, 0.30, 0.40]"),
        ("Describe.", "a red cat"),
    )
    return [
        Item(picture(i * 20), turns, ("vqa", "rec", "short_caption"), domain=domain, id=f"{domain}{i}")
        for i in range(count)
    ]


def sources(**changes) -> list[Source]:
    return [Source(d, items(d), w, **changes) for d, w in (("real", 3.0), ("synthetic", 1.0))]


def stream(seed: int = 0, **changes):
    texts = [Source("text", ["some words about cats and dogs " * 20, "a short one"])]
    return {
        "image": (rows(sources(**changes), TOKENIZER, SHAPE, seed), 4),
        "text": (rows(texts, TOKENIZER, Shape(32), seed), 2),
    }


def take(iterator, count: int) -> list[dict]:
    return list(itertools.islice(iterator, count))


def same(a, b) -> bool:
    return all(np.array_equal(a[name][key], b[name][key]) for name in a for key in a[name])


def test_same_seed_same_stream_and_another_seed_another():
    first, second, other = (
        take(task_mix(stream()), 5),
        take(task_mix(stream()), 5),
        take(task_mix(stream(seed=1)), 5),
    )
    assert all(map(same, first, second))
    assert not all(map(same, first, other))


def test_shapes_are_static():
    for batch in take(task_mix(stream()), 6):
        image, text = batch["image"], batch["text"]
        assert image["tokens"].shape == image["loss_mask"].shape == image["segments"].shape == (4, 200)
        assert image["pixels"].shape == (4, 16, 16, 3) and image["pixels"].dtype == np.uint8
        assert text["tokens"].shape == (2, 32)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_one_stream(processes):
    whole = take(task_mix(stream()), 3)
    if processes == 4:
        texts = stream()["image"]
        whole = take(task_mix({"image": texts}), 3)
        shares = [take(task_mix({"image": stream()["image"]}, process=p, processes=4), 3) for p in range(4)]
    else:
        shares = [take(task_mix(stream(), process=p, processes=2), 3) for p in range(2)]
    for step, batch in enumerate(whole):
        for name, part in batch.items():
            interleaved = np.stack([share[step][name]["tokens"] for share in shares], axis=1)
            np.testing.assert_array_equal(interleaved.reshape(part["tokens"].shape), part["tokens"])


def test_a_batch_must_divide_over_the_processes():
    with pytest.raises(ValueError, match="text batch of 2 does not divide over 4"):
        task_mix(stream(), processes=4)


def test_state_resumes_exactly():
    iterator = task_mix(stream())
    take(iterator, 3)
    state = iterator.get_state()
    expected = take(iterator, 4)
    again = task_mix(stream())
    again.set_state(state)
    assert all(map(same, expected, take(again, 4)))


@pytest.mark.slow
def test_worker_processes_change_nothing():
    expected = take(task_mix(stream()), 4)
    assert all(map(same, expected, take(task_mix(stream(), workers=2), 4)))


def test_domains_come_in_their_shares():
    image = {"image": (rows(sources(), TOKENIZER, SHAPE, 0), 8)}
    groups = np.concatenate([b["image"]["group"].max(1) for b in take(task_mix(image), 50)])
    domains = np.array(DOMAIN_NUMBERS)[groups % len(DOMAIN_NUMBERS)]
    assert (domains == "real").mean() == pytest.approx(0.75, abs=0.02)


def test_task_weights_choose_the_turns():
    weights = dict.fromkeys(TASKS, 0.0) | {"rec": 1.0}
    image = {"image": (rows(sources(task_weights=weights), TOKENIZER, SHAPE, 0), 8)}
    for batch in take(task_mix(image), 4):
        groups = batch["image"]["group"][batch["image"]["loss_mask"]]
        assert {TASKS[g // len(DOMAIN_NUMBERS)] for g in groups} == {"rec"}


def test_labels_are_the_drawn_turns_answers():
    source = Source("real", items("real"))
    row = Rows(source, TOKENIZER, Shape(200, 16, turns=1)).random_map(0, np.random.default_rng(3))
    answer = TOKENIZER.decode(row["tokens"][row["loss_mask"]].tolist())
    assert answer.strip().removesuffix("###").strip() in {a for _, a in source.items[0].turns}


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_turn_power_weighs_answers_by_their_length(power):
    item = Item(None, (("q", "a"), ("q", "some longer answer about cats and dogs")), ("vqa", "reg"))
    row = Rows(Source("x", [item]), TOKENIZER, Shape(200, turns=2, turn_power=power)).random_map(
        0, np.random.default_rng(0)
    )
    for task in ("vqa", "reg"):
        mine = row["group"] // len(DOMAIN_NUMBERS) == TASKS.index(task)
        count = (mine & row["loss_mask"]).sum()
        assert row["weights"][mine].sum() == pytest.approx(count**power)
    assert not row["weights"][~row["loss_mask"]].any()


def test_a_bad_item_is_a_masked_row_counted_and_named(caplog):
    broken = [Item(b"not a picture", (("q", "a"),), ("vqa",), domain="real", id="broken-7")]
    mapping = Rows(Source("mine", broken), TOKENIZER, SHAPE)
    row = mapping.random_map(0, np.random.default_rng(0))
    good = Rows(sources()[0], TOKENIZER, SHAPE).random_map(0, np.random.default_rng(0))
    assert row["skipped"] and not row["loss_mask"].any()
    assert {k: v.shape for k, v in row.items()} == {k: v.shape for k, v in good.items()}
    assert "broken-7" in caplog.text and "mine" in caplog.text


def test_a_bad_picture_is_skipped_from_cached_features_too(tmp_path):
    config = tiny_config()
    good = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(good, "PNG")
    pictures = [good.getvalue(), good.getvalue()[:40], str(tmp_path / "nowhere.png")]
    items = [Item(p, (("q", "a"),), ("vqa",), domain="real", id=str(i)) for i, p in enumerate(pictures)]
    leaves = born(config)
    cache = cache_features(tmp_path / "features", items, leaves, config, "encoding", batch=2)
    shape = dataclasses.replace(SHAPE, image_size=config.views.image_size)
    mapping = Rows(Source("mine", items, features=cache), TOKENIZER, shape)
    rows_made = [mapping.random_map(i, np.random.default_rng(0)) for i in range(3)]
    assert [bool(row["skipped"]) for row in rows_made] == [False, True, True]
    assert len({tuple((k, v.shape) for k, v in sorted(row.items())) for row in rows_made}) == 1
    with pytest.raises(BadImage, match="nowhere"):
        cache[2]
    again = cache_features(tmp_path / "features", items, leaves, config, "encoding", batch=2)
    assert again.bad.keys() == {1, 2}, "kept with the features"
    items[0] = dataclasses.replace(items[0], image=good.getvalue() + b" ")
    assert pictures_hash(items) != json.loads((tmp_path / "features" / "complete.json").read_text())["pictures"]


def test_items_of_a_task_that_is_repeated_come_so_often_in_an_epoch():
    kinds = [("vqa",), ("vqa", "pose"), ("layout",), ("short_caption",), ("pose", "layout")] * 3
    shown = [
        Item(picture(n), tuple(("q", "a") for _ in tasks), tasks, domain="real", id=str(n))
        for n, tasks in enumerate(kinds)
    ]
    wanted = dict.fromkeys(TASKS, 1.0) | {"short_caption": 0.0}
    source = Source("real", shown, 1.0, wanted, repeats={"pose": 2, "layout": 3})
    often = [{1: 2, 2: 3, 4: 3}.get(n % 5, 1) for n in range(15)]
    assert len(source.eligible) == 12 and len(source.epoch) == 27
    named = names([source], TOKENIZER, SHAPE, 0)
    for epoch in range(2):
        found = collections.Counter(named[epoch * 27 + i] for i in range(27))
        assert found == {f"real/{n}": times for n, times in enumerate(often) if kinds[n] != ("short_caption",)}


def test_a_source_without_any_wanted_task_is_an_error():
    with pytest.raises(ValueError, match="real has no item with a task"):
        rows(sources(task_weights=dict.fromkeys(TASKS, 0.0)), TOKENIZER, SHAPE, 0)


def test_names_are_those_of_the_rows_at_the_same_positions():
    mixed = [Source(str(n), [f"{n} and {i}" for i in range(7)], weight) for n, weight in ((0, 1.0), (1, 3.0))]
    made, named = rows(mixed, TOKENIZER, Shape(16), 5), names(mixed, TOKENIZER, Shape(16), 5)
    found = [named[i] for i in range(40)]
    assert len(set(found)) == 14
    for i, name in enumerate(found):
        assert TOKENIZER.decode([t for t in made[i]["tokens"].tolist() if t > 2]).strip() == name.replace("/", " and ")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_of_any_size_goes_on_where_it_was(batch):
    numbers = grain.MapDataset.range(7).seed(0).shuffle().repeat()
    streams = {"image": (numbers, batch), "text": (numbers, 1)}
    whole, later = take(task_mix(streams), 9), take(task_mix(streams, start=4), 5)
    assert [b["image"].tolist() for b in whole[4:]] == [b["image"].tolist() for b in later]
    assert np.concatenate([b["image"] for b in whole]).tolist() == [numbers[i] for i in range(9 * batch)]


def test_features_of_chosen_items_are_those_of_all(tmp_path):
    config, leaves = tiny_config(), born(tiny_config())
    pictures = []
    for colour in ("red", "green", "blue", "white", "black"):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), colour).save(file, "PNG")
        pictures.append(file.getvalue())
    pictures[3] = pictures[3][:40]
    items = [Item(p, (("q", "a"),), ("vqa",), domain="real", id=str(i)) for i, p in enumerate(pictures)]
    whole = cache_features(tmp_path / "whole", items, leaves, config, "encoding", batch=2)
    chosen = np.array([1, 3, 4])
    part = cache_features(tmp_path / "part", items, leaves, config, "encoding", batch=2, only=chosen)
    assert len(part) == 3 and part.bad.keys() == {3}
    for number in (1, 4):
        for name, value in part[number].items():
            np.testing.assert_allclose(value, whole[number][name], atol=1e-6)
    with pytest.raises(BadImage):
        part[3]
    other = cache_features(tmp_path / "part", items, leaves, config, "encoding", batch=2, only=np.array([0, 2]))
    np.testing.assert_allclose(other[2]["queries"], whole[2]["queries"], atol=1e-6)
