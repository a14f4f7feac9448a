"""Accelerators for which programs are compiled without one: data sheets, descriptions.

A TPU's compiler comes with the package `libtpu`, NVIDIA's with `jax-cuda12-plugin`,
`jax-cuda12-pjrt` (both of jax's version) and `nvidia-cuda-nvcc-cu12`, all three without
their dependencies, in an environment of their own.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.device import PEAKS

H200_FLOAT32 = 67e12  # without tensor cores
H200 = pathlib.Path(__file__).with_name("h200.txtpb")


class Chip(NamedTuple):
    """A chip, by its maker's data sheet.

    Attributes:
        kind: as JAX calls it.
        hbm_bytes: its memory.
        bandwidth: bytes a second of the memory.
        grids: shapes in which a TPU's chips are sold, the smallest first; () for a GPU.
        clock: cycles a second of a TPU's matrix units; None where not known.
        link: bytes a second, one way, of the slowest link of a ring of many chips: a
            TPU's to a neighbour, a GPU's to another machine.
        of_host: chips of a machine.
    """

    kind: str
    hbm_bytes: float
    bandwidth: float
    grids: tuple[tuple[int, ...], ...] = ()
    clock: float | None = None
    link: float | None = None
    of_host: int = 8

    @property
    def peaks(self) -> Mapping[str, float]:
        """FLOP/s in bfloat16, in float32 as JAX multiplies it, and at full precision:
        six passes in bfloat16 on a TPU."""
        bfloat16, float32 = PEAKS[self.kind]
        highest = bfloat16 / 6 if self.grids else H200_FLOAT32
        return {"bfloat16": bfloat16, "float32": float32, "highest": highest}


_PLANE = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))
CHIPS = {
    "v5e": Chip("TPU v5 lite", 16e9, 819e9, _PLANE, 1.5e9),
    # 1,200 GB/s of six links, both ways (cloud.google.com/tpu/docs/v5p).
    "v5p": Chip("TPU v5", 95e9, 2765e9, _CUBE, 1.75e9, 1200e9 / 12, 4),
    "v6e": Chip("TPU v6 lite", 32e9, 1640e9, _PLANE),
    # An adapter of 400 Gb/s for each (DGX H200); NVLink has 900 GB/s.
    "h200": Chip("NVIDIA H200", 141e9, 4800e9, link=400e9 / 8),
}


def described_devices(name: str, count: int) -> list[Any]:
    """As many devices of a chip, by description: programs compile for them, and none
    runs. Set before JAX is imported, JAX_PLATFORMS=cpu keeps other devices out of it.

    Raises:
        ModuleNotFoundError: the chip's compiler is not installed.
        ValueError: more chips than the largest description has.
    """
    # Nobody is to be asked for a TPU, nor to be kept from compiling at the same time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    if grids := CHIPS[name].grids:
        _require("libtpu", "pip install -e '.[compiled]'")
        grid = next((grid for grid in grids if math.prod(grid) >= count), None)
        if grid is None:
            most = math.prod(grids[-1])
            raise ValueError(f"--devices={count}: {most} are described at most")
        described = f"{name}:{'x'.join(map(str, grid))}"
        topology = topologies.get_topology_desc(described, platform="tpu")
        return topology.devices[:count]
    packages = "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12"
    _require("jax_cuda12_plugin", f"pip install --no-deps {packages}")
    from jax._src import xla_bridge

    xla_bridge._discover_and_register_pjrt_plugins()
    hosts, of_host = -(-count // 8), min(count, 8)
    topology = topologies.get_topology_desc(
        "",
        platform="cuda",
        topology=f"{hosts}x{of_host}x1",
        target_config=H200.read_text("utf-8"),
    )
    return topology.devices[:count]


def compiler_options(name: str) -> dict[str, str | bool]:
    """Options for a compiler that has no device to try its kernels on: matmuls are the
    library's, as its own would have to be tuned."""
    if CHIPS[name].grids:
        return {}
    return {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False}


def _require(module: str, mend: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"{module} compiles for this chip: {mend}")
