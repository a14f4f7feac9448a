"""Tiles a second from slide files: ours, PyTorch's over OpenSlide, and decoding alone.

    python -m benchmarks.tile_loader --out benchmarks/results/tile_loader.json

Two small slides are made large by repeating their JPEG tiles, compressed as they are.
Each is read in tiles of 256 px, on the file's grid (its corner; an Aperio's tiles are
of 240 px) and off it, at its own mpp and at twice that, three ways in turn:

- `wsi_jax.data.tile_batches.tile_batches` with two threads, the slide opened anew;
- a PyTorch DataLoader over OpenSlide: two workers that stay, a handle each, regions
  turned to RGB, resized by Pillow where no level is stored, and stacked as uint8;
- every JPEG tile that is touched decoded once, by two threads, into the same memory.

Ratios are of medians over the rounds, more than 1 where ours is the faster.
`rss_growth_mb` is by how much the peak of resident memory grew from the first to the
last of 20 files, in a process of its own. Without PyTorch (`pip install
'wsi_jax[parity]'`) its columns are empty.
"""

import collections
import concurrent.futures
import importlib.util
import itertools
import os
import pathlib
import resource
import statistics
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np
import openslide
import tifffile
from PIL import Image

from benchmarks import record
from benchmarks.device import in_own_process, seconds
from wsi_jax.data.tile_batches import Reading, TileSource, tile_batches
from wsi_jax.slides.slide import open_slide

TILE_PX, BATCH, OFF_PX, FILES = 256, 64, 100, 20
READING = Reading(threads=2)
SHARED = pathlib.Path(os.environ.get("WSI_JAX_SHARED", "../shared"))
SLIDES = ("CMU-1-Small-Region.pyramid.tif", "CMU-1-Small-Region.svs")


class Case(NamedTuple):
    """Tiles to read of one slide.

    Attributes:
        path: path of the slide.
        yx: corners of the tiles, in pixels at `mpp`.
        mpp: um/px of the tiles.
        level: the level stored at `mpp`, or the next finer one.
        step: pixels of that level to a pixel at `mpp`.
    """

    path: pathlib.Path
    yx: np.ndarray
    mpp: float
    level: int
    step: int


def enlarge(path: pathlib.Path, out: pathlib.Path, times: int) -> None:
    """Repeats the whole JPEG tiles of the first two levels side by side.

    An even number of the first level's, so that the second is half as large.
    """
    with tifffile.TiffFile(path) as tiff, tifffile.TiffWriter(out) as writer:
        pages = [page for page in tiff.pages if page.is_tiled][:2]
        first = pages[0]
        down = first.imagelength // first.tilelength // 2 * 2
        across = first.imagewidth // first.tilewidth // 2 * 2
        for i, page in enumerate(pages):
            rows, columns = down >> i, across >> i
            tables = page.jpegtables
            writer.write(
                _tiles(page, rows, columns, times),
                shape=(rows * times * page.tilelength,
                       columns * times * page.tilewidth, 3),
                dtype=np.uint8,
                tile=page.tile,
                photometric=page.photometric,
                compression="jpeg",
                compressionargs={"outcolorspace": page.photometric.name},
                subsampling=(2, 2),
                subfiletype=int(i > 0),
                description=page.description,
                resolution=page.resolution,
                resolutionunit=page.resolutionunit,
                metadata=None,
                extratags=[(347, 7, len(tables), tables, True)] if tables else [],
            )  # fmt: skip


def _tiles(page, rows, columns, times):
    """The compressed tiles of a page, repeated."""
    file, stride = page.parent.filehandle, -(-page.imagewidth // page.tilewidth)
    for i, j in np.ndindex(rows * times, columns * times):
        index = i % rows * stride + j % columns
        file.seek(page.dataoffsets[index])
        yield file.read(page.databytecounts[index])


def case(path: pathlib.Path, first: int, coarser: int) -> Case:
    """Tiles at `coarser` times the slide's mpp whose grid begins at `first`."""
    slide = open_slide(path)
    mpp = slide.mpp * coarser
    y, x = (np.arange(first, n - TILE_PX + 1, TILE_PX) for n in slide.shape_at(mpp))
    yx = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    level = int(coarser > 1 and len(slide.levels) > 1)
    slide.close()
    return Case(path, yx, mpp, level, coarser >> level)


def ours(*cases: Case):
    """The loader's batches of the tiles of some slides."""
    sources = [TileSource(str(one.path), None, one.yx) for one in cases]
    return tile_batches(
        sources, mpp=cases[0].mpp, size_px=TILE_PX, batch_size=BATCH, reading=READING
    )


def drain(batches) -> None:
    """Takes every batch and keeps none."""
    collections.deque(batches, maxlen=0)


class OpenSlideTiles:
    """A data set of PyTorch's, as CLAM and TRIDENT have it: a handle per worker."""

    def __init__(self, one: Case):
        self.one, self.slide = one, None

    def __len__(self):
        return len(self.one.yx)

    def __getitem__(self, i):
        import torch

        if self.slide is None:
            self.slide = openslide.OpenSlide(self.one.path)
        side = TILE_PX * self.one.step
        scale = self.one.step * round(self.slide.level_downsamples[self.one.level])
        y, x = (int(n) * scale for n in self.one.yx[i])
        image = self.slide.read_region((x, y), self.one.level, (side, side))
        image = image.convert("RGB")
        if self.one.step > 1:
            image = image.resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image))


def pytorch(one: Case):
    """A function that goes through the tiles once, or None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    from torch.utils.data import DataLoader

    loader = DataLoader(
        OpenSlideTiles(one), BATCH, num_workers=2, persistent_workers=True,
        multiprocessing_context="spawn",
    )  # fmt: skip
    return lambda: drain(loader)


def raw(one: Case):
    """A function that decodes each JPEG tile that the tiles touch once."""
    with tifffile.TiffFile(one.path) as tiff:
        page = tiff.pages[one.level]
        offsets, counts = page.dataoffsets, page.databytecounts
        decoding = {
            "tables": page.jpegtables,
            "colorspace": page.photometric.name,
            "outcolorspace": "RGB",
        }
        shape, columns = page.tile, -(-page.imagewidth // page.tilewidth)
    touched = set()
    for first in one.yx * one.step:
        low, high = first // shape, (first + TILE_PX * one.step - 1) // shape
        rows, cols = (range(a, b + 1) for a, b in zip(low, high, strict=True))
        touched |= {i * columns + j for i in rows for j in cols}
    halves = np.array_split(sorted(touched), 2)

    def decode(indices):
        out = _memory((*shape, 3))
        for i in indices:
            data = os.pread(file, counts[i], offsets[i])
            imagecodecs.jpeg8_decode(data, out=out, **decoding)

    file = os.open(one.path, os.O_RDONLY)
    pool = concurrent.futures.ThreadPoolExecutor(2)
    return lambda: list(pool.map(decode, halves))


def _memory(shape):
    """Where libjpeg-turbo decodes fastest: not at a multiple of 32 bytes."""
    memory = np.empty(np.prod(shape) + 32, np.uint8)
    return memory[(16 - memory.ctypes.data) % 32 :][: np.prod(shape)].reshape(shape)


def compare(one: Case, rounds: int) -> dict:
    """Medians over rounds in which each has its turn, after one that does not count."""
    loaders = {
        "loader": lambda: drain(ours(one)),
        "pytorch": pytorch(one),
        "raw": raw(one),
    }
    rate, n = {"pytorch": None}, len(one.yx)
    spent = {name: [] for name, way in loaders.items() if way}
    for _ in range(rounds + 1):
        for name in spent:
            spent[name] += seconds(loaders[name], 1, warm=0)
    rate |= {name: n / statistics.median(each[1:]) for name, each in spent.items()}
    ratio = lambda other: rate[other] and rate["loader"] / rate[other]
    return {
        "tiles": n,
        **{f"{name}_tiles_per_s": rate[name] for name in loaders},
        "ratio_to_pytorch": ratio("pytorch"),
        "ratio_to_raw_decode": ratio("raw"),
    }


def growth(path: pathlib.Path) -> float:
    """By how many MB the peak grows over 20 files of one slide, off its grid."""
    one, peaks = case(path, OFF_PX, 1), {}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        links = [pathlib.Path(folder, f"{i}_{path.name}") for i in range(FILES)]
        for link in links:
            os.link(path, link)
        for batch in ours(*(one._replace(path=link) for link in links)):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peaks[int(batch.slide[0])] = peak
    return (peaks[FILES - 1] - peaks[0]) / 1e3


def rows(args: record.Arguments) -> Iterator[dict]:
    """Each slide on the file's grid and off it, at its own mpp and at twice that."""
    rounds, times = (1, 3) if args.quick else (5, 12)
    with tempfile.TemporaryDirectory() as folder:
        for small in args.slides or [SHARED / "data/slides" / name for name in SLIDES]:
            path = pathlib.Path(folder, small.name)
            enlarge(small, path, times)
            grown = {"rss_growth_mb": in_own_process(growth, path)}
            for coarser, (grid, first) in itertools.product(
                (1, 2), (("on", 0), ("off", OFF_PX))
            ):
                what = {"slide": small.name, "grid": grid, "coarser": coarser}
                yield what | compare(case(path, first, coarser), rounds) | grown


if __name__ == "__main__":
    slides = {"nargs": "+", "type": pathlib.Path, "metavar": "FILE"}
    slides["help"] = f"TIFFs of JPEG tiles; by default {' and '.join(SLIDES)}"
    record.main(__doc__, rows, {"--slides": slides})
