"""A disk with real faults: every slide is done, or refused with its reason."""

import contextlib
import re
import time

import jax
import numpy as np
import pytest
import tifffile
from faulty_disk import FaultyDisk
from slides.tiffs import damage

from wsi_jax.data.bag_store import Loading
from wsi_jax.data.bags import Bags, evaluation_bags
from wsi_jax.data.cohort import Row
from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.features import FeatureError, read_features
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.extract import slide_features as extraction
from wsi_jax.run.extract.slide_features import Extractor, find_tiles
from wsi_jax.run.progress import silent
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides import file_faults
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.slide_id import slide_id_of
from wsi_jax.slides.tissue import Tissue
from wsi_jax.training.mesh import make_mesh

MPP, SIDE = 4.0, 32
TILING = Tiling(
    grid=Grid(mpp=MPP, size_px=SIDE, min_tissue=0.5),
    tissue=Tissue(mpp=8.0),
    encoder=Encoder(stages=1, width=8),
)
READING = Reading(threads=4, max_unreadable=0.2)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk with faults; what fails is repeated soon, what hangs given up in 3 s."""
    monkeypatch.setattr(file_faults, "WAITS_S", (0.02,) * 5)
    monkeypatch.setitem(file_faults._settings, "hang_s", 0.3)
    try:
        disk = FaultyDisk(tmp_path / "files", tmp_path / "disk")
    except OSError:
        pytest.skip("only root may mount a disk with faults, where there is FUSE")
    with disk:
        yield disk


def write_slides(disk, names):
    """Their lines of a manifest; pink grain above white, 32 tiles in 8 of the file."""
    rows = []
    for seed, name in enumerate(names):
        pixels = np.full((256, 256, 3), 244, np.uint8)
        grain = np.random.default_rng(seed).integers(90, 160, (32, 64, 3))
        pixels[:128] = np.repeat(np.repeat(grain + np.array([40, 0, 20]), 4, 0), 4, 1)
        tifffile.imwrite(
            disk.folder / f"{name}.tif", pixels, tile=(64, 64), photometric="rgb",
            compression="jpeg", resolution=(1e4 / MPP,) * 2, resolutionunit=3,
            metadata=None,
        )  # fmt: skip
        rows.append(Row(name, str(disk.mount / f"{name}.tif"), "x", name, "train"))
    return rows


def extract(rows, folder, then=lambda: None):
    """{slide: record}; `then` is called when tiles have been found."""
    options = {"reading": READING, "meter": Meter(), "progress": silent}
    records = find_tiles(rows, TILING, "encoded", **options)
    then()
    extractor = Extractor(TILING, make_mesh(jax.devices()[:1]))
    extraction.extract(records, extractor, folder, batch=16, **options)
    return {record.slide_id: record for record in records}


def same_features(records, others):
    for name, record in records.items():
        ours, theirs = (
            read_features(one.features[0]) for one in (record, others[name])
        )
        np.testing.assert_array_equal(ours.x, theirs.x)
        np.testing.assert_array_equal(ours.yx, theirs.yx)


def test_every_slide_is_done_or_refused_with_its_reason(disk, tmp_path, capfd):
    """And done when the disk is mended and the command given again."""
    reasons = {
        **{"fine": "", "passes": "", "slow": ""},
        "scratched": "4 of 32 tiles unreadable: scratched: level 0 cannot be read",
        "ruined": "of 32 tiles unreadable: ruined: level 0 cannot be read",
        "cut": "of 32 tiles unreadable: cut: level 0 cannot be read",
        "vanished": "no file .*vanished.tif",
        "failing": r"Input/output error.*disk or network of .*failing\.tif answers",
        "hanging": r"a read has not come back for 3 s.*hanging\.tif answers",
    }
    rows = write_slides(disk, reasons)
    contents = {path: path.read_bytes() for path in disk.folder.iterdir()}
    clean = extract(rows, tmp_path / "clean")

    def break_disk():
        disk.fault("passes.tif", "EIO 3")
        disk.fault("failing.tif", "EIO")
        disk.fault("slow.tif", "slow 0.01")
        disk.fault("hanging.tif", "hang")
        damage(disk.folder / "scratched.tif", 0)
        for tile in range(4):
            damage(disk.folder / "ruined.tif", tile)
        cut = contents[disk.folder / "cut.tif"]
        (disk.folder / "cut.tif").write_bytes(cut[: len(cut) // 2])
        (disk.folder / "vanished.tif").unlink()

    records = extract(rows, tmp_path / "features", break_disk)
    assert list(records) == list(reasons)
    for name, reason in reasons.items():
        assert bool(records[name].reason) == bool(reason)
        assert re.search(reason, records[name].reason), records[name].reason
    done = [name for name, record in records.items() if not record.refusal]
    assert done == ["fine", "passes", "slow", "scratched"]
    same_features({n: records[n] for n in done[:3]}, clean)
    assert "hanging: a read of " in capfd.readouterr().err
    before = records["fine"].features[0].stat().st_mtime_ns
    for name in reasons:
        disk.fault(f"{name}.tif")
    for path, content in contents.items():
        path.write_bytes(content)
    while file_faults.is_hung():  # the thread left behind comes back
        time.sleep(0.05)
    again = extract(rows, tmp_path / "features")
    assert not any(record.refusal for record in again.values())
    assert again["fine"].features[0].stat().st_mtime_ns == before
    scratched = again.pop("scratched")  # its features stay, and so does their note
    assert scratched.notes == records["scratched"].notes
    same_features(again, clean)


@pytest.mark.long
def test_faults_in_one_percent_of_reads(disk, tmp_path, monkeypatch):
    """Of 200 slides, by every reader: what passes changes nothing, two slides in a
    hundred of each fault that stays are refused or blank, and say why."""
    monkeypatch.setitem(file_faults._settings, "hang_s", 60.0)
    names = [f"s{i:03}" for i in range(200)]
    rows = write_slides(disk, names)
    clean = extract(rows, tmp_path / "clean")
    failing, scratched, vanished = names[7::100], names[30::100], names[50::100]
    pixels = {row.slide_id: disk.folder / f"{row.slide_id}.tif" for row in rows}
    pixels = {
        name: open_slide(path).read((0, 0), 256, MPP) for name, path in pixels.items()
    }

    def break_disk():
        disk.fault("", "EIO 0.01")
        for name in failing:
            disk.fault(f"{name}.tif", "EIO")
        for name in names[90::100]:
            disk.fault(f"{name}.tif", "slow 0.05")
        for name in scratched:
            damage(disk.folder / f"{name}.tif", 0)
        for name in vanished:
            (disk.folder / f"{name}.tif").unlink()

    records = extract(rows, tmp_path / "features", break_disk)
    refused = {name for name, record in records.items() if record.refusal}
    assert refused == {*failing, *vanished}
    assert {name for name, one in records.items() if one.notes} == {*scratched}
    same_features({n: r for n, r in records.items() if not r.reason}, clean)
    blank = {*refused, *scratched}
    slides = []
    for row in rows:
        tiled = clean[row.slide_id].slide
        with contextlib.suppress(SlideError):
            slides.append(StreamedSlide(row.path, None, tiled.yx, SIDE, MPP))
    assert {slide_id_of(slide.path) for slide in slides} == {*names} - refused
    for slide in slides:
        tiles = list(slide.tiles(np.ndindex(4, 4), (64, 64)))
        name = slide_id_of(slide.path)
        assert (name in blank) == bool(slide.unreadable_note())
        for tile, (y, x) in zip(tiles, np.ndindex(4, 4), strict=True):
            want = pixels[name][64 * y : 64 * y + 64, 64 * x : 64 * x + 64]
            np.testing.assert_array_equal(tile[0], want) if name not in blank else None
    check_crops([s for s in slides if slide_id_of(s.path) not in blank], pixels)
    check_features(disk, clean)


def check_crops(slides, pixels):
    """Crops of a disk that fails in 1 % of reads are those of one that does not."""
    reader = CropReader([MPP], 16, resident=False, threads=4)
    rng = np.random.default_rng(0)
    for first in range(0, len(slides), 4):
        some = slides[first : first + 4]
        b = len(some)
        bag = reader.bag(some, np.zeros(b, np.int32), np.ones(b, np.float32))
        yx = rng.integers(0, 240, (b, 20, 2))
        mask = np.ones((b, 20), bool)
        crops = reader.read(bag.x.slide, np.zeros((b, 20), int), yx, mask).result()
        for i, slide in enumerate(some):
            whole = pixels[slide_id_of(slide.path)]
            np.testing.assert_array_equal(bag.x.overview[i, :256, :256], whole)
            for crop, (y, x) in zip(crops[i], yx[i], strict=True):
                np.testing.assert_array_equal(crop, whole[y : y + 16, x : x + 16])


def check_features(disk, records):
    """Bags of feature files on that disk are right, or the error names the file."""
    paths = []
    for name, record in records.items():
        copy = disk.folder / f"{name}.h5"
        copy.write_bytes(record.features[0].read_bytes())
        paths.append(disk.mount / copy.name)
    bags = Bags(paths, np.zeros(len(paths), np.int32), None, Loading())
    batches = evaluation_bags(bags, batch_size=8, process=0, processes=1)
    for first, batch in enumerate(batches):
        for row, path in enumerate(paths[8 * first : 8 * first + 8]):
            x = read_features(disk.folder / path.name).x
            np.testing.assert_array_equal(batch.bag.x[row, : len(x)], x)
    disk.fault("s003.h5", "EIO")
    with pytest.raises(FeatureError, match=r"s003\.h5: .*Input/output error"):
        read_features(paths[3])
    (disk.folder / "s004.h5").unlink()
    with pytest.raises(FeatureError, match=r"s004\.h5: no such feature file"):
        read_features(paths[4])
    file_faults.set_hang_s(0.1)
    disk.fault("s005.h5", "hang")
    with pytest.raises(file_faults.HungError, match=r"has not come back.*s005\.h5"):
        read_features(paths[5])
