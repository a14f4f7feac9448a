"""Seconds from slide files to predictions, by the share of the tiles zoomed into.

    python -m benchmarks.zoom_slides --out benchmarks/results/zoom_slides.json

Sixteen slides of 100 or more tiles, on disk, predicted together: all tiles are read at
low resolution, a share of them is zoomed into, 4 x 4 children each, and the encoder has
batches of 256: one zoom into every slide. At 100 % all children are read, in batches as
large, and nothing at low resolution. `bound` is the speed-up by tiles encoded: 16 N
over N + 16 T. Each share has a process of its own, for the peaks of resident memory and
of the device's own, if it has any; `program_mb` is the largest program's arguments,
results and temporaries. Seconds are the least of three runs. Weights are random.
"""

import dataclasses
import pathlib
import resource
import tempfile

import jax
import numpy as np
import optax

from benchmarks import record
from benchmarks.device import in_own_process, peak_bytes, seconds
from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.methods.sasha import SASHA
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.ops.zoom_env import horizon
from wsi_jax.run.extract.encode import CompiledEncoder, encode_slides
from wsi_jax.run.predict.zoom_method_runner import ZoomMethodRunner
from wsi_jax.run.tiling import TiledSlide, Tiling, tile_slide
from wsi_jax.slides.grid import Grid, children
from wsi_jax.slides.pyramid_writer import write_pyramid
from wsi_jax.training.compile import compile_method, compile_phase
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Bag, Task, TwoLevelFeatures

SLIDES, SIDE_PX, K = 16, 2560, 4
BATCH = SLIDES * K * K
SHARES = (0.1, 0.2, 1.0)
TILING = Tiling(
    grid=Grid(mpp=4.0, size_px=64, min_tissue=0.0), encoder=Encoder(width=16)
)
READING = Reading(threads=2)


def write_slides(folder: pathlib.Path) -> None:
    """Slides at 1 um/px, of blurred noise: JPEG takes as long as on tissue."""
    for i in range(SLIDES):
        rng = np.random.default_rng(i)
        coarse = rng.integers(90, 230, (SIDE_PX // 4, SIDE_PX // 4, 3), np.uint8)
        fine = rng.integers(0, 25, (SIDE_PX, SIDE_PX, 3), np.uint8)
        image = coarse.repeat(4, 0).repeat(4, 1) + fine
        write_pyramid(folder / f"slide_{i}.tif", image, 1.0, quality=80)


def tiled_slides(folder: pathlib.Path) -> list[TiledSlide]:
    """The slides and their tiles."""
    paths = sorted(folder.glob("*.tif"))
    return [tile_slide(Row(p.stem, str(p), "", p.stem, ""), TILING) for p in paths]


def trained(share: float):
    """Stages with their parameters as they begin, for features of the encoder."""
    method, d = SASHA(zoom_share=share), TILING.encoder.make().dim
    stages = method.stages(Task(("normal", "tumor")), optax.identity())
    x = TwoLevelFeatures(
        np.zeros((1, 64, d), np.float32), np.zeros((1, 64, d), np.float32)
    )
    bag = Bag(x, np.ones((1, 64), bool), np.zeros(1, np.int32), np.ones(1, np.float32))
    params = jax.jit(stages[-1].method.init)(jax.random.key(0), bag).params
    return stages, params


def zooming(share: float):
    """Predicts slides by a share of the tiles."""
    stages, params = trained(share)
    zoom = ZoomMethodRunner(
        TILING, K, stages[-1].rounds, params, make_mesh(jax.devices()[:1])
    )
    return lambda slides, meter: zoom(slides, BATCH, READING, meter)


def exhaustive():
    """Predicts slides by all children of all tiles."""
    mesh = make_mesh(jax.devices()[:1])
    stages, params = trained(1.0)
    encoder = CompiledEncoder(TILING.encoder, mesh)
    distil = compile_phase(stages[0].distil)
    method = compile_method(stages[-1].method, mesh)
    finer = dataclasses.replace(TILING.grid, mpp=TILING.grid.mpp / K)

    def predict(slides, meter):
        below = [children(s.yx, finer.size_px, K) for s in slides]
        encoded = encode_slides(
            slides, below, finer, encoder, batch=BATCH, reading=READING, meter=meter
        )
        for one in encoded:
            high = one.x.astype(np.float16).reshape(1, -1, K * K, one.x.shape[-1])
            x = distil(params, TwoLevelFeatures(high[:, :, 0], high))
            mask = np.ones(high.shape[:2], bool)
            bag = Bag(x, mask, np.zeros(1, np.int32), np.ones(1, np.float32))
            prediction = method.predict(params, bag, jax.random.key(0))
            jax.block_until_ready(prediction.logits)

    return predict


def measure(folder: pathlib.Path, runs: int, share: float) -> dict:
    """Predicts the slides some times; the row."""
    slides, meters = tiled_slides(folder), []
    predict = exhaustive() if share == 1 else zooming(share)

    def once():
        meters.append(Meter())
        predict(slides, meters[-1])

    spent = seconds(once, runs)
    n = len(slides[0].yx)
    steps = n if share == 1 else int(horizon(share, n))
    counted, held = meters[-1].as_dict(), peak_bytes()
    return {
        "share": share,
        "slides_together": len(slides),
        "n": n,
        "t": steps,
        "tiles_read": counted["tiles"] / len(slides),
        "mb_decoded": counted["bytes_decoded"] / len(slides) / 1e6,
        "s_per_slide": min(spent) / len(slides),
        "bound": 1.0 if share == 1 else K * K * n / (n + K * K * steps),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "program_mb": largest_program() / 1e6,
        "peak_device_mb": held and held / 1e6,
    }


def largest_program() -> int:
    """Bytes of arguments, results and temporaries, by the compiler's own count."""
    programs = jax.devices()[0].client.live_executables()
    counted = [program.get_compiled_memory_stats() for program in programs]
    return max(
        c.argument_size_in_bytes
        + c.output_size_in_bytes
        + c.temp_size_in_bytes
        - c.alias_size_in_bytes
        for c in counted
    )


def rows(args: record.Arguments) -> list[dict]:
    """A row for each share, the exhaustive one last."""
    with tempfile.TemporaryDirectory() as folder:
        write_slides(pathlib.Path(folder))
        one = pathlib.Path(folder), 1 if args.quick else 3
        rows = [in_own_process(measure, *one, share) for share in SHARES]
    whole = rows[-1]["s_per_slide"]
    return [row | {"speedup": whole / row["s_per_slide"]} for row in rows]


if __name__ == "__main__":
    record.main(__doc__, rows)
