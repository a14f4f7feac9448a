"""Host memory does not grow with the slides that were read."""

import gc
import os
import pathlib

import numpy as np
import pytest
import tifffile

from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.data.tile_batches import Reading, TileSource, tile_batches
from wsi_jax.slides import decoded_tile_cache

MPP, SIDE, SLIDES, WARM = 0.5, 1024, 400, 200
YX = np.stack(np.indices((8, 8)), -1).reshape(-1, 2) * 128


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """400 slides of 3 MiB of pixels each: links to one, by names of their own.

    Of files of their own OpenSlide's cache, of 128 MiB, would fill up meanwhile.
    """
    folder, rng = tmp_path_factory.mktemp("slides"), np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(0, 255, (64, 64, 3)), 16, 0), 16, 1)
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg"}
    options |= {"resolution": (1e4 / MPP,) * 2, "resolutionunit": 3}
    tifffile.imwrite(folder / "s.tif", pixels.astype(np.uint8), **options)
    paths = [folder / f"{i}.tif" for i in range(SLIDES)]
    for path in paths:
        os.link(folder / "s.tif", path)
    return [str(path) for path in paths]


def resident() -> int:
    """Bytes of memory that the process has."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def tiles(paths):
    """Extraction's reads."""
    sources = [TileSource(path, MPP, YX) for path in paths]
    options = {"mpp": MPP, "size_px": 128, "batch_size": 64}
    for batch in tile_batches(sources, reading=Reading(threads=4), **options):
        assert batch.ok.all()
        yield


def streamed(paths):
    """StreamingCLAM's reads; slides stay, as an input of a run keeps them."""
    kept = []
    for path in paths:
        slide = StreamedSlide(path, MPP, YX, 128, MPP)
        kept.append(slide)
        for tile in slide.tiles(np.ndindex(2, 2), (512, 512)):
            assert tile.shape == (1, 512, 512, 3)
        yield


def crops(paths):
    """Attention sampling's reads, by one reader that keeps what it has room for."""
    reader = CropReader([MPP], 64, resident=False, threads=4, cache_gib=0.02)
    rng = np.random.default_rng(0)
    for path in paths:
        slide = StreamedSlide(path, MPP, YX // 4, 32, 4 * MPP)
        bag = reader.bag([slide], np.zeros(1, np.int32), np.ones(1, np.float32))
        yx, mask = rng.integers(0, SIDE - 64, (1, 32, 2)), np.ones((1, 32), bool)
        reader.read(bag.x.slide, np.zeros((1, 32), int), yx, mask).result()
        yield


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells it")
@pytest.mark.parametrize("read", [tiles, streamed, crops])
def test_memory_is_flat_over_400_slides(read, paths, monkeypatch):
    """200 slides of 3 MiB, after 200: of each less stays than one tile of its file.

    Names, places and counts do, some 3 KiB, and what the allocator sets aside.
    """
    monkeypatch.setattr(decoded_tile_cache.tiles, "limit_bytes", 8 << 20)
    after = {}
    for i, _ in enumerate(read(paths)):
        if i in (WARM, SLIDES - 1):
            after[i] = resident()
    assert i == SLIDES - 1
    grown = (after[SLIDES - 1] - after[WARM]) / (SLIDES - 1 - WARM)
    print(f"{read.__name__}: {grown / 1024:.1f} KiB a slide")
    assert grown < 32 << 10
