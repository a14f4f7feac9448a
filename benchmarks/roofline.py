"""The least time that a compiled program can take on a chip (Williams et al. 2009).

Each operation takes what its arithmetic takes at the chip's peak, or what its bytes
take at the memory's bandwidth, whichever is longer; operations follow one another, and
loops turn as often as they do. Nothing is measured. What is counted:

- matmuls and convolutions; products with padding or the holes of a dilation are none.
- bytes of operands and results in the device's main memory, each array once, padding
  of tiles included. Of slices, gathers and updates in place only the rows that move.
- what lies on the chip already (a TPU's vector memory) is free, as are names for the
  same bytes. A copy in the background counts once, as if nothing ran beside it.
- time on the links between chips is not counted; the bytes of collectives are.
"""

import collections
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from benchmarks import compiled_loops
from benchmarks.compiled_text import Computation, Instruction, Module, Shape, parse
from benchmarks.operation_flops import (
    FREE_CALLS,
    is_library_call,
    operation_flops,
    peak_of,
)

MAIN, HOST = 0, 5  # memory spaces
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "add-dependency", "optimization-barrier", "partition-id", "replica-id", "domain",
)  # fmt: skip
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
# Of their first operand only what the result holds is read.
_READ_A_PART = ("slice", "dynamic-slice", "gather")
# Of their first operand only what another operand holds is written: its place.
_WRITE_A_PART = {"dynamic-update-slice": 1, "scatter": 2}


class Operation(NamedTuple):
    """An operation of a compiled program and its cost, all its turns together.

    Attributes:
        op_name: the path of JAX's functions that it comes from.
        flops: floating-point operations, by the peak that holds for them.
        bytes: read and written in the device's main memory.
        host_bytes: read and written in the host's.
        collective_bytes: result of a collective; 0 for all others.
        cycles: the TPU compiler's own estimate.
        seconds: its roofline.
        uncounted: a custom call whose arithmetic is not known, by its name.
    """

    name: str
    opcode: str
    op_name: str
    trips: int
    flops: Mapping[str, int]
    bytes: int
    host_bytes: int
    collective_bytes: int
    cycles: int
    seconds: float
    uncounted: str = ""


class Roofline(NamedTuple):
    """All operations of a program, and how many loops depend on data: these are
    counted as if they turned once."""

    operations: list[Operation]
    unknown_loops: int

    def total(self, name: str) -> float:
        """The sum of a field over all operations."""
        return sum(getattr(one, name) for one in self.operations)

    @property
    def seconds(self) -> float:
        return self.total("seconds")

    @property
    def flops(self) -> int:
        return sum(sum(one.flops.values()) for one in self.operations)

    @property
    def collectives(self) -> int:
        """How many collectives are executed."""
        return sum(o.trips for o in self.operations if o.opcode in _COLLECTIVES)

    @property
    def uncounted(self) -> list[str]:
        """Custom calls whose arithmetic is missing."""
        return sorted({one.uncounted for one in self.operations if one.uncounted})

    def longest(self, count: int, by: str = "seconds") -> list[dict]:
        """Those that take most, together by kind and name, of layers too that differ
        by their number; each with its `name`, `seconds`, `flops`, `bytes`, `cycles`."""
        groups = {}
        for one in self.operations:
            name = re.sub(r"\d+", "*", one.op_name or one.name)
            name = f"{name} [{one.opcode}]"
            group = groups.setdefault(name, collections.Counter())
            group["flops"] += sum(one.flops.values())
            for field in ("seconds", "bytes", "cycles"):
                group[field] += getattr(one, field)
        most = sorted(groups.items(), key=lambda item: -item[1][by])
        return [{"name": name, **group} for name, group in most[:count]]


def roofline(text: str, peaks: Mapping[str, float], bandwidth: float) -> Roofline:
    """The roofline of a compiled text on one chip.

    Args:
        text: `compiled.as_text()`.
        peaks: FLOP/s in "bfloat16", in "float32" as JAX multiplies it by default, and
            in "highest", float32 at full precision.
        bandwidth: bytes a second of the main memory.
    """
    counter = _Counter(parse(text), peaks, bandwidth)
    entry = counter.module.computations[counter.module.entry]
    return Roofline(list(counter.executed(entry, 1, {})), counter.unknown_loops)


class _Counter:
    """Walks through what a program executes, and counts it."""

    def __init__(self, module: Module, peaks: Mapping[str, float], bandwidth: float):
        self.module, self._peaks, self._bandwidth = module, peaks, bandwidth
        self.unknown_loops = 0

    def executed(
        self, computation: Computation, turns: int, constants: Mapping[int, int]
    ) -> Iterator[Operation]:
        """The operations of a computation that is executed so many times."""
        computations = self.module.computations
        for one in computation.instructions.values():
            match one.opcode:
                case "while":
                    yield from self._loop(computation, one, turns, constants)
                case "conditional":
                    each = [
                        list(self.executed(computations[name], turns, {}))
                        for name in one.branches
                    ]
                    yield from max(each, key=lambda ops: sum(o.seconds for o in ops))
                case "call" | "async-start":
                    name = one.computations.get("to_apply") or one.computations["calls"]
                    yield from self.executed(computations[name], turns, {})
                case _ if one.opcode not in _FREE and not _finishes(one):
                    yield self._operation(computation, one, turns)

    def _loop(self, computation, loop, turns, constants):
        module = self.module
        times = compiled_loops.trips(module, computation, loop, constants)
        self.unknown_loops += times is None
        first = compiled_loops.carried(module, computation, loop, constants)
        kept = compiled_loops.invariant(module, loop, first)
        turns *= 1 if times is None else times
        for role in ("condition", "body"):
            called = module.computations[loop.computations[role]]
            yield from self.executed(called, turns, kept)

    def _operation(self, computation, one: Instruction, turns: int) -> Operation:
        kind, flops = one.opcode.removesuffix("-start"), self._flops(computation, one)
        moved = self._moved(computation, one)
        amounts = dict.fromkeys((MAIN, HOST), 0)
        for space, size in moved:
            if space in amounts:
                amounts[space] += turns * size
        flops = {dtype: turns * count for dtype, count in flops.items()}
        work = sum(count / self._peaks[dtype] for dtype, count in flops.items())
        target, uncounted = one.attribute("custom_call_target"), ""
        if kind == "custom-call" and not flops and target not in FREE_CALLS:
            uncounted = target
        result = 0
        if kind in _COLLECTIVES:
            result = sum(shape.bytes for shape in _results(one, kind))
        size = amounts[MAIN]
        return Operation(
            one.name,
            kind,
            one.op_name,
            turns,
            flops=flops,
            bytes=size,
            host_bytes=amounts[HOST],
            collective_bytes=turns * result,
            cycles=turns * one.cycles,
            seconds=max(work, size / self._bandwidth),
            uncounted=uncounted,
        )

    def _flops(self, computation, one: Instruction) -> dict[str, int]:
        """FLOPs by the type of what is multiplied."""
        if one.opcode == "fusion":
            called, total = self.module.computations[one.computations["calls"]], {}
            for inner in called.instructions.values():
                for dtype, count in self._flops(called, inner).items():
                    total[dtype] = total.get(dtype, 0) + count
            return total
        operands = [operand.shapes for operand in computation.operands(one)]
        flops = operation_flops(one, operands)
        return {peak_of(one, operands): flops} if flops else {}

    def _moved(self, computation, one: Instruction) -> Iterator[tuple[int, int]]:
        """(memory space, bytes) of all that an operation reads and writes."""
        kind = one.opcode.removesuffix("-start")
        if kind == "custom-call" and one.attribute("custom_call_target") in FREE_CALLS:
            return
        operands = list(dict.fromkeys(one.operands))
        places = {name: one.operands.index(name) for name in operands}
        for name in operands:
            source = computation.instructions[name]
            part = self._read(one, kind, places[name], computation)
            for shape in source.shapes:
                yield (
                    shape.space,
                    shape.bytes if part is None else min(part, shape.bytes),
                )
        yield from self._written(computation, one, kind)

    def _read(self, one, kind, place: int, computation) -> int | None:
        """Bytes read of an operand; None for all of it."""
        if kind == "fusion":
            called = self.module.computations[one.computations["calls"]]
            return self._read_inside(called, called.parameter(place).name)
        if kind in _READ_A_PART and place == 0:
            return sum(shape.bytes for shape in _results(one, kind))
        return 0 if kind in _WRITE_A_PART and place == 0 else None

    def _read_inside(self, called: Computation, name: str) -> int | None:
        """Bytes that a fused computation reads of an array; None for all of it."""
        total = 0
        if called.root.name == name:
            return None
        for user in called.users(name):
            place = user.operands.index(name)
            if user.opcode in ("bitcast", "reshape"):
                part = self._read_inside(called, user.name)
            else:
                part = self._read(user, user.opcode, place, called)
            if part is None:
                return None
            total += part
        return total

    def _written(self, computation, one, kind) -> Iterator[tuple[int, int]]:
        """(memory space, bytes) of what an operation writes."""
        if kind != "fusion":
            for shape in _results(one, kind):
                yield shape.space, self._part_written(computation, one, shape)
            return
        called = self.module.computations[one.computations["calls"]]
        roots = [called.root]
        if called.root.opcode == "tuple":
            roots = called.operands(called.root)
        if len(roots) != len(one.shapes):  # several results of one instruction
            roots = [called.root] * len(one.shapes)
        for root, shape in zip(roots, one.shapes, strict=True):
            yield shape.space, self._part_written(called, root, shape)

    def _part_written(self, computation, one: Instruction, shape: Shape) -> int:
        """Bytes that are written of an array; of one updated in place the new ones."""
        while one.opcode in ("bitcast", "fusion"):
            if one.opcode == "fusion":
                computation = self.module.computations[one.computations["calls"]]
                one = computation.root
            else:
                (one,) = computation.operands(one)
        if (place := _WRITE_A_PART.get(one.opcode)) is None:
            return shape.bytes
        update = computation.operands(one)[place]
        return min(shape.bytes, sum(s.bytes for s in update.shapes))


def _finishes(one: Instruction) -> bool:
    """Whether it only waits for what runs in the background, and is counted there."""
    return one.opcode.endswith(("-done", "-update"))


def _results(one: Instruction, kind: str) -> tuple[Shape, ...]:
    """What an operation writes: of one in the background, not what it reads."""
    if is_library_call(one):  # whose other result is room to work in
        return one.shapes[:1]
    if kind in (one.opcode, "all-reduce"):
        return one.shapes
    if kind == "copy":  # (result, operand, context)
        return one.shapes[:1]
    count = len(one.operands)  # (operands, results, context)
    return (
        one.shapes[count : 2 * count]
        if kind in _COLLECTIVES
        else one.shapes[count : count + 1]
    )
