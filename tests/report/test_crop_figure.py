"""A crop is outlined where it was read; a panel shows its magnification's attention."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import to_rgb

from wsi_jax.report import crop_figure, curves
from wsi_jax.report.crop_figure import Crops, distinct, panels, top_crops
from wsi_jax.report.figure import COLOURS, INK
from wsi_jax.run import draw, pictures

# Told apart from everything else that is drawn.
STAIN = np.array([201, 119, 173], np.uint8)
CELL_UM, CROP_PX = 64, 32


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws; gives the figure and its path."""
    found = []
    save = crop_figure.save_png
    monkeypatch.setattr(
        crop_figure,
        "save_png",
        lambda figure, path: (found.append(figure), save(figure, path)),
    )

    def draw(maps, crops, mpps, shape=(60, 90), **how):
        path, overview = tmp_path / "looks.png", np.full((*shape, 3), STAIN)
        how = {"title": "s", "mpp": 16.0, "cell_um": CELL_UM, "crop_px": CROP_PX} | how
        crop_figure.looks(overview, maps, crops, path, mpps=mpps, **how)
        return found[-1], path

    return draw


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def spread(*weights, shape=(15, 22)):
    """Attention of each magnification, everywhere alike."""
    one = np.ones(shape) / np.prod(shape)
    return np.stack([weight * one for weight in weights]).astype(np.float32)


def at(which, *yx):
    return Crops(np.array([which]), np.array([yx]), np.ones(1))


def test_draws_of_one_crop_are_one_crop():
    which = np.array([1, 0, 1, 1, 0])
    yx = np.array([[4, 8], [4, 8], [4, 8], [-3, 8], [9, 9]])
    weight = np.array([0.2, 0.3, 0.2, 0.1, 0.9])
    crops = distinct(which, yx, weight, np.array([True, True, True, True, False]))
    assert crops.which.tolist() == [1, 0, 1]
    assert crops.yx.tolist() == [[4, 8], [4, 8], [-3, 8]]
    np.testing.assert_allclose(crops.weight, [0.4, 0.3, 0.1])


@pytest.mark.parametrize(
    ("which", "yx", "shape"),
    [(0, (400, 200), (60, 90)), (1, (40, 60), (60, 90)), (1, (70, 9), (120, 40))],
)
def test_a_crop_is_outlined_where_it_was_read(drawn, which, yx, shape):
    mpps = (1.0, 4.0)
    _, path = drawn(spread(0.5, 0.5), at(which, *yx), mpps, shape, numbered=0)
    rgb = pixels(path)
    panel = np.argwhere((rgb == STAIN).all(-1))
    (top, left), (bottom, right) = panel.min(0), panel.max(0)
    inside = rgb[top : bottom + 1, left : right + 1]
    colour = np.rint(255 * np.array(to_rgb(COLOURS[which])))
    frame = np.argwhere((abs(inside - colour) <= 2).all(-1))
    per_px = 16.0 * np.array(shape) / inside.shape[:2]  # um per pixel of the PNG
    side = CROP_PX * mpps[which]
    middle = (frame.min(0) + frame.max(0) + 1) / 2 * per_px
    expected = np.array(yx) * mpps[which] + side / 2
    np.testing.assert_allclose(middle, expected, atol=2 * per_px.max())
    # The line is 2.6 points wide at most, 7 pixels.
    extent = np.ptp(frame, 0) * per_px
    np.testing.assert_allclose(extent, side, atol=8 * per_px.max())
    others = {COLOURS[0], COLOURS[1]} - {COLOURS[which]}
    for other in others:
        gap = abs(inside - np.rint(255 * np.array(to_rgb(other))))
        assert not (gap <= 2).all(-1).any()


def test_the_more_a_crop_weighs_the_stronger_its_outline(drawn):
    yx = np.array([[10, 10], [10, 50], [40, 30]])
    crops = Crops(np.ones(3, int), yx, np.array([0.7, 0.2, 0.1]))
    figure, _ = drawn(spread(0.5, 0.5), crops, (1.0, 4.0))
    (frames,) = figure.axes[0].collections
    # Each is a white halo and a line; the heaviest is drawn last.
    widths, alpha = frames.get_linewidths()[1::2], frames.get_edgecolors()[1::2, 3]
    assert (np.diff(widths) > 0).all()
    assert (np.diff(alpha) > 0).all()
    assert [text.get_text() for text in figure.axes[0].texts[:3]] == ["1", "2", "3"]


def test_a_panel_has_the_attention_and_share_of_its_magnification(drawn):
    maps = np.zeros((3, 17, 25), np.float32)  # beyond the slide: padded
    maps[:, :15, :22] = 1e-6
    maps[0, 3, 7], maps[1, 3, 7] = 0.16, 0.04
    maps[2, 9, 2], maps[2, 8, 5] = 0.5, 0.3
    figure, _ = drawn(maps, at(0, 0, 0), (1.0, 4.0, 16.0))
    axes = figure.axes[1:4]
    titles = [one.get_title() for one in axes]
    assert titles == ["1 µm/px: 16 %", "4 µm/px: 4 %", "16 µm/px: 80 %"]
    shown = [one.images[0].get_array().astype(int) for one in axes]
    # Ever less green; the last columns hold no cell.
    strength = [255 - image[:, :88, 1] for image in shown]
    side = CELL_UM // 16
    for one, (y, x) in zip(strength, [(3, 7), (3, 7), (9, 2)], strict=True):
        cell = np.s_[y * side : (y + 1) * side, x * side : (x + 1) * side]
        peak = np.zeros_like(one, bool)
        peak[cell] = True
        assert one[peak].min() > one[~peak].max()
    # One scale of colours for all.
    assert strength[1][12, 28] < strength[0][12, 28]
    assert (shown[0][0, 0] == shown[2][0, 0]).all()


def test_what_is_no_cell_is_not_painted(drawn):
    maps = spread(0.7, 0.3)
    maps[:, :, 11:] = 0
    maps[0, :, :2] = 0  # of another magnification they are cells
    figure, _ = drawn(maps, at(0, 0, 0), (1.0, 4.0))
    shown = figure.axes[1].images[0].get_array().astype(int)
    grey = np.ptp(shown, -1) == 0
    assert grey[:, 44:].all()
    assert not grey[:, :44].any()


@pytest.mark.parametrize("shape", [(60, 90), (400, 40), (40, 400)])
@pytest.mark.parametrize("m", [1, 4])
def test_every_shape_has_legible_panels(drawn, m, shape):
    mpps, outline = (0.25, 0.5, 1.0, 2.0)[:m], np.array([[9, 9], [9, 60], [60, 9]])
    maps = spread(*np.full(m, 1 / m), shape=np.array(shape) // 4)
    crops = Crops(np.arange(m), np.full((m, 2), 300), np.full(m, 1 / m))
    figure, path = drawn(maps, crops, mpps, shape, lesions=[outline])
    figure.draw_without_rendering()
    assert len(figure.axes) == m + 2  # and the bar
    boxes = [one.title.get_window_extent() for one in figure.axes[: m + 1]]
    boxes += [one.get_window_extent() for one in figure.axes]
    boxes += [one.get_window_extent() for one in figure.legends[0].get_texts()]
    whole = figure.bbox
    for k, box in enumerate(boxes):
        inside = np.array([*box.min, *(whole.max - box.max)])
        assert (inside >= 0).all()
        assert not any(box.overlaps(other) for other in boxes[:k])
    panel = figure.axes[0].get_window_extent()
    assert panel.height / panel.width == pytest.approx(shape[0] / shape[1], rel=0.02)
    assert max(pixels(path).shape) < 2200


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(10, 10), (10, 70), (70, 10)])
def test_panels_fill_the_figure(n, shape):
    rows, columns, size = panels(n, shape)
    assert rows * columns >= n
    room = np.array([crop_figure.WIDTH, crop_figure.HEIGHT])
    assert (size * (columns, rows) <= room + 1e-9).all()
    assert size[1] / size[0] == pytest.approx(shape[0] / shape[1])
    assert (rows > columns) == (shape[1] > shape[0])


def test_maps_and_magnifications_must_agree(drawn):
    with pytest.raises(ValueError, match="slide_7: attention at 2"):
        drawn(spread(0.5, 0.5), at(0, 0, 0), (1.0,), title="slide_7")


def test_the_strip_has_the_weightiest_crops_first(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        crop_figure, "save_png", lambda figure, path: figures.append(figure)
    )
    tiles = np.zeros((2, 32, 32, 3), np.uint8)
    tiles[0, ..., 0], tiles[1, ..., 1] = 250, 250
    crops = Crops(np.array([2, 0, 1]), np.zeros((3, 2)), np.array([0.6, 0.3, 0.1]))
    top_crops(tiles, crops, "", title="s", mpps=(1.0, 4.0, 64.0))
    first, second = figures[0].axes
    assert first.get_title() == "1.  60.0 %\n64 µm/px\n2.05 mm wide"
    assert second.get_title() == "2.  30.0 %\n1 µm/px\n32 µm wide"
    for axes, tile, colour in zip((first, second), tiles, (2, 0), strict=True):
        assert (axes.images[0].get_array() == tile).all()
        assert axes.spines["left"].get_edgecolor()[:3] == to_rgb(COLOURS[colour])


@pytest.mark.parametrize("m", [1, 3])
def test_the_magnifications_have_a_line_each_and_a_uniform_one(m):
    steps = np.arange(4)
    mass = {f"{4**k}": (steps, np.full(4, (k + 1) / 10)) for k in range(m)}
    (axes,) = curves.magnifications(mass).axes
    *lines, uniform = axes.lines
    assert [line.get_label() for line in lines] == [f"{4**k} µm/px" for k in range(m)]
    for k, line in enumerate(lines):
        assert (line.get_ydata() == (k + 1) / 10).all()
        assert line.get_color() == COLOURS[k]
    assert set(uniform.get_ydata()) == {1 / m}
    assert (uniform.get_linestyle(), uniform.get_color()) == (":", INK)
    assert axes.get_ylim() == (0, 1)


def test_a_report_reads_the_crops_that_the_verdict_rests_on(tmp_path):
    read = []

    def crop(yx, size_px, mpp):
        read.append((*yx.tolist(), size_px, mpp))
        return np.full((size_px, size_px, 3), STAIN)

    slide = SimpleNamespace(
        shape=(240, 360),
        mpp=4.0,
        overview=lambda mpp: np.full((240, 360, 3), STAIN),
        read=crop,
    )
    trace = {
        "maps": spread(0.25, 0.75),
        "which": np.array([1, 0, 1, 0]),
        "yx": np.array([[9, 5], [77, 33], [9, 5], [0, 0]]),
        "weight": np.array([0.3, 0.4, 0.3, 0.0]),
        "read": np.array([True, True, True, False]),
    }
    config = SimpleNamespace(
        method=SimpleNamespace(mpps=(1.0, 8.0), crop_px=CROP_PX),
        grid=SimpleNamespace(size_px=4, mpp=16.0),
    )
    one = SimpleNamespace(trace=trace, row=SimpleNamespace(slide_id="s"))
    paths = tmp_path / "s.png", tmp_path / "s_top.png"
    pictures.draw_looks(slide, config, one, "s: a, called b", [], paths)
    assert read == [(9, 5, CROP_PX, 8.0), (77, 33, CROP_PX, 1.0)]
    assert all(path.is_file() for path in paths)


def test_a_report_shows_magnifications_where_there_are_several():
    lines = [{"step": s, "train.mass.16": 0.1 * s, "train.mass.4": 0.5} for s in (1, 2)]
    (drawing,) = draw.magnification([*lines, {"step": 2, "val.auc": 0.5}])
    assert "50 % at 4 um/px, 20 % at 16 um/px" in drawing.caption
    assert draw.magnification([{"step": 1, "train.mass.4": 1.0}]) == []
