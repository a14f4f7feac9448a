"""Every method's programs, compiled for accelerators that are not here: a forecast.

    python -m benchmarks.compiled --out FILE --chip v5e [--devices 8] [--only TEXT ...]

The chip's own compiler runs (`benchmarks.chips` says how to install it), on any
computer and on no chip. What it says is the compilers' forecast, never a measurement.
Rows are written to FILE as they are made, and replace those of the same name there: a
long run may be done in pieces: by `--only`, or by `--missing`, which leaves out what
FILE has already. `--quick` takes the smallest form of each method. `--operations 10`
prints the operations that take most. A program that does not compile has its reason in
`error`. Columns, null where a compiler says nothing:

temp_bytes, argument_bytes: of one device; hbm_share is that of both and of results in
    the device's memory.
flops: matmuls and convolutions of the method on one device, counted as
    `wsi_jax.training.flops` does; compiled_flops are those of the compiled text.
bytes_accessed, optimal_s: as the TPU compiler has them. Both count a loop's body once,
    and bytes those on the chip too; a time below zero is left out.
hbm_bytes: read and written in the device's memory, host_bytes in the host's.
roofline_s: the least that the compiled program can take (`benchmarks.roofline`), loops
    as often as they turn. unknown_loops depend on data and count once; uncounted are
    calls whose arithmetic is not known.
roofline_mfu: flops over roofline_s over the chip's peak in bfloat16.
cycles_s: the TPU compiler's own cycles of all operations that it gives some, loops as
    often as they turn, at the chip's clock where that is known.
collectives, collective_bytes: how many are executed, and the size of their results.
compile_s: wall seconds of the compiler.
step_calls, seam_bytes: of tiles that are streamed, how often one step over 65,536 px
    calls the program, and what that keeps between its passes.
"""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from benchmarks import record
from benchmarks.chips import CHIPS, Chip, compiler_options, described_devices
from benchmarks.compiled_programs import PRODUCTION, SMALLEST, programs
from benchmarks.program_shapes import Program
from benchmarks.roofline import Roofline, roofline
from wsi_jax.training.flops import count_flops
from wsi_jax.training.mesh import make_mesh


def compiled_row(
    program: Program, name: str, mesh: jax.sharding.Mesh
) -> tuple[dict, Roofline | None]:
    """A program's row, and its roofline; None where it does not compile."""
    chip, row = CHIPS[name], {"method": program.method, "program": program.program}
    row |= {"chip": name, "devices": mesh.size} | program.facts
    began = time.perf_counter()
    try:
        function, shapes = program.make(mesh)
        lowered = function.trace(*shapes).lower()
        began = time.perf_counter()
        compiled, text = _compiled(lowered, compiler_options(name))
    except Exception as error:
        spent = time.perf_counter() - began
        return row | {"error": _short(error), "compile_s": round(spent, 1)}, None
    spent = time.perf_counter() - began
    forecast = roofline(text, chip.peaks, chip.bandwidth)
    costs = compiled.cost_analysis() or {}
    flops = _method_flops(function, shapes, mesh) or forecast.flops
    optimal = costs.get("optimal_seconds", 0)
    memory = _memory(compiled.memory_analysis(), chip)
    cycles = forecast.total("cycles")
    return row | memory | {
        "flops": flops,
        "compiled_flops": forecast.flops,
        "bytes_accessed": costs.get("bytes accessed"),
        "hbm_bytes": forecast.total("bytes"),
        "host_bytes": forecast.total("host_bytes"),
        "roofline_s": forecast.seconds,
        "roofline_mfu": flops / forecast.seconds / chip.peaks["bfloat16"],
        "optimal_s": optimal if optimal > 0 else None,
        "cycles_s": cycles / chip.clock if cycles and chip.clock else None,
        "unknown_loops": forecast.unknown_loops,
        "uncounted": ", ".join(forecast.uncounted),
        "collectives": forecast.collectives,
        "collective_bytes": forecast.total("collective_bytes"),
        "compile_s": round(spent, 1),
    }, forecast  # fmt: skip


def _compiled(lowered, options: dict) -> tuple:
    """A compiled program, and its text."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options=options | {"xla_dump_to": folder})
        try:
            return compiled, compiled.as_text()
        except jax.errors.JaxRuntimeError:
            # jaxlib refuses to print some of what the TPU compiler makes, which does.
            (file,) = pathlib.Path(folder).glob("*.after_codegen.txt")
            return compiled, file.read_text("utf-8")


def _memory(memory, chip: Chip) -> dict:
    temp, given = memory.temp_size_in_bytes, memory.argument_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    share = (temp + given + results) / chip.hbm_bytes
    return {"temp_bytes": temp, "argument_bytes": given, "hbm_share": share}


def _method_flops(function, shapes, mesh) -> int | None:
    """FLOPs of one device; None where they depend on data."""
    try:
        return count_flops(function, *shapes) // mesh.size
    except ValueError:
        return None


def _short(error: Exception) -> str:
    """The first line of a compiler's message."""
    return str(error).strip().partition("\n")[0][:200]


def _line(row: dict) -> str:
    name = f"{row['method']}: {row['program']}"
    if "error" in row:
        return f"{name}: {row['error']}"
    least, share = 1e3 * row["roofline_s"], row["roofline_mfu"]
    return (
        f"{name}: {least:,.2f} ms at least, {share:.0%} of the peak; "
        f"{row['hbm_share']:.0%} of the memory; compiled in {row['compile_s']:.0f} s"
    )


def _longest(forecast: Roofline, chip: Chip, count: int) -> str:
    """The operations that take most by the roofline, and by the compiler's cycles."""
    lines = []
    for by in ("seconds", "cycles") if chip.clock else ("seconds",):
        lines += [f"    most {by}: roofline, cycles (ms), GFLOP, MB"]
        for one in forecast.longest(count, by):
            cycles = 1e3 * one["cycles"] / chip.clock if chip.clock else 0
            lines += [
                f"    {1e3 * one['seconds']:9.3f} {cycles:9.3f} "
                f"{one['flops'] / 1e9:9.1f} {one['bytes'] / 1e6:9.1f} "
                f"{one['name'][-110:]}"
            ]
    return "\n".join(lines)


def rows(args: record.Arguments) -> Iterator[dict]:
    """Rows of the file that stay as they are, then those of the chosen programs."""
    # What is compiled for a description cannot be read again.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = make_mesh(described_devices(args.chip, args.devices))
    key = lambda row: tuple(row[name] for name in KEYS)
    there = {key(row): row for row in kept(args.out)}
    chosen = {
        (one.method, one.program, args.chip, args.devices): one
        for one in programs(SMALLEST if args.quick else PRODUCTION)
        if any(text in f"{one.method} {one.program}" for text in args.only)
    }
    if not chosen:
        raise SystemExit(f"--only {' '.join(args.only)}: no program has it in its name")
    if args.missing:
        chosen = {name: one for name, one in chosen.items() if name not in there}
    yield from (row for name, row in there.items() if name not in chosen)
    for program in chosen.values():
        row, forecast = compiled_row(program, args.chip, mesh)
        print(_line(row), flush=True)
        if forecast and args.operations:
            print(_longest(forecast, CHIPS[args.chip], args.operations), flush=True)
        yield row


def kept(path) -> list[dict]:
    """Rows of a file that is there."""
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


KEYS = ("method", "program", "chip", "devices")
PARTS = "programs with one of these in their name"
OPTIONS = {
    "--chip": {"choices": tuple(CHIPS), "required": True},
    "--devices": {"type": int, "default": 1, "help": "chips of one program"},
    "--only": {"nargs": "+", "default": [""], "metavar": "TEXT", "help": PARTS},
    "--missing": {"action": "store_true", "help": "programs that FILE lacks"},
    "--operations": {"type": int, "default": 0, "help": "of each, to print"},
}

if __name__ == "__main__":
    record.main(__doc__, rows, OPTIONS)
