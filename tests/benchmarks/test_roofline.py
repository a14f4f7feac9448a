# ruff: noqa: E501  (compiled text has long lines)
"""Rooflines of programs whose arithmetic and traffic are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.roofline import roofline
from wsi_jax.training.flops import count_flops
from wsi_jax.training.mesh import make_mesh

PEAKS, BANDWIDTH = {"bfloat16": 4e12, "float32": 1e12, "highest": 2e11}, 1e11
F32 = 4  # bytes


def of(text: str, bandwidth: float = BANDWIDTH):
    return roofline(text, PEAKS, bandwidth)


def text_of(function, *shapes) -> str:
    return jax.jit(function).lower(*shapes).compile().as_text()


def compiled(function, *shapes):
    return of(text_of(function, *shapes))


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_matmul_takes_its_arithmetic_or_its_bytes_whichever_is_longer():
    text = text_of(jnp.matmul, floats(256, 512), floats(512, 128))
    flops, size = 2 * 256 * 512 * 128, F32 * (256 * 512 + 512 * 128 + 256 * 128)
    for bandwidth, seconds in ((1e12, flops / 1e12), (1e9, size / 1e9)):
        forecast = of(text, bandwidth)
        assert forecast.flops == flops
        assert forecast.total("bytes") == size
        assert forecast.seconds == pytest.approx(seconds)


def test_full_precision_takes_longer():
    multiply = lambda x, y: jnp.matmul(x, y, precision="highest")
    text = text_of(multiply, floats(256, 512), floats(512, 128))
    assert of(text, 1e15).seconds == pytest.approx(2 * 256 * 512 * 128 / 2e11)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_no_products_with_padding(stride):
    def net(x, kernel):
        axes = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return lax.conv_general_dilated(x, kernel, strides, "SAME", None, None, axes)

    shapes = floats(2, 17, 24, 8), floats(3, 3, 8, 16)
    assert compiled(net, *shapes).flops == count_flops(net, *shapes)


@pytest.mark.parametrize("trips", [1, 7])
def test_a_loop_counts_as_often_as_it_turns(trips):
    def net(x, kernel):
        body = lambda x, _: (jnp.tanh(x @ kernel), x[0, 0])
        return lax.scan(body, x, length=trips)

    shapes = floats(64, 64), floats(64, 64)
    loop = compiled(net, *shapes)
    assert loop.flops == trips * 2 * 64**3
    assert loop.unknown_loops == 0


def test_loops_in_loops_multiply():
    def net(x, kernel):
        inner = lambda x: lax.fori_loop(2, 7, lambda _, x: jnp.tanh(x @ kernel), x)
        return lax.fori_loop(0, 3, lambda _, x: inner(x) + 1, x)

    shapes = floats(64, 64), floats(64, 64)
    assert compiled(net, *shapes).flops == 3 * 5 * 2 * 64**3


def test_a_loop_that_depends_on_data_is_named_as_unknown():
    def net(x):
        return lax.while_loop(lambda x: x.sum() < 10, lambda x: x @ x, x)

    loop = compiled(net, floats(64, 64))
    assert loop.unknown_loops == 1
    assert loop.flops == 2 * 64**3


def test_a_scan_reads_one_row_a_turn():
    """Eight turns read all rows once, not eight times."""
    rows, width = 8, 4096

    def net(x):
        return lax.scan(lambda total, row: (total + row, None), jnp.zeros(width), x)

    moved = compiled(net, floats(rows, width)).total("bytes")
    row = F32 * width
    # A row, and the sum there and back, each turn; the rest is before and after it.
    assert 3 * rows * row <= moved < 5 * rows * row


def test_an_all_reduce_counts_its_result_once():
    mesh = make_mesh()
    split = NamedSharding(mesh, PartitionSpec("data"))
    shapes = floats(8 * mesh.size, 1024), floats(1024, 256)
    function = jax.jit(lambda x, w: (x @ w).sum(0), in_shardings=(split, None))
    one = of(function.lower(*shapes).compile().as_text())
    assert one.collectives == 1
    assert one.total("collective_bytes") == F32 * 256
    assert one.flops == 2 * 8 * 1024 * 256  # of one device


TPU = """HloModule jit_net, is_scheduled=true

%bitcast_fusion (p: bf16[4096,4096]) -> bf16[4096,4096] {
  %p = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %b = bf16[4096,4096]{1,0:T(8,128)(2,1)} bitcast(%p)
}

%fused (p.0: bf16[4096,4096], p.1: bf16[4096,4096]) -> bf16[4096,4096] {
  %p.0 = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %left = bf16[4096,4096]{1,0:T(8,128)(2,1)} fusion(%p.0), kind=kLoop, calls=%bitcast_fusion
  %p.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[4096,4096]{1,0:T(8,128)(2,1)} convolution(%left, %p.1), dim_labels=bf_io->bf
}

%update (p.2: f32[100,8,64], p.3: f32[1,8,64], p.4: s32[]) -> f32[100,8,64] {
  %p.2 = f32[100,8,64]{2,1,0:T(8,128)} parameter(0)
  %p.3 = f32[1,8,64]{2,1,0:T(8,128)} parameter(1)
  %p.4 = s32[]{:T(128)} parameter(2)
  ROOT %d = f32[100,8,64]{2,1,0:T(8,128)} dynamic-update-slice(%p.2, %p.3, %p.4, %p.4, %p.4)
}

ENTRY %main (a: bf16[4096,4096], w: bf16[4096,4096], rows: f32[100,8,64], row: f32[1,8,64], at: s32[]) -> (bf16[4096,4096], f32[100,8,64]) {
  %a = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %rows = f32[100,8,64]{2,1,0:T(8,128)} parameter(2)
  %row = f32[1,8,64]{2,1,0:T(8,128)} parameter(3)
  %at = s32[]{:T(128)S(6)} parameter(4)
  %start = (bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)}, bf16[4096,4096]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %done = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %matmul = bf16[4096,4096]{1,0:T(8,128)(2,1)} fusion(%done, %w), kind=kOutput, calls=%fused, metadata={op_name="jit(net)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1083068"}}
  %updated = f32[100,8,64]{2,1,0:T(8,128)} fusion(%rows, %row, %at), kind=kLoop, calls=%update
  ROOT %out = (bf16[4096,4096]{1,0:T(8,128)(2,1)}, f32[100,8,64]{2,1,0:T(8,128)}) tuple(%matmul, %updated)
}
"""


def test_what_lies_on_a_tpus_chip_moves_no_bytes():
    """A matrix is copied to the chip once; the matmul reads the other, and writes."""
    matrix = 2 * 4096**2
    moved = {one.name: one.bytes for one in of(TPU).operations}
    assert moved["start"] == matrix
    assert moved["matmul"] == 2 * matrix
    assert set(moved) == {"start", "matmul", "updated"}


def test_an_update_in_place_moves_its_rows_and_their_padding():
    """Read and written are 8 rows of 64 numbers, which tiles of (8, 128) pad to 128."""
    moved = {one.name: one.bytes for one in of(TPU).operations}
    assert moved["updated"] == 2 * F32 * 8 * 128


def test_a_tpus_matmul_is_read_from_its_convolution():
    forecast = of(TPU)
    assert forecast.flops == 2 * 4096**3
    assert forecast.total("cycles") == 1083068
    (longest,) = forecast.longest(1)
    assert longest == {
        "name": "jit(net)/dot_general [fusion]",
        "seconds": pytest.approx(2 * 4096**3 / 4e12),
        "flops": 2 * 4096**3,
        "bytes": 2 * 2 * 4096**2,
        "cycles": 1083068,
    }


# A loop of a TPU has no count beside it: it follows from its start, step and bound, of
# which the last comes from outside.
LOOP = """HloModule jit_loop

%body (t: (s32[], f32[64,64], s32[])) -> (s32[], f32[64,64], s32[]) {
  %t = (s32[], f32[64,64]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%t), index=1
  %n = s32[] get-tuple-element(%t), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (s32[], f32[64,64]{1,0}, s32[]) tuple(%next, %y, %n)
}

%condition (t.1: (s32[], f32[64,64], s32[])) -> pred[] {
  %t.1 = (s32[], f32[64,64]{1,0}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %n.1 = s32[] get-tuple-element(%t.1), index=2
  ROOT %less = pred[] compare(%i.1, %n.1), direction=LT
}

ENTRY %main (x.1: f32[64,64]) -> (s32[], f32[64,64], s32[]) {
  %x.1 = f32[64,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %bound = s32[] constant(11)
  %first = (s32[], f32[64,64]{1,0}, s32[]) tuple(%zero, %x.1, %bound)
  ROOT %w = (s32[], f32[64,64]{1,0}, s32[]) while(%first), condition=%condition, body=%body
}
"""


def test_trips_follow_from_start_step_and_bound():
    loop = of(LOOP)
    assert loop.flops == 6 * 2 * 64**3
    assert loop.unknown_loops == 0


CALLS = """HloModule jit_calls

ENTRY %main (x: bf16[8,32,32,64], k: bf16[3,3,64,128]) -> bf16[8,32,32,128] {
  %x = bf16[8,32,32,64]{3,2,1,0} parameter(0)
  %k = bf16[3,3,64,128]{3,2,1,0} parameter(1)
  %conv = (bf16[8,32,32,128]{3,2,1,0}, u8[64]{0}) custom-call(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"
  %other = (bf16[8]{0}, u8[64]{0}) custom-call(%x), custom_call_target="TopK"
  ROOT %y = bf16[8,32,32,128]{3,2,1,0} get-tuple-element(%conv), index=0
}
"""


def test_calls_of_a_library_are_counted_or_named_as_missing():
    calls = of(CALLS.replace("32,32,128", "30,30,128"))
    assert calls.flops == 2 * 8 * 30 * 30 * 128 * 64 * 9
    assert calls.uncounted == ["TopK"]
    # Input, kernel and output, and no room to work in.
    moved = {one.name: one.bytes for one in calls.operations}
    sizes = 8 * 32 * 32 * 64, 9 * 64 * 128, 8 * 30 * 30 * 128
    assert moved["conv"] == 2 * sum(sizes)


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="as_text"):
        of("nothing")
