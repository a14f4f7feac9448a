"""Forecasts of compiled programs: rows, files of them, and that every method lowers."""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import chips, compiled, record
from benchmarks.compiled_programs import SMALLEST, programs
from benchmarks.program_shapes import Program, placed
from wsi_jax.training.mesh import make_mesh

ONE = make_mesh(jax.devices()[:1])
COLUMNS = {
    "method", "program", "chip", "devices", "temp_bytes", "argument_bytes", "hbm_share",
    "flops", "bytes_accessed", "roofline_s", "roofline_mfu", "optimal_s", "collectives",
    "collective_bytes", "compile_s",
}  # fmt: skip
PROGRAMS = tuple(programs(SMALLEST))
N = 512


@pytest.fixture(autouse=True)
def compilation_cache():
    """As it was, once the benchmark has turned it off."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def matmul(mesh):
    shape = placed(mesh, jax.ShapeDtypeStruct((N, N), jnp.float32))
    return jax.jit(jnp.matmul), (shape, shape)


def broken(mesh):
    del mesh
    raise ValueError("cannot be lowered\nand more")


def row_of(make, chip="v5e", mesh=ONE):
    return compiled.compiled_row(Program("method", "program", make), chip, mesh)


def test_a_row_has_every_column_and_can_be_kept(tmp_path):
    row, forecast = row_of(matmul)
    assert set(row) >= COLUMNS
    assert row["flops"] == row["compiled_flops"] == forecast.flops == 2 * N**3
    assert row["argument_bytes"] == 2 * 4 * N**2
    v5e = chips.CHIPS["v5e"]
    assert row["hbm_share"] * v5e.hbm_bytes == pytest.approx(
        row["temp_bytes"] + 3 * 4 * N**2
    )
    least = max(2 * N**3 / 197e12, 3 * 4 * N**2 / 819e9)
    assert row["roofline_s"] == pytest.approx(least)
    assert row["roofline_mfu"] == pytest.approx(2 * N**3 / least / 197e12)
    record.write(tmp_path / "rows.json", [row])


def test_what_does_not_compile_is_a_row_with_its_reason(tmp_path):
    row, forecast = row_of(broken)
    assert row["error"] == "cannot be lowered"
    assert forecast is None
    record.write(tmp_path / "rows.json", [row])


def test_a_faster_chip_is_forecast_faster():
    slow, fast = (row_of(matmul, chip)[0]["roofline_s"] for chip in ("v5e", "v6e"))
    assert fast < slow


def test_rows_of_a_file_stay_unless_they_are_made_anew(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    made = [Program("a", "step", matmul), Program("b", "step", matmul)]
    monkeypatch.setattr(compiled, "programs", lambda sizes: made)
    cpu = lambda chip, count: jax.devices()[:count]
    monkeypatch.setattr(compiled, "described_devices", cpu)

    def run(**given):
        common = {
            "out": file,
            "chip": "v5e",
            "devices": 1,
            "only": [""],
            "operations": 0,
        }
        args = argparse.Namespace(
            **(common | {"missing": False, "quick": False} | given)
        )
        rows = list(compiled.rows(args))
        record.write(file, rows)
        return [(row["method"], row["devices"]) for row in rows]

    assert run(only=["a step", "c"]) == [("a", 1)]
    marked = json.loads(file.read_text())["rows"][0] | {"compile_s": -1}
    record.write(file, [marked])
    assert run(missing=True) == [("a", 1), ("b", 1)]
    assert compiled.kept(file)[0] == marked
    assert run(devices=2, only=["b"]) == [("a", 1), ("b", 1), ("b", 2)]
    run(only=["a"])
    assert marked not in compiled.kept(file)
    with pytest.raises(SystemExit, match="--only c"):
        run(only=["c"])


def test_too_many_chips_are_refused():
    if importlib.util.find_spec("libtpu") is None:
        with pytest.raises(ModuleNotFoundError, match="compiled"):
            chips.described_devices("v5e", 1)
    else:
        with pytest.raises(ValueError, match="--devices=65"):
            chips.described_devices("v5e", 65)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: " ".join(p[:2]))
def test_every_program_can_be_traced(program):
    """Shapes fit their functions; compiled it is by the long test, for a real chip."""
    function, shapes = program.make(ONE)
    assert function.trace(*shapes).out_info is not None
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    assert np.isfinite(sizes).all()


@pytest.mark.long
def test_every_method_lowers_for_a_tpu(tmp_path):
    """The TPU's own compiler takes the smallest form of each method."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no compiler for TPUs: pip install -e '.[compiled]'")
    file = tmp_path / "rows.json"
    command = "-m", "benchmarks.compiled", "--quick", "--chip=v5e", f"--out={file}"
    # It takes no flags of another compiler.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, *command], env=env, check=True)
    rows = compiled.kept(file)
    assert [row["error"] for row in rows if "error" in row] == []
    assert len(rows) == len(PROGRAMS)
    assert all(0 < row["hbm_share"] < 1 for row in rows)
