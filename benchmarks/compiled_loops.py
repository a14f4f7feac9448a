"""How often the loops of a compiled program turn."""

import math
import re
from collections.abc import Mapping

from benchmarks.compiled_text import Computation, Instruction, Module

# Instructions that hand their operand on as it is.
_SAME = ("bitcast", "copy", "convert", "reshape", "copy-done")


def trips(
    module: Module, computation: Computation, loop: Instruction, constants: Mapping
) -> int | None:
    """How often a loop turns; None where that depends on data.

    Args:
        computation: that in which the loop stands.
        constants: {index: value} of the integers that its parameter, a tuple, carries.
    """
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if match:
        return int(match[1])
    called = {k: module.computations[v] for k, v in loop.computations.items()}
    condition, body = called["condition"], called["body"]
    start = carried(module, computation, loop, constants)
    compare, (left, right) = _compared(module, condition)
    index = _index(condition, left)
    bound = _integer(module, condition, right, start)
    if compare not in ("LT", "LE", "NE") or bound is None or index not in start:
        return None
    after = body.root.operands[index] if body.root.opcode == "tuple" else None
    after = after and _integer(module, body, body.instructions[after], start)
    if after is None or after <= start[index]:
        return None
    step = after - start[index]
    return max(0, math.ceil((bound - start[index] + (compare == "LE")) / step))


def carried(module, computation, loop, constants) -> dict[int, int]:
    """{index: value} of the integers with which a loop begins, where they are
    constants."""
    (first,) = computation.operands(loop)
    if first.opcode != "tuple":
        return {}
    values = {}
    for i, operand in enumerate(computation.operands(first)):
        value = _integer(module, computation, operand, constants)
        if value is not None:
            values[i] = value
    return values


def invariant(module: Module, loop: Instruction, values: Mapping) -> dict[int, int]:
    """Those of a loop's first values that its body hands on unchanged."""
    body = module.computations[loop.computations["body"]]
    if body.root.opcode != "tuple":
        return {}
    handed = body.operands(body.root)
    return {i: v for i, v in values.items() if _index(body, handed[i]) == i}


def _compared(module, condition):
    """Direction and operands of the comparison that ends a condition."""
    root = condition.root
    operands = condition.operands(root)
    if root.opcode == "fusion":
        inner = module.computations[root.computations["calls"]].root
        numbers = [
            inner_operand.literal
            for inner_operand in module.computations[
                root.computations["calls"]
            ].operands(inner)
            if inner_operand.opcode == "parameter"
        ]
        if len(numbers) != 2:
            return None, (root, root)
        root, operands = inner, [operands[int(n)] for n in numbers]
    if root.opcode != "compare":
        return None, (root, root)
    return root.attribute("direction"), operands


def _index(computation, instruction) -> int | None:
    """The place in the computation's tuple of which this is the value."""
    while instruction.opcode in _SAME:
        (instruction,) = computation.operands(instruction)
    if instruction.opcode != "get-tuple-element":
        return None
    (source,) = computation.operands(instruction)
    if source.opcode != "parameter":
        return None
    return int(instruction.attribute("index"))


def _integer(module, computation, instruction, constants, given=()) -> int | None:
    """The value of an integer, if it follows from constants.

    `constants` are the places of a parameter that is a tuple, `given` the parameters.
    """
    again = lambda one: _integer(module, computation, one, constants, given)
    operands = lambda: list(map(again, computation.operands(instruction)))
    match instruction.opcode:
        case "constant":
            return _number(instruction)
        case "parameter" if given:
            return given[int(instruction.literal)]
        case "get-tuple-element":
            return constants.get(_index(computation, instruction))
        case "fusion":
            called = module.computations[instruction.computations["calls"]]
            return _integer(module, called, called.root, {}, operands())
        case "add" | "subtract" | "multiply":
            values = operands()
            if None in values:
                return None
            a, b = values
            results = {"add": a + b, "subtract": a - b, "multiply": a * b}
            return results[instruction.opcode]
    return operands()[0] if instruction.opcode in _SAME else None


def _number(instruction) -> int | None:
    scalar = not instruction.shapes[0].dims and instruction.shapes[0].dtype[0] in "su"
    return int(instruction.literal) if scalar else None
