"""XLA's compiled text, read: computations, instructions, shapes, loops and their trips.

`compiled.as_text()` lists what a device executes after every optimisation, in the order
in which it does.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,*]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATIONS = re.compile(
    r"(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}


class Shape(NamedTuple):
    """An array of a compiled program.

    Attributes:
        dims: its dimensions.
        space: number of the memory that it lies in. 0 is the device's main memory; on a
            TPU 1 is on the chip, and 5 the host's.
        bytes: what it takes there, padding of tiles included.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int
    bytes: int

    @property
    def size(self) -> int:
        return math.prod(self.dims)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        shapes: the arrays of its result, a tuple's in a row.
        operands: names of what it takes.
        literal: what stands between its brackets.
        attributes: what follows these.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=...`, up to the next blank, comma or bracket."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|\"[^\"]*\"|[^\s,}}]*)", self._short)
        return match and match[1].strip('{}"')

    @property
    def _short(self):
        return self.attributes.partition(", metadata=")[0]

    @property
    def op_name(self) -> str:
        """The path of JAX's functions that it comes from; "" for the compiler's own."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def computations(self) -> dict[str, str]:
        """Names of the computations that it calls, by role."""
        return dict(_COMPUTATIONS.findall(self.attributes))

    @property
    def branches(self) -> list[str]:
        """Names of the computations of a conditional."""
        several = self.attribute("branch_computations")
        if several is not None:
            return re.findall(r"%?([\w.\-]+)", several)
        called = self.computations
        return [called["true_computation"], called["false_computation"]]

    @property
    def cycles(self) -> int:
        """Clock cycles by the TPU compiler's own estimate; 0 where it has none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else 0


class Computation(NamedTuple):
    """Instructions by their names, in order, and the last of them, the result."""

    instructions: Mapping[str, Instruction]
    root: Instruction

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results it takes."""
        return [self.instructions[name] for name in instruction.operands]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take a result."""
        return [i for i in self.instructions.values() if name in i.operands]

    def parameter(self, number: int) -> Instruction:
        """A parameter by its number."""
        return next(
            i
            for i in self.instructions.values()
            if i.opcode == "parameter" and int(i.literal) == number
        )


class Module(NamedTuple):
    """A compiled program: its computations, and the name of that which is called."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The program that a compiled text describes.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        if name is None:
            if match := _HEAD.match(line):
                name, lines = match[2], []
                entry = name if match[1] else entry
        elif line.startswith("}"):
            computations[name] = _computation(lines)
            name = None
        else:
            lines.append(line)
    if entry is None:
        raise ValueError("no ENTRY in the text: give what compiled.as_text() returns")
    return Module(computations, entry)


def _computation(lines: Sequence[str]) -> Computation:
    instructions, root = {}, None
    for line in lines:
        if match := _NAME.match(line):
            one = _instruction(match[2], line[match.end() :])
            instructions[one.name] = one
            root = one if match[1] or root is None else root
    return Computation(instructions, root)


def _instruction(name: str, text: str) -> Instruction:
    """The instruction of `TYPE opcode(operands), attributes`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    literal, opcode = text[opening + 1 : closing], text[end:opening].strip()
    operands = ()
    if opcode not in ("constant", "parameter"):
        operands = tuple(re.findall(r"%([\w.\-]+)", literal))
    shapes = tuple(shapes_in(text[:end]))
    return Instruction(name, opcode, shapes, operands, literal, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens there is closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"a bracket stays open: {text[:80]}")


def shapes_in(text: str) -> Iterator[Shape]:
    """The arrays of a type, tuples flattened."""
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = tuple(int(d.strip("<=")) for d in dims.split(",") if d)
        space = _SPACE.search(layout)
        bits = _BITS.get(dtype)
        if bits is None:
            bits = int(re.search(r"\d+", dtype)[0])
        count = _padded(sizes, layout)
        yield Shape(dtype, sizes, int(space[1]) if space else 0, count * bits // 8)


def _padded(sizes: tuple[int, ...], layout: str) -> int:
    """Elements in memory: the innermost dimensions fill whole tiles."""
    order, _, rest = layout.partition(":")
    tile = _TILE.search(rest)
    if not sizes or not tile:
        return math.prod(sizes)
    inner = [sizes[int(i)] for i in order.split(",")]
    sides = [int(side) for side in reversed(tile[1].split(",")) if side != "*"]
    inner += [1] * (len(sides) - len(inner))
    for i, side in enumerate(sides):
        inner[i] = -(-inner[i] // side) * side
    return math.prod(inner)
