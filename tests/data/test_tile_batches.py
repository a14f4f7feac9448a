import itertools
import pathlib

import numpy as np
import pytest
import tifffile

from wsi_jax.data.tile_batches import Reading, TileCounts, TileSource, tile_batches
from wsi_jax.slides.slide import open_slide

MPP, SIZE = 0.5, 64
READING = Reading(threads=4)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three slides of 7, 0 and 12 tiles; the third, of JPEGs, has no mpp of its own."""
    folder, rng = tmp_path_factory.mktemp("slides"), np.random.default_rng(0)
    made = []
    for name, (rows, cols), mpp in (("a", (1, 7), 0.5), ("b", (3, 4), None)):
        pixels = rng.integers(0, 255, (rows * SIZE, cols * SIZE, 3), np.uint8)
        tags = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(
            folder / f"{name}.tif",
            pixels,
            tile=(64, 64),
            photometric="rgb",
            **(tags if mpp else {"compression": "jpeg"}),
        )
        yx = np.stack(np.indices((rows, cols)), -1).reshape(-1, 2) * SIZE
        made.append(TileSource(str(folder / f"{name}.tif"), None if mpp else 0.5, yx))
    a, b = made
    return [a, a._replace(yx=np.zeros((0, 2), int)), b]


def batches(sources, **options):
    given = {"mpp": MPP, "size_px": SIZE, "batch_size": 4, "reading": READING} | options
    return tile_batches(sources, **given)


def same(one, two):
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_batch_holds_the_tiles_it_says_of_many_slides(sources):
    read = []
    for batch in batches(sources):
        assert batch.pixels.shape == (4, SIZE, SIZE, 3)
        assert batch.pixels.dtype == np.uint8
        for pixels, slide, tile, ok in zip(*batch, strict=True):
            assert ok == (slide >= 0)
            if not ok:
                assert tile == -1
                assert not pixels.any()
                continue
            read.append((slide, tile))
            with open_slide(sources[slide].path, sources[slide].mpp) as image:
                want = image.read(sources[slide].yx[tile], SIZE, MPP)
            np.testing.assert_array_equal(pixels, want)
    assert read == [(0, i) for i in range(7)] + [(2, i) for i in range(12)]


@pytest.mark.parametrize("seed", [None, 3])
def test_resumed_at_step_k_is_the_tail_of_the_uninterrupted_order(sources, seed):
    whole = list(itertools.islice(batches(sources, seed=seed), 12))
    tail = itertools.islice(batches(sources, seed=seed, start=2), 10)
    same(tail, whole[2:])


def test_a_seed_reorders_every_pass_and_never_ends(sources):
    flat = lambda run: [at for b in run for at in zip(b.slide, b.tile, strict=True)]
    run = list(itertools.islice(batches(sources, seed=3), 10))
    one, two, plain = flat(run[:5]), flat(run[5:]), flat(batches(sources))
    assert sorted(one) == sorted(two) == sorted(plain)
    assert one != two != plain != one


@pytest.mark.parametrize("seed", [None, 3])
def test_processes_read_each_tile_once_and_make_up_the_same_batch(sources, seed):
    whole = list(itertools.islice(batches(sources, seed=seed), 5))
    parts = [
        itertools.islice(batches(sources, seed=seed, process=p, processes=2), 5)
        for p in range(2)
    ]
    joined = [
        [np.concatenate(fields) for fields in zip(*two, strict=True)]
        for two in zip(*parts, strict=True)
    ]
    same(joined, whole)


@pytest.mark.parametrize("batch_size", [1, 17, 48])
def test_the_size_of_a_batch_does_not_change_the_tiles(sources, batch_size):
    def flat(run):
        return [np.concatenate(fields) for fields in zip(*run, strict=True)]

    one = flat(batches(sources, batch_size=batch_size))
    real = one[1] >= 0
    same([[field[real] for field in one]], [[f[:19] for f in flat(batches(sources))]])


def test_tiles_that_cannot_be_read_are_counted_with_their_reason(
    sources, tmp_path, shared
):
    data = pathlib.Path(sources[2].path).read_bytes()
    cut = tmp_path / "cut.tif"
    with tifffile.TiffFile(sources[2].path) as tiff:
        # The last three tiles now lie beyond the end of the file.
        cut.write_bytes(data[: tiff.pages[0].dataoffsets[9]])
    bad = [
        sources[0],
        TileSource(str(tmp_path / "absent.svs"), None, sources[0].yx),
        TileSource(str(cut), 0.5, sources[2].yx),
        TileSource(
            str(shared / "data/slides/broken_not_a_slide.svs"), 0.5, sources[0].yx
        ),
    ]
    counts = TileCounts()
    run = list(batches(bad, counts=counts))
    slide, tile, ok = (np.concatenate([b[i] for b in run]) for i in (1, 2, 3))
    pixels = np.concatenate([b.pixels for b in run])
    assert ok[slide == 0].all()
    assert not ok[(slide == 1) | (slide == 3)].any()
    assert set(tile[(slide == 2) & ~ok]) >= {9, 10, 11}
    assert ok[slide == 2].any()
    assert not pixels[~ok].any()
    assert counts.tiles == ok.sum()
    assert counts.failed == (~ok & (slide >= 0)).sum()
    assert set(counts.reasons) == {1, 2, 3}
    assert all(name in counts.reasons[i] for i, name in ((1, "absent"), (2, "cut")))


def test_what_was_read_is_counted(sources):
    counts = TileCounts()
    list(batches(sources, counts=counts))
    assert counts.tiles == 19
    assert counts.failed == 0
    assert counts.reasons == {}
    assert counts.bytes_decoded == 19 * SIZE * SIZE * 3
    assert counts.reading_s > 0
    assert counts.waiting_s > 0


def test_what_is_held_of_a_batch_is_never_written_anew(sources):
    run, cuts, copies, places = batches(sources, seed=3), [], [], set()
    for i, batch in enumerate(itertools.islice(run, 40)):
        places.add(batch.pixels.ctypes.data)
        if i % 4 == 0:
            cuts.append(batch.pixels[1:3, ::2])
            copies.append(cuts[-1].copy())
    del batch
    for cut, copy in zip(cuts, copies, strict=True):
        np.testing.assert_array_equal(cut, copy)
    assert len(places) < 40


def test_nothing_to_read_is_no_batch_and_one_that_does_not_divide_is_refused(sources):
    assert list(batches([])) == list(batches(sources[1:2], seed=0)) == []
    assert list(batches(sources, start=99)) == []
    with pytest.raises(ValueError, match="batch of 4 does not divide among 3"):
        batches(sources, processes=3)
