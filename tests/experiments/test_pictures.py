"""What a report draws lies where it was drawn."""

import json

import numpy as np
import scn

from wsi_jax.data.cohort import Row
from wsi_jax.run.pictures import read_outlines
from wsi_jax.slides.slide import open_slide


def test_outlines_of_qupath_count_from_the_scanned_area(tmp_path):
    path, drawn = tmp_path / "a.scn", tmp_path / "a.geojson"
    scn.write(path, np.full((256, 256, 3), 200, np.uint8), (700, 800), (300, 400))
    ring = [[10, 20], [50, 20], [50, 60], [10, 20]]
    drawn.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    row = Row("a", str(path), "x", "a", "test", annotation_path=str(drawn))
    with open_slide(path) as slide:
        (outline,) = read_outlines(row, slide)
        drawn.write_text("damaged")
        assert read_outlines(row, slide) == []
    np.testing.assert_array_equal(outline.min(0), (320, 410))
