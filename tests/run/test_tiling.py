"""Tiles lie on the tissue that was asked for: computed, or from the manifest's mask."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest
import scn
import tifffile
from PIL import Image

from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.extract.slide_features import find_tiles
from wsi_jax.run.progress import silent
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.slides.annotations import Polygon, write_asap
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Source, Tissue

SIDE = 1024
TILING = Tiling(
    grid=Grid(mpp=1.0, size_px=64, min_tissue=0.5),
    tissue=Tissue(mpp=8.0),
    encoder=Encoder(stages=1, width=8),
)
MASKED = dataclasses.replace(TILING, tissue=Tissue(source=Source.MASK))


@pytest.fixture
def row(tmp_path):
    """A slide whose left half is pink, with a mask of its upper half."""
    pixels = np.full((SIDE, SIDE, 3), 240, np.uint8)
    pixels[:, : SIDE // 2] = (200, 80, 160)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:16], mask[4:6] = 1, 3  # tissue, sham
    Image.fromarray(mask).save(tmp_path / "mask.png")
    path, mask_path = str(tmp_path / "a.png"), str(tmp_path / "mask.png")
    return Row("a", path, "x", "a", "train", 1.0, mask_path=mask_path)


def test_tissue_is_computed_unless_a_mask_is_asked_for(row):
    """A mask may be the truth of a practice cohort: it must not leak by itself."""
    computed, masked = tile_slide(row, TILING), tile_slide(row, MASKED)
    assert len(computed.yx) == len(masked.yx) == 128
    assert computed.yx[:, 1].max() == 448
    assert computed.yx[:, 0].max() == 960
    assert masked.yx[:, 1].max() == 960
    assert masked.yx[:, 0].max() == 448
    assert masked.tissue_mm2 == pytest.approx(SIDE**2 / 2 / 1e6)
    blank = dataclasses.replace(row, mask_path="")
    np.testing.assert_array_equal(tile_slide(blank, TILING).yx, computed.yx)


def test_outlines_may_be_the_mask(row, tmp_path):
    corners = np.array([(0, 0), (0, 1024), (512, 1024), (512, 0)], float)
    write_asap(tmp_path / "a.xml", [Polygon("tissue", "None", corners)])
    outlined = dataclasses.replace(row, mask_path=str(tmp_path / "a.xml"))
    expected = tile_slide(row, MASKED).yx
    np.testing.assert_array_equal(tile_slide(outlined, MASKED).yx, expected)


def test_qupaths_outlines_count_from_the_scanned_area_and_asaps_do_not(tmp_path):
    """The slide's plane is larger than its scan."""
    path, shape, bounds = tmp_path / "a.scn", (1536, 1920), (400, 600)
    scn.write(path, np.full((768, 1024, 3), 200, np.uint8), shape, bounds)
    box = np.array([(128, 128), (128, 640), (512, 640), (512, 128)], float)
    ring = box[[0, 1, 2, 3, 0], ::-1].tolist()
    qupath, asap = tmp_path / "a.geojson", tmp_path / "a.xml"
    qupath.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    write_asap(asap, [Polygon("tissue", "None", box + bounds)])
    row = Row("a", str(path), "x", "a", "train", mask_path=str(qupath))
    fine = dataclasses.replace(MASKED, grid=Grid(mpp=1.0, size_px=8, min_tissue=1.0))
    tiles = tile_slide(row, fine).yx
    same = tile_slide(dataclasses.replace(row, mask_path=str(asap)), fine).yx
    np.testing.assert_array_equal(tiles, same)
    corners = np.array([tiles.min(0), tiles.max(0) + 8])
    np.testing.assert_allclose(corners, [(264, 364), (456, 620)], atol=8)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("", r"a: no mask; .*mask_path.*--config\.tissue\.source=AUTO"),
        ("tall.png", r"a: .*tall\.png is 20 x 10 px"),
    ],
)
def test_a_slide_without_its_mask_is_refused_by_name(row, tmp_path, mask, message):
    Image.new("L", (10, 20), 1).save(tmp_path / "tall.png")
    path = mask and str(tmp_path / mask)
    slide = tile_slide(dataclasses.replace(row, mask_path=path), MASKED)
    assert not len(slide.yx)
    assert re.search(message, slide.reason)
    assert not tile_slide(dataclasses.replace(row, mask_path=path), TILING).reason


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (None, ""),
        (0.51, ""),
        (0.25, "a: mpp 0.25 is used, by its manifest; the file's property says 0.5"),
    ],
)
def test_an_mpp_that_contradicts_the_file_is_noted(tmp_path, given, note):
    path = tmp_path / "a.tif"
    pixels = np.full((SIDE, SIDE, 3), (200, 80, 160), np.uint8)
    dots_per_cm = (20_000, 20_000)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), resolution=dots_per_cm, resolutionunit=3
    )
    slide = tile_slide(Row("a", str(path), "x", "a", "train", given), TILING)
    assert (slide.reason, slide.note) == ("", note)
    assert slide.mpp == (given or 0.5)


def test_annotations_that_are_damaged_are_noted(row, tmp_path):
    torn = tmp_path / "torn.xml"
    torn.write_text("<ASAP_Annotations><Anno")
    slide = tile_slide(dataclasses.replace(row, annotation_path=str(torn)), TILING)
    assert slide.reason == ""
    assert slide.note.startswith("a: ")
    assert "torn.xml" in slide.note


def test_the_background_is_bright_or_dark(row):
    assert tile_slide(row, TILING).background == "bright"
    assert tile_slide(row, MASKED).background == "bright"
    Image.fromarray(np.full((SIDE, SIDE, 3), 5, np.uint8)).save(row.path)
    assert tile_slide(row, MASKED).background == "dark"


def test_an_error_that_nobody_foresaw_refuses_the_slide(row):
    broken = dataclasses.replace(row, mask_path="mask\0.png")
    assert tile_slide(broken, MASKED).reason.startswith(
        "a: cannot be read (ValueError: "
    )


def test_an_empty_mask_is_no_tissue(row, tmp_path):
    Image.new("L", (9, 9), 0).save(tmp_path / "none.png")
    empty = dataclasses.replace(row, mask_path=str(tmp_path / "none.png"))
    assert "a: no tissue (0 mm2" in tile_slide(empty, MASKED).reason


def test_features_are_known_by_their_tiles_and_mpp(row):
    """A mended mask or mpp makes them anew; the same tiles do not."""
    prints = {
        tile_slide(one, tiling).fingerprint("settings")
        for one in (row, dataclasses.replace(row, mpp=1.001))
        for tiling in (TILING, MASKED)
    }
    assert len(prints) == 4
    assert tile_slide(row, TILING).fingerprint("settings") in prints
    assert tile_slide(row, TILING).fingerprint("others") not in prints


def test_whatever_a_file_is_the_others_go_on(row, tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "empty.svs").write_bytes(b"")
    deep = np.zeros((64, 64, 3), np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, tile=(64, 64), photometric="rgb")
    with Image.open(row.path) as image:
        image.convert("RGB").save(tmp_path / "hurt.jpg")
    data = (tmp_path / "hurt.jpg").read_bytes()
    (tmp_path / "hurt.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    names = ("pipe.svs", "empty.svs", "deep.tif", "hurt.jpg")
    bad = [
        dataclasses.replace(row, slide_id=name, path=str(tmp_path / name))
        for name in names
    ]
    options = {"reading": Reading(threads=2), "meter": Meter(), "progress": silent}
    *refused, last = find_tiles([*bad, row], TILING, "encoded", **options)
    for name, one in zip(names, refused, strict=True):
        assert one.reason.startswith(f"{name}: ")
        assert name in one.reason.removeprefix(f"{name}: ")
    assert last.status == "encoded"
    assert last.tiles == 128


def test_the_picture_shows_the_slide_and_its_tissue(row):
    picture = tile_slide(row, MASKED).picture
    h = picture.tissue.shape[0]
    assert picture.tissue[: h // 2 - 2].all()
    assert not picture.tissue[h // 2 + 2 :].any()
    assert (picture.image[:, 4] == (200, 80, 160)).all()
    contact = tile_slide(row, MASKED).contact("")
    assert contact.summary == "128 tiles, 0.524 mm2, 1 um/px (manifest)"
    gone = dataclasses.replace(row, path="here/gone.svs")
    slide = tile_slide(gone, TILING)
    assert slide.picture is None
    assert slide.contact(slide.reason).reason.startswith("a: no file gone.svs")
