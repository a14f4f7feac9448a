"""Floating-point operations of an instruction of a compiled program.

Matmuls, convolutions, and the calls of NVIDIA's libraries that stand for them. A
multiply-add is 2; products with padding or the holes of a dilation do not count.
"""

import math
import re
from collections.abc import Sequence

from benchmarks.compiled_text import Instruction, Shape
from wsi_jax.training.flops import window_products

# Custom calls without arithmetic, and without bytes of their own.
FREE_CALLS = (
    "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding",
    "ResizeBitcast", "SliceBitcast",
)  # fmt: skip
# Of a convolution's input, kernel and output, the operands that are given, and which is
# the result: "lhs_rhs->out" of each call of cuDNN.
_CUDNN = {
    "Forward": ("input", "kernel", "output"),
    "BiasActivationForward": ("input", "kernel", "output"),
    "BackwardInput": ("output", "kernel", "input"),
    "BackwardFilter": ("input", "output", "kernel"),
}


def operation_flops(one: Instruction, operands: Sequence[Sequence[Shape]]) -> int:
    """FLOPs of an instruction; 0 where it has none, or they are not known.

    Args:
        operands: the arrays of each of its operands.
    """
    match one.opcode:
        case "dot":
            inner = one.attribute("lhs_contracting_dims")
            return _matmul(one, operands, inner.split(","))
        case "convolution":
            (lhs, *_), (rhs, *_), *_ = operands
            return _window(one, lhs.dims, rhs.dims, one.shapes[0].dims)
        case "custom-call":
            return _library_call(one, operands)
    return 0


def peak_of(one: Instruction, operands: Sequence[Sequence[Shape]]) -> str:
    """The name of the peak for what an operation multiplies."""
    if operands[0][0].dtype not in ("f32", "f64"):
        return "bfloat16"
    precision = one.attribute("operand_precision") or ""
    return "highest" if "highest" in precision else "float32"


def is_library_call(one: Instruction) -> bool:
    """Whether it calls cuBLAS or cuDNN."""
    target = one.attribute("custom_call_target") or ""
    return target.startswith(("__cublas$", "__cudnn$"))


def _library_call(one, operands) -> int:
    target = one.attribute("custom_call_target")
    if target.startswith("__cublas$"):
        pattern = r'"lhs_contracting_dimensions":\[([^\]]*)\]'
        inner = re.search(pattern, one.attributes)[1].replace('"', "")
        return _matmul(one, operands, inner.split(","))
    kind = target.removeprefix("__cudnn$conv").removesuffix("Graph")
    if target == kind or kind not in _CUDNN:
        return 0
    shapes = operands[0][0], operands[1][0], one.shapes[0]
    parts = dict(zip(_CUDNN[kind], (s.dims for s in shapes), strict=True))
    return _window(one, parts["input"], parts["kernel"], parts["output"])


def _matmul(one, operands, contracted) -> int:
    lhs = operands[0][0].dims
    return 2 * one.shapes[0].size * math.prod(lhs[int(i)] for i in contracted if i)


def _window(one, lhs, rhs, out) -> int:
    """A convolution of these sizes, by its `window` and `dim_labels`.

    The TPU compiler writes matmuls so too, their batches as axes of a window.
    """
    labels = one.attribute("dim_labels").replace("->", "_").split("_")
    sizes = zip(labels, (lhs, rhs, out), strict=True)
    lhs, rhs, out = (dict(zip(text, dims, strict=True)) for text, dims in sizes)
    window = dict(p.split("=") for p in (one.attribute("window") or "").split())
    axes = sorted(label for label in lhs if label.isdigit())

    def along(name, default):
        return window[name].split("x") if name in window else [default] * len(axes)

    products = [
        window_products(
            lhs[axis], rhs[axis], out[axis], int(stride),
            int(pad.split("_")[0]), int(left), int(right),
        )
        for axis, stride, pad, left, right in zip(
            axes,
            along("stride", "1"),
            along("pad", "0_0"),
            along("lhs_dilate", "1"),
            along("rhs_dilate", "1"),
            strict=True,
        )
    ]  # fmt: skip
    return 2 * out["b"] * out["f"] * rhs["i"] * math.prod(products)
