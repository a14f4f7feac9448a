"""Pictures of a prediction show what was read, where it was read."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scn

from wsi_jax.data.cohort import Row
from wsi_jax.report import crop_figure, heatmap, tile_sheet, zoom_figure
from wsi_jax.run.write_report.pictures import (
    draw_crops,
    draw_tiles,
    draw_zooms,
    read_outlines,
)
from wsi_jax.slides.slide import open_slide


@pytest.fixture
def row(tmp_path):
    """A slide of noise at 0.5 um/px that lies within a larger plane."""
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    scn.write(tmp_path / "a.scn", noise, (700, 800), (300, 400))
    outline = str(tmp_path / "a.geojson")
    return Row("a", str(tmp_path / "a.scn"), "x", "a", "test", annotation_path=outline)


@pytest.fixture
def tiles(monkeypatch):
    """The tiles of the last figure that is saved."""
    shown = []
    for module in (crop_figure, heatmap, tile_sheet, zoom_figure):
        keep = lambda figure, path: shown.append(
            [np.asarray(a.images[0].get_array()) for a in figure.axes if a.images]
        )
        monkeypatch.setattr(module, "save_png", keep)
    return lambda: shown[-1]


def test_outlines_of_qupath_count_from_the_scanned_area(row, tmp_path):
    ring, path = [[10, 20], [50, 20], [50, 60], [10, 20]], tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with open_slide(row.path) as slide:
        (outline,) = read_outlines(row, slide)
        path.write_text("damaged")
        assert read_outlines(row, slide) == []
        np.testing.assert_allclose(outline.min(0), np.array([320, 410]) * slide.mpp)


def test_tiles_are_shown_by_attention(row, tiles):
    yx = np.array([[320, 412], [320, 476], [384, 412]])
    source = SimpleNamespace(positions=lambda row, slide: (yx, 32, 2.0))
    one = SimpleNamespace(
        attention=np.array([0.3, 0.1, 0.6]),
        row=dataclasses.replace(row, annotation_path=""),
    )
    with open_slide(row.path) as slide:
        draw_tiles(slide, source, one, "a: x, predicted y", ("1.png", "2.png"))
        for shown, i in zip(tiles(), (2, 0, 1), strict=True):
            np.testing.assert_array_equal(shown, slide.read(yx[i] / 4, 32, 2.0))


def test_crops_that_were_read_are_shown_by_weight(row, tiles):
    places = np.array([[160, 210], [320, 430], [160, 210], [0, 0]])
    trace = {
        "maps": np.full((2, 10, 10), 1 / 200),
        "which": np.array([1, 0, 1, 0]),
        "yx": places,
        "weight": np.array([0.3, 0.4, 0.3, 0.0]),
        "read": np.array([True, True, True, False]),
    }
    config = SimpleNamespace(
        method=SimpleNamespace(mpps=(0.5, 1.0), crop_px=32),
        grid=SimpleNamespace(size_px=4, mpp=10.0),
    )
    one = SimpleNamespace(trace=trace, row=dataclasses.replace(row, annotation_path=""))
    with open_slide(row.path) as slide:
        draw_crops(slide, config, one, "a: x, predicted y", ("1.png", "2.png"))
        first, second = tiles()
        np.testing.assert_array_equal(first, slide.read(places[0], 32, 1.0))
        np.testing.assert_array_equal(second, slide.read(places[1], 32, 0.5))


def test_zooms_are_shown_in_their_order(row, tiles):
    """Tiles behind the last step are none."""
    yx = np.array([[320, 410], [320, 474], [384, 410], [384, 474]])
    source = SimpleNamespace(positions=lambda row, slide: (yx, 32, 1.0))
    one = SimpleNamespace(
        trace={"order": np.array([2, 1, 0, 0]), "steps": np.int32(2)},
        attention=np.full(4, 0.25),
        row=dataclasses.replace(row, annotation_path=""),
    )
    config = SimpleNamespace(mpps=(0.5, 1.0))
    with open_slide(row.path) as slide:
        draw_zooms(slide, config, source, one, "a: x, predicted y", ("1.png", "2.png"))
        first, second = tiles()
        np.testing.assert_array_equal(first, slide.read(yx[2], 64, 0.5))
        np.testing.assert_array_equal(second, slide.read(yx[1], 64, 0.5))
