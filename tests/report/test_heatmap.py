"""A score is painted where its tile lies, in the colour that the bar names."""

import numpy as np
import PIL.Image
import pytest

from wsi_jax.report.heatmap import Normalisation, heatmap, percentiles, score_map
from wsi_jax.report.tiles import top_tiles

# Told apart from everything else that is drawn.
PINK = np.array([200, 120, 170], np.uint8)


def test_a_grid_of_tiles_is_painted_once_and_without_gaps():
    yx = np.stack(np.mgrid[0:700:100, 0:700:100], -1).reshape(-1, 2)
    painted = score_map(np.ones(len(yx)), yx, 100, 32.0, (22, 22))
    assert (painted == 1).all()
    # Each pixel belongs to one tile: the scores are the tiles' own numbers.
    numbers = score_map(np.arange(49.0), yx, 100, 32.0, (22, 22))
    assert set(np.unique(numbers)) == set(range(49))
    assert (np.diff(numbers[:, 0]) >= 0).all()


def test_rows_are_y_and_columns_are_x():
    painted = score_map(np.array([5.0]), np.array([[20, 60]]), 20, 10.0, (8, 12))
    there = np.argwhere(np.isfinite(painted)).tolist()
    assert there == [[2, 6], [2, 7], [3, 6], [3, 7]]


def test_overlaps_are_averaged_and_nan_paints_nothing():
    yx = np.array([[0, 0], [0, 1], [0, 3]])
    painted = score_map(np.array([1.0, 3.0, np.nan]), yx, 2, 1.0, (2, 5))
    expected = [1, 2, 3, np.nan, np.nan]
    np.testing.assert_array_equal(painted, [expected, expected])


def test_a_tile_smaller_than_a_pixel_is_still_seen():
    painted = score_map(np.array([1.0]), np.array([[100, 200]]), 8, 64.0, (4, 4))
    assert np.argwhere(np.isfinite(painted)).tolist() == [[2, 3]]


def test_percentiles_do_not_depend_on_the_scale():
    scores = np.array([0.1, np.nan, 0.4, 0.4, -2.0])
    expected = [37.5, np.nan, 75, 75, 12.5]
    np.testing.assert_allclose(percentiles(scores), expected)
    np.testing.assert_allclose(percentiles(np.exp(30 * scores)), expected)
    assert np.isnan(percentiles(np.full(3, np.nan))).all()


def colours(path):
    """(reddish, bluish) pixels of a PNG, and its size."""
    with PIL.Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB")).astype(int)
    gap = rgb[..., 0] - rgb[..., 2]
    return gap, (gap > 60).sum(), (gap < -60).sum()


@pytest.mark.parametrize("normalisation", Normalisation)
@pytest.mark.parametrize("shape", [(60, 50), (40, 160)])
def test_high_scores_are_red_and_low_scores_blue(tmp_path, normalisation, shape):
    overview = np.full((*shape, 3), 200, np.uint8)
    half = shape[1] // 2
    yx = np.array([[0, 0], [0, half]]) * 16
    heatmap(
        overview,
        np.array([0.0, 1.0]),
        yx,
        half * 16,
        16,
        tmp_path / "map.png",
        title="slide $1_000$",
        mpp_level0=0.25,
        label="attention ($x^{$)",
        normalisation=normalisation,
        lesions=[np.array([[100, 100], [100, 300], [300, 300]])],
    )
    gap, red, blue = colours(tmp_path / "map.png")
    assert red > 1000
    assert blue > 1000
    # Left and right of the overlay: the bar, far right, has both.
    where_blue = np.argwhere(gap < -60)[:, 1]
    where_red = np.argwhere(gap > 60)[:, 1]
    assert np.median(where_blue) < np.median(where_red)
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_painted_outside_the_tissue(tmp_path):
    overview = np.full((64, 64, 3), 200, np.uint8)
    args = np.array([1.0, 0.0]), np.array([[0, 0], [32, 0]]), 32, 1

    def blue(tissue):
        path = tmp_path / "map.png"
        how = {"title": "s", "mpp_level0": 1.0, "tissue": tissue}
        heatmap(overview, *args, path, **how)
        return colours(path)[2]

    tissue = np.ones((64, 64), bool)
    whole = blue(tissue)
    tissue[32:] = False
    assert blue(tissue) < whole / 2


def test_scores_and_corners_must_agree(tmp_path):
    overview, corners = np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2))
    with pytest.raises(ValueError, match="slide_7: 3 scores"):
        heatmap(
            overview,
            np.zeros(3),
            corners,
            2,
            1,
            tmp_path / "x.png",
            title="slide_7",
            mpp_level0=1.0,
        )


def test_a_slide_without_any_score_still_has_a_picture(tmp_path):
    overview = np.full((40, 40, 3), PINK)
    for kind in Normalisation:
        how = {"title": "s", "mpp_level0": 1.0, "normalisation": kind}
        path = tmp_path / f"{kind.value}.png"
        heatmap(overview, np.zeros(0), np.zeros((0, 2)), 4, 1, path, **how)
        with PIL.Image.open(path) as image:
            there = (np.asarray(image.convert("RGB")) == PINK).all(-1)
        assert there.sum() > 10_000


def test_the_strip_shows_the_highest_score_first(tmp_path):
    tiles = np.zeros((3, 32, 32, 3), np.uint8)
    tiles[0, ..., 0], tiles[1, ..., 1], tiles[2, ..., 2] = 250, 250, 250
    scores = np.array([0.2, 0.1, 0.7])
    top_tiles(tiles, scores, tmp_path / "top.png", title="s_1", mpp=0.5)
    with PIL.Image.open(tmp_path / "top.png") as image:
        rgb = np.asarray(image.convert("RGB"))
    columns = [
        np.median(np.argwhere((rgb == tiles[k, 0, 0]).all(-1))[:, 1]) for k in range(3)
    ]
    assert columns[2] < columns[0] < columns[1]
