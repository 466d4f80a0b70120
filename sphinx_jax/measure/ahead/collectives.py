"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+(?:, %[\w.\-]+)*)")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"[su]32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
# listed; [groups, devices]; or axes of a mesh, whose devices may be said to come in another order
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\]|mesh\[([^\]]*)\][^{]*\{([^}]*)\})")
_AXIS = re.compile(r"'([^']+)'(?:=|:\(\d+\))?(\d+)?")  # 'a'=8 in a mesh; 'a', or a part of it, 'a':(2)4, in a group
_ALL = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")
# a TPU's reduce-scatter is an all-reduce of which each device then takes its slice, in a computation of such a name
_SCATTERED = "all-reduce-scatter"
_COLLECTIVE = re.compile(rf" ({'|'.join(COLLECTIVES)})(-start)?\(")


class Collective(NamedTuple):
    """One kind of exchange in a program, over all of its turns."""

    kind: str
    group: int  # devices that take part in one
    count: int
    bytes: int  # that a device receives in all of them


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), what is in loops counted with their turns."""
    ops: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    calls: dict[str, list[str]] = defaultdict(list)
    loops: dict[str, list[tuple[str, str, int]]] = defaultdict(list)  # condition, body, turns where they are said
    constants: dict[str, list[int]] = defaultdict(list)
    seen: set[str | None] = set()
    devices = math.prod(map(int, _ALL.findall(text.partition("\n")[0])))
    entry, current = "", ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line) if not line.startswith(" ") else None
        if opened:
            current = opened[1]
            entry = current if line.startswith("ENTRY") else entry
            continue
        left, equals, right = line.partition(" = ")
        if not equals:
            continue
        found, channel = _COLLECTIVE.search(right), _CHANNEL.search(right)
        # an exchange that goes on beside other work is written where it starts, where it goes on and where it ends
        if found and not (channel and channel[1] in seen):
            seen.add(channel and channel[1])
            kind, group = found[1], _group(right, devices)
            size = _size(kind, bool(found[2]), right[: found.start() + 1], group)
            if kind == "all-reduce" and current.startswith(_SCATTERED):
                kind, size = "reduce-scatter", size / 2
            ops[current].append((kind, group, int(size)))
        loop = _LOOP.search(right)
        if loop:
            trips = _TRIPS.search(right)
            loops[current].append((loop[1], loop[2], int(trips[1]) if trips else 0))
        for names in _CALLED.findall(right):
            calls[current] += [name.lstrip("%") for name in names.split(", ")]
        constants[current] += map(int, _CONSTANT.findall(right))

    def turns(condition: str) -> int:
        """A loop that JAX writes goes on while a counter is less than a constant; another's turns count as one."""
        found = constants[condition] + [n for called in calls[condition] for n in constants[called]]
        return max(found, default=1) or 1

    total: Counter = Counter()
    received: Counter = Counter()

    def walk(name: str, times: int) -> None:
        for kind, group, size in ops[name]:
            total[kind, group] += times
            received[kind, group] += times * size
        for called in calls[name]:
            walk(called, times)
        for condition, body, said in loops[name]:
            walk(body, times * (said or turns(condition)))

    walk(entry, 1)
    return sorted((Collective(*key, total[key], received[key]) for key in total), key=lambda c: c.bytes, reverse=True)


def moved(found: list[Collective]) -> int:
    """Bytes that a device receives in all of them."""
    return sum(c.bytes for c in found)


def _size(kind: str, begun: bool, shape: str, group: int) -> float:
    """Bytes that a device receives in one exchange of a group by the usual ring.

    Several arrays sent as one are summed.  The start of a gather, a scatter or a permutation lists what is sent beside
    what comes of it.
    """
    sizes = []
    for dtype, bits, dims in _SHAPE.findall(shape):
        width = 1 if dtype == "pred" else int(bits) / 8
        sizes.append(math.prod(map(int, filter(None, dims.split(",")))) * width)
    size = sum(sizes)
    if kind == "collective-permute":
        return max(sizes, default=0) if begun else size
    if kind == "reduce-scatter":
        return (size / (group + 1) if begun else size) * (group - 1)
    if begun and kind == "all-gather":
        size *= group / (group + 1)
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _group(line: str, devices: int) -> int:
    """Devices that exchange with each other; where the program does not say, all of them."""
    found = _GROUP.search(line)
    if not found:
        return devices
    listed, _, each, axes, named = found.groups()
    if listed:
        return len(listed.split(","))
    if each:
        return int(each)
    sizes = dict(_AXIS.findall(axes))
    return math.prod(int(part or sizes[name]) for name, part in _AXIS.findall(named))
