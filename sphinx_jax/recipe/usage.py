"""The page that --help prints: what a command does, its options in the order of use, recipes and their settings."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from sphinx_jax.recipe.find import known

WIDTH, INDENT = 100, 22
ASKS = {"-h", "-help", "--help"}  # for this page


def page(text: str, holders: Sequence[flags.FlagHolder], recipe: Mapping[str, Any] | None = None) -> str:
    """What a command says of itself, its options, the recipes that there are, and the settings of the one given."""
    lines = [text.rstrip(), "", "options:"]
    for holder in holders:
        flag = flags.FLAGS[holder.name]
        default = "" if flag.default in (None, False) else f" Default: {flag.default}."
        lines.append(_entry(f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}", f"{flag.help}{default}"))
    lines += [_entry("--help", "Print this page; with --config, the settings of that recipe too.")]
    lines += ["", "recipes, by name or file (--config NAME):"]
    for name, file in sorted(known().items()):
        code = ast.parse(file.read_text())
        if any(isinstance(part, ast.FunctionDef) and part.name == "get_config" for part in code.body):
            lines.append(_entry(name, (ast.get_docstring(code) or "").partition("\n")[0]))
    if recipe:
        lines += ["", f"settings of {recipe.get('title') or 'this recipe'}, each as --config.NAME=VALUE:"]
        lines += [f"  {name} = {value}" for name, value in _settings(recipe)]
    return "\n".join(lines)


def _entry(name: str, text: str) -> str:
    first = f"  {name}".ljust(INDENT)
    if len(first) > INDENT:
        return f"{first}\n{flags.text_wrap(text, WIDTH, ' ' * INDENT)}"
    return flags.text_wrap(text, WIDTH, " " * INDENT, first)


def _settings(recipe: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in recipe.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{above}{key}.")
        elif above or key not in ("title", "about"):
            yield f"{above}{key}", value
