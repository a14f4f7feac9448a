"""Features of tiles and of their children, which are of the same tissue, finer."""

import dataclasses
import pathlib

import jax
import numpy as np
import openslide
import pytest
import tifffile
from scipy import ndimage

from wsi_jax.data.cohort import Row
from wsi_jax.data.features import read_coords, read_features
from wsi_jax.data.tile_batches import Reading
from wsi_jax.data.two_level_bags import pair
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.extract import slide_features as extraction
from wsi_jax.run.extract.encode import Encoded
from wsi_jax.run.extract.slide_features import Extractor, find_tiles
from wsi_jax.run.progress import silent
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.slides.grid import Grid, level0
from wsi_jax.slides.slide import open_slide
from wsi_jax.slides.tissue import Tissue
from wsi_jax.training.mesh import make_mesh

K, SIDE = 4, 32
LOW = Tiling(
    grid=Grid(mpp=4.0, size_px=SIDE, min_tissue=0.5),
    tissue=Tissue(mpp=8.0),
    encoder=Encoder(stages=1, width=8),
    reads=(1.0,),
)
HIGH = dataclasses.replace(LOW, children=K)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two slides of two levels, pink grain on white, that OpenSlide opens."""
    folder, rows = tmp_path_factory.mktemp("slides"), []
    for name, mpp in (("a", 1.0), ("b", 0.5)):
        rng = np.random.default_rng(len(rows))
        h, w = round(800 / mpp), round(610 / mpp)
        pixels = np.full((h, w, 3), 244, np.uint8)
        stain = rng.integers(60, 200, (h // 2, w, 3))
        stain = ndimage.gaussian_filter(stain, (3, 3, 0))
        pixels[: h // 2] = np.add(stain, (40, 0, 20))
        with tifffile.TiffWriter(folder / f"{name}.tif") as tiff:
            for i, level in enumerate((pixels, pixels[::2, ::2])):
                tiff.write(
                    np.ascontiguousarray(level),
                    tile=(64, 64),
                    photometric="rgb",
                    compression="zlib",
                    resolution=(1e4 / mpp / 2**i,) * 2,
                    resolutionunit=3,
                    subfiletype=int(i > 0),
                    metadata=None,
                )
        path = str(folder / f"{name}.tif")
        assert openslide.OpenSlide(path).level_count == 2
        rows.append(Row(name, path, "x", name, "train"))
    return rows


def extract(rows, tiling, folder, progress=silent, **options):
    meter = Meter()
    options = {"reading": Reading(threads=2, **options), "meter": meter}
    options["progress"] = progress
    extractor = Extractor(tiling, make_mesh(jax.devices()[:1]))
    records = find_tiles(rows, tiling, "encoded", **options)
    extraction.extract(records, extractor, folder, batch=16, **options)
    return records, meter.as_dict()


def test_children_of_a_tile_are_its_pixels_exactly(rows):
    """At their mpp: put together, one read of the tile's place at that."""
    for row in rows:
        low = tile_slide(row, LOW)
        high = HIGH.with_children(low)
        assert len(high.yx) == K * K * len(low.yx) > 0
        with open_slide(row.path) as slide:
            for tile, below in zip(low.yx, high.yx.reshape(-1, K, K, 2), strict=True):
                read = lambda at, slide=slide: slide.read(at, SIDE, 1.0)
                tiles = np.concatenate(
                    [np.concatenate([read(at) for at in line], 1) for line in below]
                )
                np.testing.assert_array_equal(
                    tiles, slide.read(tile * K, K * SIDE, 1.0)
                )


def test_their_features_are_those_of_their_pixels(rows, tmp_path):
    records, cost = extract(rows, HIGH, tmp_path)
    assert [record.status for record in records] == ["encoded"] * 2
    assert cost["tiles"] == K * K * sum(record.tiles for record in records)
    assert cost["slides"] == 0  # they are counted with their tiles
    apply = jax.jit(HIGH.encoder.make().apply)
    for record in records:
        (path,) = record.features
        assert path == tmp_path / HIGH.folder() / f"{record.slide_id}.h5"
        features = read_features(path)
        tiled = HIGH.with_children(record.slide)
        np.testing.assert_array_equal(features.yx, level0(tiled.yx, 1.0, tiled.mpp))
        assert features.attrs["target_mpp"] == 1.0
        with open_slide(record.row.path) as slide:
            pixels = np.stack([slide.read(yx, SIDE, 1.0) for yx in tiled.yx[:16]])
        expected = apply(HIGH.encoder.params(), pixels)
        np.testing.assert_allclose(features.x[:16], expected, rtol=2e-3, atol=1e-3)


def test_both_tilings_stand_side_by_side_and_what_is_whole_stays(rows, tmp_path):
    assert LOW.folder() != HIGH.folder()
    assert LOW.fingerprint() != HIGH.fingerprint()
    bars = []
    note = lambda what, *args: bars.append(what) or silent(what, *args)
    for tiling in (LOW, HIGH):
        extract(rows, tiling, tmp_path, note)
    jobs = ["encoding at 4 um/px", "encoding at 1 um/px"]
    assert [bar for bar in bars if bar != "tissue"] == jobs
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/*.h5")}
    assert len(before) == 4
    for tiling in (LOW, HIGH):
        _, cost = extract(rows, tiling, tmp_path)
        assert cost["tiles"] == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    killed = tmp_path / HIGH.folder() / "b.h5"
    killed.unlink()
    extract(rows, HIGH, tmp_path)
    changed = [p for p in before if p.stat().st_mtime_ns != before[p]]
    assert changed == [killed]


def cut_short(row, path, tmp_path):
    path.write_bytes(path.read_bytes()[: int(0.9 * path.stat().st_size)])
    return row


def mended_mpp(row, path, tmp_path):
    return dataclasses.replace(row, mpp=1.01)


def another_file(row, path, tmp_path):
    other = tmp_path / "a.tif"  # of the same size in pixels, mpp and tissue
    other.write_bytes(pathlib.Path(row.path).read_bytes() + b"another")
    return dataclasses.replace(row, path=str(other))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (cut_short, "a.h5 was damaged and is made anew"),
        (mended_mpp, ""),
        (another_file, ""),
    ],
)
def test_features_of_a_slide_that_has_changed_are_made_anew(
    rows, tmp_path, change, note
):
    """And only that slide's."""
    extract(rows, LOW, tmp_path)
    paths = [tmp_path / LOW.folder() / f"{row.slide_id}.h5" for row in rows]
    before = [path.stat().st_mtime_ns for path in paths]
    kept = read_features(paths[0])
    changed = change(rows[0], paths[0], tmp_path)
    records, _ = extract([changed, *rows[1:]], LOW, tmp_path)
    assert [record.status for record in records] == ["encoded"] * 2
    assert note in records[0].reason
    after = [path.stat().st_mtime_ns for path in paths]
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    features = read_features(paths[0])
    if change is mended_mpp:
        assert features.attrs["mpp"] == 1.01
    else:
        np.testing.assert_array_equal(features.x, kept.x)


@pytest.mark.parametrize(("lost", "refused"), [(1, False), (2, True), (9, True)])
def test_a_slide_that_has_lost_too_much_is_refused(lost, refused):
    encoded = Encoded(0, np.zeros((9 - lost, 1)), np.arange(9 - lost), lost, "torn")
    reason = encoded.refusal(0.2)
    assert bool(reason) == refused
    assert "torn" in reason or not refused


def test_a_tiling_of_tiles_is_what_it_was():
    """Files made before there were children are still known."""
    tiling = Tiling()
    assert tiling.fingerprint() == "f6e5d4bb3aed055f"
    assert tiling.folder() == "0.5mpp_256px_0px_overlap/features_resnet18_f6e5d4bb"


def test_a_slide_without_a_level_fine_enough_is_refused_at_both(rows):
    coarse = [dataclasses.replace(row, mpp=4.0) for row in rows[:1]]
    one, two = (tile_slide(coarse[0], tiling) for tiling in (LOW, HIGH))
    assert one.reason == two.reason
    assert "1 um/px was asked for, its finest level has 4" in one.reason


def test_children_that_cannot_be_read_are_noted(rows, tmp_path):
    """The others stand in the file, and the tiles of which all was read are paired."""
    data = bytearray(pathlib.Path(rows[0].path).read_bytes())
    with tifffile.TiffFile(rows[0].path) as tiff:
        torn = 10 + 4  # the level is 10 tiles wide
        start = tiff.pages[0].dataoffsets[torn]
        stop = start + tiff.pages[0].databytecounts[torn]
    data[start:stop] = bytes(stop - start)
    (tmp_path / "a.tif").write_bytes(data)
    row = dataclasses.replace(rows[0], path=str(tmp_path / "a.tif"))
    (low,), _ = extract([row], LOW, tmp_path)
    (high,), _ = extract([row], HIGH, tmp_path)
    n = K * K * high.tiles
    assert (low.status, low.reason) == ("encoded", "")
    assert high.status == "encoded"
    assert f"4 of {n} tiles unreadable: a: level 0" in high.reason
    (again,), _ = extract([row], HIGH, tmp_path)
    assert again.columns() == high.columns()

    files = [read_coords(tmp_path / t.folder() / "a.h5") for t in (LOW, HIGH)]
    assert len(files[1].yx) == n - 4
    kept, below = pair(*files, K)
    at = files[0].yx[kept]
    # The tile that was torn is within one of the grid, which is twice as wide.
    lost = np.delete(files[0].yx, kept, 0)
    assert (lost == [(0, 256)]).all()
    assert len(lost) == 1
    np.testing.assert_array_equal(files[1].yx[below[:, 0]], at)
    np.testing.assert_array_equal(files[1].yx[below[:, -1]], at + (K - 1) * SIDE)

    few = dataclasses.replace(row, slide_id="few")
    (refused,), _ = extract([few], HIGH, tmp_path, max_unreadable=0.001)
    assert refused.status == "refused"
    assert "max_unreadable" in refused.reason
