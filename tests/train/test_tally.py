"""What a stage has seen, counted: against a plain count, packed rows too, over checkpoints and processes."""

import numpy as np
import pytest

from sphinx_jax.data.rows import DOMAIN_NUMBERS, GROUPS, TASKS
from sphinx_jax.report.seen_figure import seen_figure, told
from sphinx_jax.train import tally
from sphinx_jax.train.tally import Tally, by_set

SETS = {"image": ["a", "b"], "text": ["a"]}


def batch(rng, rows=5, length=12, packed=False):
    made = {
        "loss_mask": rng.random((rows, length)) < 0.5,
        "group": rng.integers(0, GROUPS, (rows, length)).astype(np.int32),
    }
    if packed:
        made["documents"] = np.sort(rng.integers(1, 4, (rows, length)), axis=1).astype(np.int32)
    return made, rng.integers(0, 2, rows).astype(np.int32), rng.random(rows) < 0.3


@pytest.mark.parametrize("packed", [False, True])
def test_counts_are_those_of_a_plain_loop(packed):
    rng, counted, expected = np.random.default_rng(0), Tally({"image": ["a", "b"]}), {}
    for _ in range(20):
        made, sets, skipped = batch(rng, packed=packed)
        counted.add("image", made, sets, skipped)
        for row, (of, left) in enumerate(zip(sets, skipped, strict=True)):
            one = expected.setdefault("ab"[of], {"rows": 0, "skipped": 0, "items": {}, "tokens": {}})
            one["skipped" if left else "rows"] += 1
            for at in np.flatnonzero(made["loss_mask"][row]):
                group = int(made["group"][row, at])
                document = made["documents"][row, at] if packed else 0
                one["tokens"][group] = one["tokens"].get(group, 0) + 1
                one["items"].setdefault(group, set()).add((_, row, document))
    seen = counted.seen(1)["image"]
    assert sum(one["rows"] + one["skipped"] for one in seen.values()) == 100
    for name, one in expected.items():
        assert (seen[name]["rows"], seen[name]["skipped"]) == (one["rows"], one["skipped"])
        found = {
            (TASKS.index(task), DOMAIN_NUMBERS.index(domain)): (count["items"], count["tokens"])
            for task, domains in seen[name]["tasks"].items()
            for domain, count in domains.items()
        }
        wanted = {divmod(g, len(DOMAIN_NUMBERS)): (len(one["items"][g]), one["tokens"][g]) for g in one["tokens"]}
        assert found == wanted
    assert by_set({"image": seen})["seen/a/tokens"] == sum(expected["a"]["tokens"].values())
    assert f"{expected['a']['rows']} of a ({expected['a']['skipped']} skipped)" in told({"image": seen})
    assert seen_figure({"one": {"image": seen}}).startswith(b"\x89PNG") and seen_figure({"one": {}}) is None


def test_what_a_checkpoint_knows_of_is_added_whatever_data_sets_there_are_now():
    rng = np.random.default_rng(1)
    first, whole = Tally(SETS), Tally({"image": ["c", "a", "b"]})
    made, sets, skipped = batch(rng)
    first.add("image", made, sets, skipped)
    whole.add("image", made, sets + 1, skipped)
    second = Tally({"image": ["c", "a"]}, first.seen(1))  # and no text any more
    made, sets, skipped = batch(rng)
    second.add("image", made, sets, skipped)
    whole.add("image", made, sets, skipped)
    assert second.seen(1)["image"] == whole.seen(1)["image"]
    assert second.seen(1)["text"] == first.seen(1)["text"]


@pytest.mark.parametrize(("processes", "shares"), [(4, 4), (4, 2), (4, 1)])
def test_processes_that_feed_the_same_rows_count_them_once(monkeypatch, processes, shares):
    rng = np.random.default_rng(2)
    parts = [batch(rng) for _ in range(shares)]
    tallies = [Tally({"image": ["a", "b"]}) for _ in range(processes)]
    whole = Tally({"image": ["a", "b"]})
    for part in parts:
        whole.add("image", *part)
    for process, one in enumerate(tallies):
        one.add("image", *parts[process % shares])
    expected = whole.seen(1)
    arrays = [[one._rows["image"].ravel() for one in tallies], [one._of["image"].ravel() for one in tallies]]
    monkeypatch.setattr(tally, "gather", lambda mine: np.stack(arrays.pop(0)))
    assert tallies[0].seen(shares) == expected
