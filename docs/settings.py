"""The settings of a stage are documented by comments beside them; on the site these are a table of its parameters."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

BASE = "sphinx_jax.settings.Settings"


def comment(field: griffe.Attribute) -> str:
    """What stands above a field and behind it, in one line."""
    lines = field.filepath.read_text().splitlines()
    first, last = field.lineno - 1, field.endlineno - 1
    above = first
    while lines[above - 1].strip().startswith("#"):
        above -= 1
    behind = re.search(r"  # (.*)$", lines[last])
    words = [line.strip().removeprefix("# ") for line in lines[above:first]]
    return " ".join([*words, *([behind[1]] if behind else [])])


def classes(module: griffe.Module) -> Iterator[griffe.Class]:
    for member in module.members.values():
        if member.is_alias:
            continue
        if member.is_module:
            yield from classes(member)
        elif member.is_class:
            yield member


class Comments(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for found in classes(pkg):
            family = [found, *found.mro()]
            if BASE not in [each.path for each in family]:
                continue
            fields = {name: field for each in reversed(family) for name, field in each.attributes.items()}
            told = [
                f"    {name}: {comment(field) or '–'}"
                for name, field in fields.items()
                if "class-attribute" in field.labels or "instance-attribute" in field.labels
                if not name.startswith("_")
            ]
            text = found.docstring.value if found.docstring else ""
            found.docstring = griffe.Docstring("\n".join([text, "", "Args:", *told]), parent=found, lineno=found.lineno)
