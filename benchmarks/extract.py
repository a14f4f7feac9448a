"""Slides per second from files to feature files, and how long the device waited.

    python -m benchmarks.extract --out benchmarks/results/extract.json

End to end: tissue, tiles, encoding, writing, as `experiments.extract_features` does it
in one process, on slides made for it, or on `--slides FOLDER`. Rows are threads that
read, by tiles in a batch; each extracts all slides anew, the encoder compiled.

`device_waited_percent` is of the encoding's seconds what would not have been if all
batches had followed each other without a pause, each as long as one takes whose pixels
are on the device. `wait_percent` is how long the driver waited for pixels; the device
may have had work for some of that.
"""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import record
from benchmarks.device import seconds
from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.run.config import Manifest
from wsi_jax.run.extract.slide_features import Extractor, extract, find_tiles
from wsi_jax.run.progress import silent
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.pyramid_writer import write_pyramid
from wsi_jax.training.compile import split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Dtype

THREADS, BATCHES = (1, 2, 4, 16), (32, 128)
SLIDES, SIDE_PX = 8, 2560
TIMED = 5


def write_slides(folder: pathlib.Path, n: int, side: int = SIDE_PX) -> None:
    """Slides at 1 um/px, four fifths of each side pink and as rough as tissue is."""
    tissue = slice(side // 10, 9 * side // 10)
    for i in range(n):
        rng = np.random.default_rng(i)
        rough = rng.integers(0, 50, (side // 4, side // 4, 1), np.uint8)
        rough = rough.repeat(4, 0).repeat(4, 1)
        rough = rough + rng.integers(0, 25, (side, side, 3), np.uint8)
        image = np.full((side, side, 3), 240, np.uint8)
        pink = np.array((170, 80, 140), np.uint8)
        image[tissue, tissue] = pink + rough[tissue, tissue]
        write_pyramid(folder / f"slide_{i}.tif", image, 1.0, quality=80)


def tiling(mpp: float, size_px: int, quick: bool) -> Tiling:
    """A random ResNet-50, of three stages as is usual; a small one to be quick."""
    if quick or jax.default_backend() == "cpu":
        encoder = Encoder(width=16, stages=3)
    else:
        encoder = Encoder(depth=Depth.resnet50, stages=3, dtype=Dtype.bfloat16)
    return Tiling(grid=Grid(mpp=mpp, size_px=size_px), encoder=encoder)


def seconds_of_batch(extractor: Extractor, batch: int) -> float:
    """The least of some times that one batch takes whose pixels are on the device."""
    side = extractor.tiling.tiles.size_px
    pixels = np.random.default_rng(0).integers(0, 255, (batch, side, side, 3), np.uint8)
    pixels = split(pixels, extractor.encoder.mesh)
    return min(seconds(lambda: extractor.encoder(pixels), TIMED))


def row(rows: list[Row], extractor: Extractor, threads: int, batch: int) -> dict:
    """All slides once, into a folder that is thrown away."""
    alone, meter = seconds_of_batch(extractor, batch), Meter()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"reading": Reading(threads=threads), "meter": meter}
        options |= {"progress": silent}
        records = find_tiles(rows, extractor.tiling, "encoded", **options)
        extract(records, extractor, pathlib.Path(folder), batch=batch, **options)
        wall_s = time.perf_counter() - began
    spent = meter.as_dict()
    tiling_s = spent["span.tiling.wall_s"]
    tiles = sum(record.tiles for record in records if not record.refusal)
    busy_s = min(-(-tiles // batch) * alone, wall_s - tiling_s)
    return {
        "encoder": extractor.tiling.encoder.name,
        "threads": threads,
        "batch": batch,
        "slides": spent["slides"],
        "tiles": spent["tiles"],
        "seconds": wall_s,
        "slides_per_s": spent["slides"] / wall_s,
        "tiles_per_s": spent["tiles"] / wall_s,
        "survey_percent": 100 * tiling_s / wall_s,
        "wait_percent": 100 * spent["span.wait.wall_s"] / wall_s,
        "device_waited_percent": 100 * (1 - busy_s / (wall_s - tiling_s)),
        "mb_decoded": spent["bytes_decoded"] / 1e6,
    }


def rows(args: record.Arguments) -> Iterator[dict]:
    """Threads by tiles in a batch, on slides that are given or made."""
    with tempfile.TemporaryDirectory() as folder:
        if not args.slides:
            write_slides(pathlib.Path(folder), SLIDES // 4 if args.quick else SLIDES)
        slides = Manifest(manifest=args.slides or folder).slides()
        chosen = tiling(args.mpp, args.size_px, args.quick)
        extractor = Extractor(chosen, make_mesh())
        row(slides[:1], extractor, THREADS[0], BATCHES[0])  # imports and compiles
        threads = THREADS[1:2] if args.quick else THREADS
        for each, batch in itertools.product(threads, BATCHES):
            yield row(slides, extractor, each, batch)


OPTIONS = {
    "--slides": {"help": "a folder, or a manifest"},
    "--mpp": {"type": float, "default": 1.0, "help": "of tiles"},
    "--size-px": {"type": int, "default": 256, "help": "of tiles"},
}

if __name__ == "__main__":
    record.main(__doc__, rows, OPTIONS)
