"""Interference of task vectors: the numbers of every cell are numpy's, and what has no value is said to have none."""

import io
import itertools
import json
import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT, tiny_config
from orbax.checkpoint import v1 as ocp
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConfigError, DecoderConfig, MoeConfig
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.report import interference as interference_report
from sphinx_jax.weight_mix import interference
from sphinx_jax.weight_mix.statistics import Slice, Unit

TOOL = ROOT / "tools" / "mix_weights.py"
CONFIG = tiny_config(
    decoder=DecoderConfig(
        dim=32, layers=2, heads=2, kv_heads=1, vocab_size=512, multiple_of=16, moe=MoeConfig(3, 1), bias=("q",)
    )
)
FROZEN = ("encoders/", "embedding_mix/tags/")


def sixteenths(rng, shape, most):
    """Whole numbers of sixteenths: differences are exact in float32, and values below 8 in bfloat16."""
    return (rng.integers(-most, most + 1, shape) / 16).astype(np.float32)


@pytest.fixture(scope="module")
def trees():
    """A base and three sources that changed about half of the entries outside the encoders.

    Source 2 has the query maps of source 1 in layer 0 and the opposite in layer 1, and left the last norm alone; layer
    1 of the output map is as in the base in all.
    """
    rng = np.random.default_rng(0)
    shapes = {path: spec.shape for path, spec in blueprint(CONFIG).specs.items()}
    base = {path: sixteenths(rng, shape, 60) for path, shape in shapes.items()}
    sources = []
    for _ in range(3):
        deltas = {path: sixteenths(rng, shape, 30) * rng.integers(0, 2, shape) for path, shape in shapes.items()}
        sources.append({p: base[p] + d * (not p.startswith(FROZEN)) for p, d in deltas.items()})
        sources[-1] = {path: leaf.astype(np.float32) for path, leaf in sources[-1].items()}
        sources[-1]["decoder/blocks/attention/o"][1] = base["decoder/blocks/attention/o"][1]
    q = "decoder/blocks/attention/q"
    sources[1][q][0] = sources[0][q][0]
    sources[1][q][1] = 2 * base[q][1] - sources[0][q][1]
    sources[1]["decoder/norm/scale"] = base["decoder/norm/scale"]
    return base, sources


@pytest.fixture(scope="module")
def folders(trees, tmp_path_factory):
    root = tmp_path_factory.mktemp("interference")
    base, sources = trees
    sources = [*sources[:2], {path: leaf.astype("bfloat16") for path, leaf in sources[2].items()}]
    return [str(store.save(root / n, t, CONFIG, None, {})) for n, t in zip("b123", [base, *sources], strict=True)]


@pytest.fixture(scope="module")
def found(folders, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("out") / "scratch"
    measured = interference.measure(folders[1:], folders[0], scratch, quiet=True)
    assert not scratch.exists()
    return measured


def cell(found, name):
    (wanted,) = (cell for cell in found.cells if str(cell) == name)
    return wanted.sums


def leaves_of(cell, paths):
    """The leaves of a cell, by their names."""
    stacks = [f"{cell.stack}/blocks/", f"{cell.stack}/pairs/"] if cell.stack else [""]
    ends = ("", "/kernel", "/bias", "/scale")
    return [path for path in paths if path in {f"{s}{cell.module}{end}" for s in stacks for end in ends}]


def test_every_cell_is_what_numpy_says(trees, found):
    base, sources = trees
    seen = []
    for cell in found.cells:
        paths = leaves_of(cell, base)
        seen += paths if not cell.layer else []
        here = [() if cell.layer is None else (cell.layer,)] * len(paths)
        flat = [
            np.concatenate([tree[path][at].astype(np.float64).ravel() for path, at in zip(paths, here, strict=True)])
            for tree in (base, *sources)
        ]
        deltas = [x - flat[0] for x in flat[1:]]
        assert cell.sums.entries == flat[0].size
        for i, delta in enumerate(deltas):
            norm = np.linalg.norm(delta) / np.linalg.norm(flat[0])
            assert cell.sums.relative_norm(i) == pytest.approx(norm, rel=1e-12)
        for i, j in itertools.combinations(range(3), 2):
            x, y = deltas[i], deltas[j]
            both = (x != 0) & (y != 0)
            mass = np.abs(x).sum() + np.abs(y).sum()
            wanted = {
                "cosine": x @ y / np.linalg.norm(x) / np.linalg.norm(y) if x.any() and y.any() else None,
                "conflict": np.mean(np.sign(x[both]) != np.sign(y[both])) if both.any() else None,
                "cancelled": 1 - np.abs(x + y).sum() / mass if mass else None,
            }
            for name, value in wanted.items():
                measured = getattr(cell.sums, name)((i, j))
                assert measured == (None if value is None else pytest.approx(value, abs=1e-12)), (str(cell), name)
    assert sorted(seen) == sorted(base), "every leaf is in one cell"


def test_what_agrees_what_is_opposed_and_what_is_unchanged(found):
    same, opposite = cell(found, "decoder 0 attention/q"), cell(found, "decoder 1 attention/q")
    assert (same.cosine((0, 1)), same.conflict((0, 1)), same.cancelled((0, 1))) == (1, 0, 0)
    assert (opposite.cosine((0, 1)), opposite.conflict((0, 1)), opposite.cancelled((0, 1))) == (-1, 1, 1)
    one_sided, untouched = cell(found, "decoder/norm"), cell(found, "decoder 1 attention/o")
    assert (one_sided.cosine((0, 1)), one_sided.conflict((0, 1)), one_sided.cancelled((0, 1))) == (None, None, 0)
    assert (untouched.cosine((0, 1)), untouched.conflict((0, 1)), untouched.cancelled((0, 1))) == (None,) * 3
    assert found.unchanged == ("embedding_mix/tags", "encoders") and found.left_out == ()


def test_kinds_add_the_sums_of_what_changed(trees, found):
    base, sources = trees
    paths = [p for p in base if p.startswith(("decoder/blocks/attention/", "decoder/blocks/ffn/"))]
    for kind in ("attention", "ffn"):
        inside = [path for path in paths if f"/{kind}/" in path]
        x, y = (np.concatenate([(tree[p].astype(float) - base[p]).ravel() for p in inside]) for tree in sources[1:])
        sums = found.totals()[kind]
        assert sums.cosine((1, 2)) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
        untouched = base["decoder/blocks/attention/o"][1].size if kind == "attention" else 0
        assert sums.entries == x.size - untouched


def test_the_sums_do_not_depend_on_the_slices():
    rng = np.random.default_rng(1)
    base, a, b = rng.normal(size=(3, 6000, 13)).astype(np.float32)

    def cut(step):
        def slices():
            for i in range(0, len(a), step):
                yield Slice(i, base[i : i + step], [a[i : i + step], b[i : i + step]])

        return vars(interference.sums_of(Unit("m", a.shape, slices)))

    whole, small = cut(6000), cut(37)
    for name in whole:
        np.testing.assert_array_equal(small[name], whole[name], err_msg=name)


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_tool_writes_all_numbers_a_picture_and_a_table(folders, found, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "out"
    run_tool(monkeypatch, "--interference", "--sources", *folders[1:3], "--base", folders[0], "--out", out, "--quiet")
    numbers = json.loads((out / "interference.json").read_text())
    wanted = cell(found, "decoder 1 ffn/gate")
    (gate,) = (c for c in numbers["cells"] if (c["layer"], c["module"], c["stack"]) == (1, "ffn/gate", "decoder"))
    assert gate["pairs"]["1-2"]["cosine"] == wanted.cosine((0, 1)) and gate["kind"] == "ffn"
    assert gate["relative_norms"] == {"1": wanted.relative_norm(0), "2": wanted.relative_norm(1)}
    assert next(c for c in numbers["cells"] if c["module"] == "decoder/norm")["pairs"]["1-2"]["conflict"] is None
    printed = capsys.readouterr().out.splitlines()
    rows = printed[1 + next(i for i, line in enumerate(printed) if line.startswith("most conflicting")) :]
    assert rows[0].split() == ["decoder", "1", "attention/q", "-1.000", "1.000", "1.000", *rows[0].split()[6:]]
    assert rows.index("") == interference_report.WORST
    assert "unchanged: embedding_mix/tags, encoders" in printed
    assert sorted(path.name for path in out.iterdir()) == ["interference.json", "interference.png"]
    assert Image.open(out / "interference.png").size[0] > 1000
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_has_no_value_is_a_dash(found):
    lone = interference.Interference(
        found.sources, found.base, tuple(c for c in found.cells if str(c) == "decoder/norm"), (), ()
    )
    lines = interference_report.table(lone).splitlines()
    (row,) = (line.split() for line in lines if line.startswith("norms") and " 1-2 " in line)
    assert row[2:4] == ["–", "–"] and row[6] == "0.000"
    assert not any("nan" in line for line in lines)


def test_other_programs_checkpoints_are_compared_leaf_by_leaf(tmp_path):
    rng = np.random.default_rng(2)
    base, delta = rng.normal(size=(2, 5, 7)).astype(np.float32)
    for name, kernel in {"base": base, "a": base + delta, "b": base - delta, "c": base + 2 * delta}.items():
        tree = {"params": {"dense": {"kernel": kernel}}, "step": np.asarray(3, np.int32)}
        ocp.save_checkpointables(tmp_path / name, {"state": tree})
    folders = {name: str(tmp_path / name) for name in ("base", "a", "b", "c")}
    red = {}
    for other in "bc":
        found = interference.measure([folders["a"], folders[other]], folders["base"], tmp_path / "s", quiet=True)
        assert [str(cell) for cell in found.cells] == ["params/dense"] and found.left_out == ("step",)
        pixels = np.asarray(Image.open(io.BytesIO(interference_report.figure(found))).convert("RGB"))
        red[other] = np.count_nonzero((pixels == (103, 0, 31)).all(axis=-1))
    assert red["b"] > red["c"] + 1000, "a cell of cosine -1 has the darkest red of the scale"


def test_what_cannot_be_compared_is_refused_and_nothing_is_left(folders, tmp_path, monkeypatch):
    base, *sources = folders
    out = tmp_path / "out"
    (tmp_path / "there").mkdir()
    for given, kind, said in (
        ((sources, None, out), ConfigError, "--base"),
        ((sources[:1], base, out), ConfigError, "two sources"),
        (([base, base], base, out), ConfigError, "no source differs from the base"),
        ((sources, base, tmp_path / "there"), BadCheckpoint, "exists already"),
        ((sources, base, f"{base}/out"), BadCheckpoint, "lies in a source"),
    ):
        with pytest.raises(kind, match=said):
            interference_report.write(*given, quiet=True)
    with pytest.raises(SystemExit, match="error: --interference mixes nothing; leave out --set"):
        run_tool(monkeypatch, "--interference", "--sources", *sources, "--base", base, "--set", "density=1")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
