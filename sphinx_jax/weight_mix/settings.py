"""What a mix is to do: from flags, from mergekit's YAML or from the `recipe.json` of an earlier mix.

A parameter may depend on the place: a list runs over the depth of a stack, a table gives a value for
each pattern of paths (`decoder/blocks/**`) or kind of module (`attention`), the first that fits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sphinx_jax.checkpoint.casting import LOSSES
from sphinx_jax.checkpoint.foreign.huggingface_names import huggingface_names
from sphinx_jax.checkpoint.foreign.names import Index
from sphinx_jax.config import ConfigError, ModelConfig, unknown
from sphinx_jax.model.blueprint import blueprint, check_fit, matches
from sphinx_jax.weight_mix.compare import differing_fields
from sphinx_jax.weight_mix.methods import METHODS

MISSING = ("error", "take", "skip")
# kinds of modules, by patterns of our paths
LEAF_KINDS = {
    "attention": ("*/attention/*", "*/cross/*"),
    "ffn": ("*/ffn/*", "*/mlp/*"),
    "norms": ("*norm/*", "*norm_before/*"),
    "projections": ("embedding_mix/*_proj/*",),
    "embeddings": ("decoder/embedding", "decoder/output", "*/position_embedding", "*/class_embedding"),
}
WRITING = {"out", "to", "shards", "dtype", "allow", "process", "dry_run", "quiet"}
SEARCHING = {"sources", "base", "workdir", "report", "benchmarks", "names", "judge", "limit"} | WRITING
# way to use the command: why it refuses other flags, and those that it takes
FLAGS = {
    "interference": ("--interference mixes nothing", {"sources", "base", "out", "missing", "allow", "quiet"}),
    "sweep": ("--sweep finds weights of linear", {"grid"} | SEARCHING),
    "greedy": ("--greedy finds weights of linear", SEARCHING),
    "learn": ("--learn finds weights of linear", SEARCHING),
    "recipe": ("--recipe names methods, sources and weights", {"missing", "merge_lora"} | WRITING),
    "flags": (
        "without --sweep, --greedy or --learn nothing is searched",
        {"method", "sources", "weights", "base", "settings", "missing", "merge_lora"} | WRITING,
    ),
}
MERGEKIT_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")


def check_allowances(names: Collection[str]) -> None:
    """ConfigError if a mix cannot be told to let one of these pass.

    Known are fields of the models that may differ (`compare`): then the mix has those of one of them; and what
    may be lost (`casting`): `nonfinite` takes NaN and infinity as they are, `underflow` what the dtype flushes.
    """
    known = {*LOSSES, *differing_fields()}
    for name in names:
        if name not in known:
            raise unknown("thing to allow", name, known)


@dataclass(frozen=True)
class Mix:
    """A mix, complete: the same mix again gives the same bits.

    Args:
      parameters: of the method, one value each; a value may be a table or a list (see the module).
      per_source: for each source, the parameters that are its own.
    """

    method: str
    sources: tuple[str, ...]
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    per_source: tuple[Mapping[str, Any], ...] = ()
    dtype: str | None = None  # of every leaf; None: as in the first source
    missing: str = "error"  # what becomes of a leaf that a source lacks: error | take | skip
    allow: tuple[str, ...] = ()  # what would be refused: see `check_allowances`
    merge_lora: bool = False  # add low-rank additions to their weights first, as methods that need whole matrices do

    def __post_init__(self):
        if self.method not in METHODS:
            raise unknown("method of the weight mix", self.method, METHODS)
        if not self.sources:
            raise ConfigError("name at least one source")
        if self.missing not in MISSING:
            raise unknown("policy for missing leaves", self.missing, MISSING)
        check_allowances(self.allow)
        spec = METHODS[self.method]
        for name in self.parameters:
            if name not in spec.parameters:
                raise unknown(f"parameter of {self.method}", name, [*spec.parameters, *spec.per_source])
        for own in self.per_source:
            for name in own:
                if name not in spec.per_source:
                    raise unknown(f"parameter of a source of {self.method}", name, spec.per_source)
        if self.per_source and len(self.per_source) != len(self.sources):
            raise ConfigError(f"{len(self.per_source)} sets of parameters for {len(self.sources)} sources")

    def at(self, place: Place) -> dict[str, Any]:
        """The method's parameters for one matrix: a list per source where they are its own."""
        found = {name: place.value(value) for name, value in self.parameters.items()}
        named = {name for own in self.per_source for name in own}
        for name in named:
            default = METHODS[self.method].per_source[name]
            values = [place.value(own.get(name, default)) for own in self.per_source]
            if None in values:
                raise ConfigError(f"{self.method} needs {name}, one per source")
            found[name] = values
        return found


def check_patterns(mix: Mix, paths: Collection[str]) -> None:
    """ConfigError if a table of values names a pattern that fits none of the leaves `paths` and no kind of module."""
    tables = [value for one in (mix.parameters, *mix.per_source) for value in one.values()]
    check_fit(itertools.chain.from_iterable(map(_patterns, tables)), paths, LEAF_KINDS)


def _patterns(setting: Any) -> Iterator[str]:
    """Of a table of values, and of tables in it."""
    if isinstance(setting, Mapping):
        for pattern, value in setting.items():
            yield str(pattern)
            yield from _patterns(value)


@dataclass(frozen=True)
class Place:
    """Where a matrix stands, for values that depend on it."""

    path: str
    foreign: str = ""  # its name in Hugging Face's files, where mergekit's filters look
    depth: float | None = None  # 0 at the first layer of its stack, 1 at the last; None outside

    def value(self, setting: Any) -> Any:
        if isinstance(setting, Mapping):
            for pattern, value in setting.items():
                if matches(self.path, LEAF_KINDS.get(pattern, (pattern.replace("**", "*"),))):
                    return self.value(value)
            raise ConfigError(f"no pattern of {', '.join(setting)} fits {self.path}; add '*' for the rest")
        if isinstance(setting, Sequence) and not isinstance(setting, str):
            if not setting:
                raise ConfigError("a list of values over depth is empty")
            if isinstance(setting[0], Mapping):
                return self._filtered(setting)
            if self.depth is None:
                return setting[0]
            return float(np.interp(self.depth * (len(setting) - 1), range(len(setting)), setting))
        return setting

    def _filtered(self, rules: Sequence[Mapping[str, Any]]) -> Any:
        """mergekit's [{filter, value}, …]: the first whose filter is a part of the name, or that has none."""
        for rule in rules:
            if extra := sorted(rule.keys() - {"filter", "value"}):
                raise unknown("key of a value with filters", extra[0], ("filter", "value"))
            if rule.get("filter") in (None, "*") or rule["filter"] in self.foreign or rule["filter"] in self.path:
                return self.value(rule["value"])
        raise ConfigError(f"no filter fits {self.foreign or self.path}; add a value without filter for the rest")


class Places:
    """The place of every matrix of a model; of an unknown tree the path is all there is."""

    def __init__(self, config: ModelConfig | None):
        self._layers, self._foreign = {}, {}
        if config is not None:
            specs = blueprint(config).specs
            self._layers = {path: s.shape[0] for path, s in specs.items() if s.axes[:1] == ("layers",)}
            self._foreign = {(n.leaves[0], n.index): n.foreign for n in huggingface_names(config)}

    def at(self, path: str, index: Index) -> Place:
        layers = self._layers.get(path)
        depth = None if layers is None or not index else index[0] / max(1, layers - 1)
        return Place(path, self._foreign.get((path, index), ""), depth)


def way_of(given: Mapping[str, Any]) -> str:
    """The key of `FLAGS` that the given flags ask for.

    Raises:
      ConfigError: a flag was given that has no effect there.
    """
    way = next((way for way in FLAGS if way in given), "flags")
    says, taken = FLAGS[way]
    folders = [*given.get("sources", ()), *filter(None, [given.get("base")])]
    if way in ("greedy", "learn") and len(folders) == 2:  # they begin with a sweep
        taken = taken | {"grid"}
    for name in given:
        if name not in taken | {way}:
            raise ConfigError(f"{says}; leave out {'--set' if name == 'settings' else '--' + name.replace('_', '-')}")
    return way


def from_flags(
    method: str,
    sources: Sequence[str],
    weights: Sequence[str] = (),
    settings: Sequence[str] = (),
    **more: Any,
) -> Mix:
    """A mix as the command line says it.

    Args:
      weights: YAML, one for each source or none at all.
      settings: NAME=VALUE, the value YAML; of a parameter that each source has, a list may be one for each.
      more: other fields of `Mix`.
    """
    if not sources:
        raise ConfigError("name the checkpoints: --sources A B, or --recipe FILE")
    if weights and len(weights) != len(sources):
        raise ConfigError(f"{len(weights)} weights for {len(sources)} sources")
    own = [{} for _ in sources]
    for mine, weight in zip(own, weights, strict=False):
        mine["weight"] = yaml.safe_load(weight)
    common = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting} is not of the form NAME=VALUE")
        value = yaml.safe_load(value)
        if method in METHODS and name in METHODS[method].per_source:
            values = value if isinstance(value, list) and len(value) == len(own) else [value] * len(own)
            for mine, one in zip(own, values, strict=True):
                mine[name] = one
        else:
            common[name] = value
    return Mix(method, tuple(sources), parameters=common, per_source=tuple(own), **more)


def read_recipe(file: Path) -> Mix:
    """mergekit's YAML, or the `recipe.json` that lies beside a mix."""
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the recipe {file}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is no recipe: it has no keys")
    if "merge_method" in found:
        return from_mergekit(found)
    if found.get("made_by") != "mix_weights":
        raise ConfigError(f"{file} is neither mergekit's YAML (merge_method) nor the recipe.json of a mix")
    return from_json(found)


def to_json(mix: Mix) -> dict[str, Any]:
    return json.loads(
        json.dumps(
            {
                "made_by": "mix_weights",
                "method": mix.method,
                "sources": list(mix.sources),
                "base": mix.base,
                "parameters": dict(mix.parameters),
                "per_source": [dict(own) for own in mix.per_source],
                "dtype": mix.dtype,
                "missing": mix.missing,
                "allow": mix.allow,
                "merge_lora": mix.merge_lora,
            }
        )
    )


def from_json(found: Mapping[str, Any]) -> Mix:
    return Mix(
        found["method"],
        tuple(found["sources"]),
        found["base"],
        found["parameters"],
        tuple(found["per_source"]),
        found["dtype"],
        found["missing"],
        tuple(found.get("allow", ())),
        found.get("merge_lora", False),
    )


def from_mergekit(found: Mapping[str, Any]) -> Mix:
    """A mix in mergekit's form: `merge_method`, `base_model`, `models`, `parameters`, `dtype`.

    Its defaults too: `linear` normalizes.  A base that is also among the models counts once, as the base; for the
    methods that have none, as the source that it is there.

    Raises:
      ConfigError: a key is not supported.
    """
    for key in found:
        if key not in MERGEKIT_KEYS:
            raise unknown("key of a mergekit recipe", key, MERGEKIT_KEYS)
    method = found["merge_method"]
    if method not in METHODS:
        raise unknown("merge_method", method, METHODS)
    spec, base = METHODS[method], found.get("base_model")
    common = dict(found.get("parameters") or {})
    common.pop("int8_mask", None)  # how much memory mergekit takes, not what it computes
    if method == "linear":
        common = {"normalize": True} | common
    entries = [entry if isinstance(entry, Mapping) else {"model": entry} for entry in found.get("models") or ()]
    for entry in entries:
        for key in entry:
            if key not in ("model", "parameters"):
                raise unknown("key of a model in a mergekit recipe", key, ("model", "parameters"))
    if method == "slerp":
        # from the base to the other one
        others = [entry for entry in entries if entry["model"] != base]
        entries, base = [{"model": base}, *others] if base else entries, None
    if spec.base == "none" and base is not None:
        raise ConfigError(f"{method} takes no base_model")
    if base is not None:
        entries = [entry for entry in entries if entry["model"] != base]
    shared = {name: common.pop(name) for name in list(common) if name in spec.per_source}
    own = [shared | dict(entry.get("parameters") or {}) for entry in entries]
    # mergekit accepts parameters of the whole method beside each model, where they say the same
    for parameters in own:
        for name in [name for name in parameters if name in spec.parameters]:
            common.setdefault(name, parameters.pop(name))
    return Mix(
        method,
        tuple(entry["model"] for entry in entries),
        base,
        common,
        tuple(own),
        found.get("out_dtype") or found.get("dtype"),
    )
