"""What a setting may be.

Settings are plain frozen dataclasses; their annotations say the type and range of each, and `checked` has pydantic
hold values against them.  Importing this costs nothing: pydantic is imported, and told of a class, once one is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from reprlib import repr as short
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

Count = Annotated[int, Ge(1), Lt(2**31)]
Whole = Annotated[int, Ge(0), Lt(2**31)]
Seed = Annotated[int, Ge(0), Lt(2**31)]  # several are drawn from one, all of 32 bits
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Name = Annotated[str, MinLen(1)]
# what an optimizer takes; which of it where, only the optimizer knows
Plain = float | int | bool | str | tuple[float, ...] | None

_TYPES = {"string": "str", "tuple": "a list", "dict": "a mapping", "mapping": "a mapping", "dataclass": "a mapping"}
_RULES = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be finite",
}


class ConfigError(ValueError):
    """A configuration that names an unknown key or an impossible value."""


class Settings:
    """Base of dataclasses whose fields are settings: no others are taken, and no number but a finite one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return ConfigError(
        f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
    )


def checked(values: Any, cls: type, path: str) -> Any:
    """Plain data as an instance of a dataclass of settings, whatever is nested in it included.

    A list stands for a tuple and a whole number for a float; nothing else is converted.

    Raises:
      ConfigError: one line: the path of the first setting that does not fit, its rule, and how many more there are.
    """
    import pydantic

    try:
        plain = json.dumps(values, default=_plain)
    except (TypeError, ValueError, AttributeError):
        where, value = next(_not_plain(values, path), (path, values))
        raise ConfigError(f"{where} must be plain data, as JSON holds it, not {short(value)}") from None
    try:
        # JSON's types are those of settings: strictly read, it has a list for each tuple and a mapping for each class
        return _adapter(cls).validate_json(plain, strict=True)
    except pydantic.ValidationError as error:
        # a tuple whose values do not fit is counted as if they were not there
        found = [e for e in error.errors(include_url=False) if e["type"] != "too_short" or not e["input"]]
        # a misspelt name first: what is missing may be what it was meant for
        found.sort(key=lambda e: e["type"] != "unexpected_keyword_argument")
        told: dict[str, str] = {}
        for text in (_told(e, cls, path) for e in found):
            # one value may fail in several ways, one for each of the types that it might have had
            told.setdefault(text.split()[0].rstrip(":") if text.startswith(path) else text, text)
    first, more = next(iter(told.values())), len(told) - 1
    raise ConfigError(first + (f" (and {more} more)" if more else ""))


@contextlib.contextmanager
def of_field(name: str) -> Iterator[None]:
    """Errors of a check that `__post_init__` leaves to others say which field they are about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def mapping(values: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a mapping, not {short(values)}")
    return values


@functools.cache
def _adapter(cls: type) -> Any:
    import pydantic

    return pydantic.TypeAdapter(cls)


def _plain(value: Any) -> Any:
    """What JSON has for an instance of settings, or for a number of NumPy."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.item()


def _not_plain(values: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The paths and values that JSON has nothing for."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _not_plain(value, f"{path}.{key}")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from _not_plain(value, f"{path}[{number}]")
    elif not isinstance(values, str | int | float | None):
        yield path, values


def _told(error: Mapping[str, Any], cls: type, path: str) -> str:
    """One error of pydantic in a line of ours."""
    where, hint, value, kind, context = path, cls, error["input"], error["type"], error.get("ctx", {})
    parent, last = path, path.rpartition(".")[2]
    for part in error["loc"]:
        members = _members(hint)
        if len(members) > 1 or part == "[key]":  # what follows says which of the alternatives did not fit
            break
        (hint,) = members
        known = _fields(hint)
        if known is not None and part not in known:
            return str(unknown(f"key of {where}", part, known))
        parent, last = where, part
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
        if known is not None:
            hint = known[part]
        else:
            inner = typing.get_args(hint)
            hint = inner[1] if isinstance(part, str) else inner[0]  # the values of a tuple are alike
    if kind == "missing" and isinstance(last, int):
        return f"{parent} must have {len(inner)} values, not {last}"
    if kind == "missing":
        return f"{parent} needs a value for {last!r}"
    if kind == "value_error":
        return _of_field(context["error"], where, hint)
    if kind == "literal_error" and len(_members(hint)) == 1:
        known = re.findall("'([^']*)'", context["expected"])
        return f"{where}: {unknown(str(last), value, known)}"
    if kind in _RULES:
        limits = {key: f"{limit:g}" if isinstance(limit, float) else limit for key, limit in context.items()}
        return f"{where} {_RULES[kind].format(**limits)}, not {short(value)}"
    if kind.endswith("too_short"):  # the least there is asked of lengths is one
        return f"{where} must not be empty"
    if kind == "too_long":
        return f"{where} must have {context['max_length']} values, not {context['actual_length']}"
    if len(_members(hint)) > 1:
        wanted = " or ".join(map(_named, _members(hint)))
        return f"{where} must be {wanted}, not {short(value)}"
    wanted, _, rest = kind.partition("_")
    if rest != "type":
        return f"{where}: {error['msg']}"
    return f"{where} must be {_TYPES.get(wanted, wanted)}, not {short(value)}"


def _named(hint: Any) -> str:
    """A type as a message has it; of words that are allowed, the words."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def _of_field(error: Exception, path: str, hint: Any) -> str:
    """An error of `__post_init__`, which begins with a field's name where one is at fault."""
    text = str(error)
    named = re.match(r"\w+", text)
    known = _fields(_members(hint)[0])
    if named and known and named[0] in known:
        return f"{path}.{text}"
    told = re.sub(r"^\w+: ", "", text)  # the path says better what it is about
    return f"{path}: {told}"


def _members(hint: Any) -> list[Any]:
    """What a value may be that is there: the members of a union without None, else the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(hint) if member is not type(None)]
    return [hint]


def _fields(hint: Any) -> dict[str, Any] | None:
    """The fields of a dataclass and their types; None for any other type."""
    if not dataclasses.is_dataclass(hint):
        return None
    hints = typing.get_type_hints(hint)
    return {f.name: hints[f.name] for f in dataclasses.fields(hint)}
