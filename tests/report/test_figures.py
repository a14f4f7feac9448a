"""A mark lies where its tile lies; colours come from the attention."""

import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import to_rgb

from wsi_jax.report import crop_figure, heatmap, tile_sheet, zoom_figure
from wsi_jax.report.figure import COLOURS
from wsi_jax.report.overview_panels import Overview, score_map

# No other colour of the figures is like it.
STAIN = np.array([201, 119, 173], np.uint8)
MPP, CROP_PX = 16.0, 32


@pytest.fixture
def figures(monkeypatch):
    """All figures that are saved."""
    saved = []
    for module in (heatmap, crop_figure, zoom_figure, tile_sheet):
        keep = lambda figure, path, save=module.save_png: (
            saved.append(figure),
            save(figure, path),
        )
        monkeypatch.setattr(module, "save_png", keep)
    return saved


def blank(shape):
    return Overview(np.full((*shape, 3), STAIN), MPP, ())


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def grid(shape, side):
    """Corners of tiles of `side` overview pixels, in um."""
    cells = np.array(shape) // side
    return np.argwhere(np.ones(cells)) * side * MPP


def one_crop(which, yx):
    return crop_figure.Crops(np.array([which]), np.array([yx]), np.ones(1))


def draw_zooms(tmp_path, order, shape=(60, 90), side=10, attention=None, **kwargs):
    yx = grid(shape, side)
    if attention is None:
        attention = np.full(len(yx), 1 / len(yx))
    path = tmp_path / "zooms.png"
    args = blank(shape), attention, yx, side * MPP, np.array(order), path
    zoom_figure.zoom_figure(*args, **({"title": "s"} | kwargs))
    return path


def draw_crops(tmp_path, maps, crops, mpps, shape=(60, 90), **kwargs):
    path = tmp_path / "crops.png"
    kwargs = {"title": "s", "cell_um": 64, "crop_px": CROP_PX} | kwargs
    args = blank(shape), maps, crops, path
    crop_figure.crop_figure(*args, mpps=mpps, **kwargs)
    return path


def even(m, shape=(15, 22)):
    return np.full((m, *shape), 1 / m / np.prod(shape))


def first_panel(path):
    """Pixels of the panel that shows the overview in colour."""
    rgb = pixels(path)
    inside = np.argwhere((rgb == STAIN).all(-1))
    (top, left), (bottom, right) = inside.min(0), inside.max(0)
    return rgb[top : bottom + 1, left : right + 1]


def test_scores_are_painted_where_tiles_lie_without_gaps():
    """Overlaps are averaged, and NaN paints nothing."""
    yx = np.stack(np.mgrid[0:700:100, 0:700:100], -1).reshape(-1, 2)
    numbers = score_map(np.arange(49.0), yx, 100, 32.0, (22, 22))
    assert set(np.unique(numbers)) == set(range(49))  # each pixel has one tile
    assert (np.diff(numbers[:, 0]) >= 0).all()
    painted = score_map(np.array([5.0]), np.array([[20, 60]]), 20, 10.0, (8, 12))
    where = np.argwhere(np.isfinite(painted)).tolist()
    assert where == [[2, 6], [2, 7], [3, 6], [3, 7]]
    small = score_map(np.array([1.0]), np.array([[100, 200]]), 8, 64.0, (4, 4))
    assert np.argwhere(np.isfinite(small)).tolist() == [[2, 3]]
    yx = np.array([[0, 0], [0, 1], [0, 2]])
    painted = score_map(np.array([1.0, 3.0, np.nan]), yx, 2, 1.0, (2, 5))
    np.testing.assert_array_equal(painted, [[1, 2, 3, np.nan, np.nan]] * 2)


def test_percentiles_do_not_depend_on_the_scale():
    scores = np.array([0.1, np.nan, 0.4, 0.4, -2.0])
    expected = [37.5, np.nan, 75, 75, 12.5]
    np.testing.assert_allclose(heatmap.percentiles(scores), expected)
    np.testing.assert_allclose(heatmap.percentiles(np.exp(30 * scores)), expected)
    assert np.isnan(heatmap.percentiles(np.full(3, np.nan))).all()


@pytest.mark.parametrize("shape", [(60, 50), (40, 160)])
def test_high_scores_are_red_and_low_scores_blue(tmp_path, figures, shape):
    half = shape[1] // 2
    yx, path = np.array([[0, 0], [0, half]]) * MPP, tmp_path / "map.png"
    text = {"title": "slide $1_000$", "label": "attention ($x^{$)"}
    scores = np.array([0.0, 1.0])
    heatmap.heatmap(blank(shape), scores, yx, half * MPP, path, **text)
    image = figures[0].axes[1].images[0].get_array().astype(int)
    warm = image[..., 0] - image[..., 2]
    assert (warm[:half, :half] < -30).all()
    assert (warm[:half, half : 2 * half] > 30).all()
    assert not list(tmp_path.glob("*.partial"))


def test_tiles_that_all_count_the_same_are_outlined_and_have_no_colours(
    tmp_path, figures
):
    yx, path = grid((40, 40), 10)[:6] * 1.0, tmp_path / "map.png"
    even = np.full(6, 1 / 6, np.float32)
    draw = lambda scores: heatmap.heatmap(
        blank((40, 60)), scores, yx, 10 * MPP, path, title="s"
    )
    draw(even)
    panel = figures[-1].axes[1]
    assert panel.get_title() == "tiles read: all count the same"
    assert (panel.images[0].get_array() == STAIN).all()
    assert not panel.child_axes  # no colour bar
    ((low, high),) = [
        (np.min(xy, 0), np.max(xy, 0))
        for lines in panel.collections
        for xy in [np.concatenate([path.vertices for path in lines.get_paths()])]
    ]
    np.testing.assert_allclose([low, high], [[-0.5, -0.5], [39.5, 19.5]])
    draw(even * np.array([1, 1, 1, 1, 1, 1.01]))
    assert figures[-1].axes[1].child_axes


def test_what_disagrees_in_number_is_named_and_no_score_is_a_picture_too(tmp_path):
    with pytest.raises(ValueError, match="slide_7: 3 scores, but corners are"):
        draw_zooms(tmp_path, [0], attention=np.ones(3) / 3, title="slide_7")
    with pytest.raises(ValueError, match="slide_7: attention at 2"):
        draw_crops(tmp_path, even(2), one_crop(0, (0, 0)), (1.0,), title="slide_7")
    path, nothing = tmp_path / "map.png", (np.zeros(0), np.zeros((0, 2)))
    heatmap.heatmap(blank((40, 40)), *nothing, 4, path, title="s")
    assert (pixels(path) == STAIN).all(-1).sum() > 10_000


def test_draws_of_one_crop_are_one_crop():
    which = np.array([1, 0, 1, 1, 0])
    yx = np.array([[4, 8], [4, 8], [4, 8], [-3, 8], [9, 9]])
    weight = np.array([0.2, 0.3, 0.2, 0.1, 0.9])
    read = np.array([True, True, True, True, False])
    crops = crop_figure.distinct(which, yx, weight, read)
    assert crops.which.tolist() == [1, 0, 1]
    assert crops.yx.tolist() == [[4, 8], [4, 8], [-3, 8]]
    np.testing.assert_allclose(crops.weight, [0.4, 0.3, 0.1])


def framed(path, colour, shape):
    """The first panel, its um per pixel, and the ends in um of what has a colour."""
    inside = first_panel(path)
    colour = np.rint(255 * np.array(colour))
    frame = np.argwhere((abs(inside - colour) <= 2).all(-1))
    per_px = MPP * np.array(shape) / inside.shape[:2]
    return inside, per_px, frame.min(0) * per_px, (frame.max(0) + 1) * per_px


@pytest.mark.parametrize(
    ("which", "yx", "shape"),
    [(0, (400, 200), (60, 90)), (1, (40, 60), (60, 90)), (1, (70, 9), (120, 40))],
)
def test_a_crop_is_outlined_where_it_was_read(tmp_path, which, yx, shape):
    mpps = (1.0, 4.0)
    path = draw_crops(tmp_path, even(2), one_crop(which, yx), mpps, shape, numbered=0)
    _, per_px, low, high = framed(path, to_rgb(COLOURS[which]), shape)
    side = CROP_PX * mpps[which]
    expected = np.array(yx) * mpps[which] + side / 2
    np.testing.assert_allclose((low + high) / 2, expected, atol=2 * per_px.max())
    np.testing.assert_allclose(high - low, side, atol=5 * per_px.max())


@pytest.mark.parametrize(
    ("tile", "shape", "side"),
    [(13, (60, 90), 10), (0, (60, 90), 30), (7, (90, 20), 10)],
)
def test_a_zoom_is_marked_where_it_lies(tmp_path, tile, shape, side):
    path = draw_zooms(tmp_path, [tile], shape, side, numbered=0)
    colour = zoom_figure._order_colours(1).to_rgba(1)[:3]
    inside, per_px, low, high = framed(path, colour, shape)
    corner = np.array(divmod(tile, shape[1] // side)) * side * MPP
    np.testing.assert_allclose(low, corner, atol=3 * per_px.max())
    np.testing.assert_allclose(high, corner + side * MPP, atol=3 * per_px.max())
    y, x = ((low + high) / 2 / per_px).astype(int)
    assert (inside[y, x] == STAIN).all()  # the tissue in it is visible


def test_attention_is_painted_at_its_magnification(tmp_path, figures):
    maps = np.zeros((2, 17, 25), np.float32)  # beyond the slide: padded
    maps[:, :15, :11] = 1e-6
    maps[0, 3, 7], maps[1, 9, 2] = 0.2, 0.8
    draw_crops(tmp_path, maps, one_crop(0, (0, 0)), (1.0, 4.0))
    panels = figures[0].axes[1:3]
    titles = [axes.get_title() for axes in panels]
    assert titles == ["1 µm/px: 20 %", "4 µm/px: 80 %"]
    for axes, (y, x) in zip(panels, [(3, 7), (9, 2)], strict=True):
        image = axes.images[0].get_array().astype(int)
        strength = 255 - image[:, :44, 1]
        peak = np.zeros_like(strength, bool)
        peak[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = True
        assert strength[peak].min() > strength[~peak].max()
        grey = np.ptp(image, -1) == 0
        assert grey[:, 44:].all()  # no cell at any magnification
        assert not grey[:, :44].any()


def test_the_attention_beside_zooms_is_that_of_the_prediction(tmp_path, figures):
    attention = np.full(54, 0.5 / 53)
    attention[22] = 0.5
    draw_zooms(tmp_path, [22, 1], attention=attention)
    left, right = figures[0].axes[:2]
    assert left.get_title() == "2 of 54 tiles zoomed into"
    assert right.get_title() == "attention: 51 % on these"
    image = right.images[0].get_array().astype(int)
    warm = image[..., 0] - image[..., 2]
    peak = np.zeros(warm.shape, bool)
    peak[20:30, 40:50] = True
    assert warm[peak].min() > warm[~peak].max()


def test_sheets_show_the_highest_first_with_its_number(tmp_path, figures):
    colours = np.zeros((5, 32, 32, 3), np.uint8)
    colours[..., 0] = np.arange(5)[:, None, None]
    path, scores = tmp_path / "top.png", np.array([0.2, 0.1, 0.7, 0.3, 0.6])
    tile_sheet.top_tiles(colours, scores, path, title="s_$1", mpp=0.5)
    shown = lambda: [int(a.images[0].get_array()[0, 0, 0]) for a in figures[-1].axes]
    titles = lambda: [axes.get_title() for axes in figures[-1].axes]
    assert shown() == [2, 4, 3, 0, 1]
    assert titles()[0] == "1.  0.700"
    crops = crop_figure.Crops(
        np.array([2, 0, 1]), np.zeros((3, 2)), np.array([6, 3, 1])
    )
    crops = crops._replace(weight=crops.weight / 10)
    crop_figure.top_crops(colours[:2], crops, path, title="s", mpps=(1.0, 4.0, 64.0))
    assert shown() == [0, 1]
    expected = ["1.  60.0 %\n64 µm/px, 2.05 mm wide", "2.  30.0 %\n1 µm/px, 32 µm wide"]
    assert titles() == expected
    edges = [a.spines["left"].get_edgecolor()[:3] for a in figures[-1].axes]
    assert edges == [to_rgb(COLOURS[2]), to_rgb(COLOURS[0])]
    shares = np.linspace(0.3, 0.01, 5)
    zoom_figure.top_zooms(colours, shares, path, title="s", mpp=2.0, total=20)
    assert shown() == [0, 1, 2, 3, 4]
    assert titles()[0] == "1.  30. % of the attention"
    assert figures[-1].get_suptitle() == "s: first zooms, 64 µm wide, 2 µm/px"
