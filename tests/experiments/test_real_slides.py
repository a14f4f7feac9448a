"""Each real file as its own metadata has it: by a trained run, and in a cohort."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from run_files import by_slide, read_json

import wsi_jax
from wsi_jax import cli
from wsi_jax.data.cohort import Row
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.tissue import Tissue

PLAIN = (
    "CMU-1-Small-Region.svs",
    "CMU-1-Small-Region.pyramid.tif",
    "test3-DAPI-2-(387).ndpi",
)
WITHOUT_MPP = {"TCGA-CR-7395-01A-01-TS1.pyramid.tif": 0.5, "kidney-48-5.tif": 2.0}
COARSE = "multi_frame_jpeg_camelyon_challenge_image.dcm"
BROKEN = "broken_not_a_slide.svs"


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "slides"


@pytest.fixture(scope="module")
def predictor(finished):
    return wsi_jax.load(finished)


def sound(prediction, tiles):
    assert len(prediction.attention) == len(prediction.yx) == tiles
    assert prediction.attention.sum() == pytest.approx(1, abs=1e-4)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.label in prediction.probabilities


@pytest.mark.parametrize("name", PLAIN)
def test_what_tells_its_mpp_is_predicted_as_it_is(predictor, folder, name):
    prediction = predictor.predict(folder / name)
    with open_slide(folder / name) as slide:
        assert prediction.mpp == slide.mpp
        assert (prediction.yx >= 0).all()
        assert (prediction.yx + prediction.tile_px <= np.add(slide.shape, 1)).all()
    assert prediction.tile_px * prediction.mpp == pytest.approx(64)  # 32 px at 2 um/px
    sound(prediction, len(prediction.yx))
    assert len(prediction.yx) > 20


@pytest.mark.parametrize("name", WITHOUT_MPP)
def test_a_slide_without_mpp_is_refused_by_name_until_it_is_given(
    predictor, folder, name
):
    stem = name.split(".")[0]
    with pytest.raises(SlideError, match=rf"{stem}.*no usable um/px.*CSV's mpp"):
        predictor.predict(folder / name)
    prediction = predictor.predict(folder / name, mpp=WITHOUT_MPP[name])
    assert prediction.mpp == WITHOUT_MPP[name]
    sound(prediction, len(prediction.yx))
    assert len(prediction.yx) > 0


def grid(mpp):
    return Tiling(
        grid=Grid(mpp=mpp, size_px=32),
        tissue=Tissue(),
        encoder=Encoder(stages=1, width=8),
    )


@pytest.mark.parametrize("mpp", [0.5, 2.0])
def test_an_overview_is_refused_at_a_cells_mpp_and_named(folder, mpp):
    row = Row("a", str(folder / COARSE), "x", "a", "test")
    reason = tile_slide(row, grid(mpp)).reason
    assert COARSE.removesuffix(".dcm") in reason
    assert f"{mpp:g} um/px was asked for, its finest level has 28.9685" in reason
    assert "--config.grid.mpp to 28.9685 or coarser" in reason


def test_an_overview_is_predicted_at_its_own_mpp(finished, folder, tmp_path):
    """By a run whose grid has that mpp, picture and all."""
    run = tmp_path / "coarse"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("*.h5"))
    card = read_json(run / "model.json")
    card["tiling"]["grid"]["mpp"] = 28.97
    (run / "model.json").write_text(json.dumps(card))
    prediction = wsi_jax.load(run).predict(folder / COARSE)
    sound(prediction, len(prediction.yx))
    assert prediction.tile_px == pytest.approx(32, abs=0.01)
    prediction.heatmap(tmp_path / "coarse.png")  # at 8 um/px, but for such a slide
    with Image.open(tmp_path / "coarse.png") as image:
        image.verify()


def test_two_files_of_one_slide_have_tiles_of_one_size(folder):
    """One level of Aperio's, and a pyramid whose levels are not powers of two apart."""
    slides = []
    for name in PLAIN[:2]:
        row = Row("a", str(folder / name), "x", "a", "test")
        everywhere = dataclasses.replace(grid(2.0).grid, min_tissue=0.0)
        with open_slide(row.path) as slide:
            one = tile_slide(row, dataclasses.replace(grid(2.0), grid=everywhere))
            tiles = [slide.read(yx, 32, 2.0) for yx in one.yx[:200]]
        slides.append((one, np.stack(tiles).astype(int)))
    (a, tiles_a), (b, tiles_b) = slides
    assert a.mpp == pytest.approx(b.mpp, rel=1e-4)
    np.testing.assert_array_equal(a.yx, b.yx)
    assert a.tissue_mm2 == pytest.approx(b.tissue_mm2, rel=0.1)
    assert np.abs(tiles_a - tiles_b).mean() < 4
    moved = np.roll(tiles_b, 1, axis=2)
    assert np.abs(tiles_a - tiles_b).mean() < np.abs(tiles_a - moved).mean() / 2


def test_a_broken_file_is_recorded_and_the_others_go_on(
    finished, folder, tmp_path, monkeypatch, capsys
):
    names = [
        folder / BROKEN,
        folder / PLAIN[1],
        folder / COARSE,
        folder / "kidney-48-5.tif",
    ]
    words = ["predict", "--run", str(finished), "--out", str(tmp_path / "out")]
    words += map(str, names)
    cli.app(words, standalone_mode=False)
    lines = by_slide(tmp_path / "out" / "predictions.csv")
    assert len(lines) == 4
    line = lines["CMU-1-Small-Region.pyramid"]
    assert line["prediction"] in ("normal", "tumor")
    assert not line["reason"]
    assert (tmp_path / "out" / "CMU-1-Small-Region.pyramid.png").is_file()
    for name, reason in {
        "broken_not_a_slide": "cannot be opened as a slide; copy it again",
        "multi_frame_jpeg_camelyon_challenge_image": "28.9685",
        "kidney-48-5": "no usable um/px",
    }.items():
        assert not lines[name]["prediction"]
        assert name in lines[name]["reason"]
        assert reason in lines[name]["reason"]
    assert capsys.readouterr().err.count("refused: ") == 3
    written = (tmp_path / "out" / "CMU-1-Small-Region.pyramid.png").stat().st_mtime_ns
    cli.app(words, standalone_mode=False)  # again: what has a prediction keeps it
    assert capsys.readouterr().err.count("refused: ") == 3
    picture = tmp_path / "out" / "CMU-1-Small-Region.pyramid.png"
    assert picture.stat().st_mtime_ns == written


def test_slides_of_one_name_are_not_predicted_into_one_line(finished, tmp_path):
    words = ["predict", "--run", str(finished), "--out", str(tmp_path)]
    words += ["a/slide.svs", "b/Slide.tif"]
    with pytest.raises(SystemExit, match=r"a/slide\.svs, b/Slide\.tif"):
        cli.app(words, standalone_mode=False)
