"""What a compiled program sends between devices, read off its HLO text: kinds, counts and bytes.

XLA's own cost analysis counts a loop's body once. Here what stands in a loop counts as often as it
runs, also where loops are nested.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_OPERATION = re.compile(r"%([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Traffic:
    """Of one kind, on one device: how many run, the bytes of the arrays that they make (of a
    reduce-scatter, that it reads), and the bytes that a ring sends for them."""

    count: int
    payload: int
    sent: int


def traffic(hlo: str, unknown_trips: int = 1) -> dict[str, Traffic]:
    """The collectives of an optimised module, by kind.

    unknown_trips: how often a loop runs whose condition compares with no constant: the decode loop,
    which ends when every sample has. A conditional counts all its branches. An all-gather that the TPU
    compiler spreads over several fusions, one channel, counts once.
    """
    computations, entry = _computations(hlo)
    times: dict[str, int] = {entry: 0}
    _count(entry, 1, computations, times, unknown_trips)
    devices = re.search(r"num_partitions=(\d+)", hlo)
    everyone = int(devices[1]) if devices else 1
    seen: set[tuple[str, str]] = set()
    totals: dict[str, list[int]] = {}
    for name, lines in computations.items():
        if not times.get(name):
            continue
        for line in lines:
            found = _OPERATION.search(line)
            if not found:
                continue
            result, operation = found[2], found[3].removesuffix("-start")
            if operation not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            if channel and (operation, channel[1]) in seen:
                continue
            if channel:
                seen.add((operation, channel[1]))
            size, n = _bytes(result), _group(line, everyone)
            if found[3].endswith("-start") and operation in ("all-gather", "collective-permute"):
                size = _largest(result)  # (what goes in, what comes out, handles)
            if operation == "reduce-scatter":
                size *= n  # its result is one piece
            if operation == "all-reduce" and "all-reduce-scatter" in name:
                operation = "reduce-scatter"  # the TPU compiler's way to write one
            share = (n - 1) / n
            sent = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(operation, share) * size
            total = totals.setdefault(operation, [0, 0, 0])
            for i, value in enumerate((1, size, round(sent))):
                total[i] += times[name] * value
    return {kind: Traffic(*totals[kind]) for kind in KINDS if kind in totals}


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            current = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found, entry


def _count(
    name: str, runs: int, computations: dict[str, list[str]], times: dict[str, int], unknown: int
) -> None:
    """Adds `runs` to a computation and to what it calls, by how often it calls it."""
    times[name] = times.get(name, 0) + runs
    for line in computations.get(name, ()):
        found = _OPERATION.search(line)
        if not found:
            continue
        trips = _trips(line, computations, unknown) if found[3] == "while" else 1
        for single, several in _CALLED.findall(line):
            for called in re.findall(r"[\w.-]+", single or several):
                if called in computations:
                    _count(called, runs * trips, computations, times, unknown)


def _trips(line: str, computations: dict[str, list[str]], unknown: int) -> int:
    """A loop's iterations: as the compiler wrote them down, or the constant that a counter from 0 is
    compared with."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    root = next((line for line in lines if line.lstrip().startswith("ROOT")), "")
    compared = re.search(r"compare\(([^)]*)\), direction=LT", root)
    if not compared:
        return unknown
    constants = {
        m[1]: int(m[2])
        for m in (re.search(r"%([\w.-]+) = s\d+\[\]\S* constant\((\d+)\)", x) for x in lines)
        if m
    }
    bounds = [constants[n] for n in re.findall(r"%([\w.-]+)", compared[1]) if n in constants]
    return bounds[0] if bounds else unknown


def _sizes(result: str) -> list[int]:
    return [
        _BYTES.get(kind, 0) * math.prod(int(d) for d in dims.split(",") if d)
        for kind, dims in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", result))
    ]


def _bytes(result: str) -> int:
    return sum(_sizes(result))


def _largest(result: str) -> int:
    return max(_sizes(result), default=0)


def _group(line: str, everyone: int) -> int:
    """Devices that take part together. XLA writes groups as lists, as an iota, or as mesh axes; an
    empty list is everyone."""
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(axes[name] for name in re.findall(r"'(\w+)'", mesh[2]))
    return everyone
