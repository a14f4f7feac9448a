"""A tile zoomed into is framed where it lies, in the colour and number of its turn."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from wsi_jax.report import curves, zoom_figure
from wsi_jax.report.figure import COLOURS
from wsi_jax.run import draw, pictures

# Told apart from everything else that is drawn.
STAIN = np.array([201, 119, 173], np.uint8)


@pytest.fixture
def figures(monkeypatch):
    """All that are saved."""
    found, save = [], zoom_figure.save_png
    monkeypatch.setattr(
        zoom_figure,
        "save_png",
        lambda figure, path: (found.append(figure), save(figure, path)),
    )
    return found


@pytest.fixture
def drawn(tmp_path, figures):
    """Draws; gives the figure and the pixels of its file."""

    def draw(order, shape=(60, 90), side=10, downsample=4.0, **how):
        rows, columns = np.array(shape) // side
        yx = np.argwhere(np.ones((rows, columns))) * int(side * downsample)
        attention = how.pop("attention", np.full(len(yx), 1 / len(yx)))
        how = {"title": "s", "mpp_level0": 0.5} | how
        path, overview = tmp_path / "zooms.png", np.full((*shape, 3), STAIN)
        where = yx, side * downsample, downsample
        zoom_figure.zooms(overview, attention, *where, np.array(order), path, **how)
        with PIL.Image.open(path) as image:
            return figures[-1], np.asarray(image.convert("RGB")).astype(int)

    return draw


def numbers(axes):
    return {text.get_text(): text.get_position() for text in axes.texts[:-1]}


@pytest.mark.parametrize(
    ("tile", "shape", "side"),
    [(13, (60, 90), 10), (0, (60, 90), 30), (7, (90, 20), 10)],
)
def test_a_tile_is_framed_where_it_lies(drawn, tile, shape, side):
    _, rgb = drawn([tile], shape, side, numbered=0)
    panel = np.argwhere((rgb == STAIN).all(-1))
    (top, left), (bottom, right) = panel.min(0), panel.max(0)
    inside = rgb[top : bottom + 1, left : right + 1]
    first = np.rint(255 * np.array(zoom_figure._scale(1).to_rgba(1)[:3]))
    frame = np.argwhere((abs(inside - first) <= 2).all(-1))
    scale = np.array(shape) / inside.shape[:2]  # overview pixels per pixel
    corner = np.array(divmod(tile, shape[1] // side)) * side
    np.testing.assert_allclose(frame.min(0) * scale, corner, atol=3 * scale.max())
    end = (frame.max(0) + 1) * scale
    np.testing.assert_allclose(end, corner + side, atol=3 * scale.max())
    # The tissue in it is seen.
    y, x = ((corner + side / 2) / scale).astype(int)
    assert (inside[y, x] == STAIN).all()


def test_the_first_have_their_numbers_in_their_tiles(drawn):
    order = [9, 3, 40, 41, 0, 20]
    figure, _ = drawn(order, numbered=4)
    left = figure.axes[0]
    found = numbers(left)
    assert list(found) == ["1", "2", "3", "4"]
    for i, (x, y) in enumerate(found.values()):
        np.testing.assert_allclose((y, x), np.array(divmod(order[i], 9)) * 10 + 4.5)
    halo, frames = left.collections
    colours = frames.get_edgecolors()[::-1]  # the first is drawn last
    assert len(np.unique(colours, axis=0)) == len(order)
    assert (np.diff(colours[:, 1]) > 0).all()
    assert (halo.get_edgecolors() == 1).all()
    assert left.get_title() == "6 of 54 tiles zoomed into"


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("shape", [(200, 300), (300, 60), (60, 300)])
def test_numbers_of_small_tiles_stand_apart(drawn, shape, clustered):
    n = np.prod(np.array(shape) // 3)
    order = np.random.default_rng(0).permutation(n)[: n // 5]
    if clustered:  # in the upper left corner, row by row
        columns = shape[1] // 3
        order = (np.arange(6)[:, None] * columns + np.arange(6)).reshape(-1)
    figure, _ = drawn(order, shape, side=3)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) >= (15 if clustered else 18) + 1  # and the scale bar's
    panel = axes.get_window_extent()
    for k, box in enumerate(boxes):
        assert panel.x0 - 1 <= box.x0
        assert box.x1 <= panel.x1 + 1
        for other in boxes[:k]:
            apart = abs(np.array(box.p0 + box.p1) - np.array(other.p0 + other.p1)) / 2
            room = (np.array(box.size) + other.size) / 2
            assert (apart > 0.7 * room).any()


def test_the_attention_beside_is_that_of_the_verdict(drawn):
    attention = np.full(54, 0.5 / 53)
    attention[22] = 0.5
    figure, _ = drawn([22, 1], attention=attention)
    right = figure.axes[1]
    assert right.get_title() == "attention: 51 % on these"
    shown = right.images[0].get_array().astype(int)
    warm = shown[..., 0] - shown[..., 2]
    peak = np.zeros(warm.shape, bool)
    peak[20:30, 40:50] = True
    assert warm[peak].min() > warm[~peak].max()


@pytest.mark.parametrize("shape", [(60, 90), (400, 40), (40, 400), (90, 90)])
@pytest.mark.parametrize("lesions", [(), (np.array([[9, 9], [9, 60], [60, 9]]),)])
def test_nothing_is_cut_off_or_written_over(drawn, shape, lesions):
    figure, rgb = drawn(np.arange(6), shape, lesions=lesions)
    figure.draw_without_rendering()
    panels = figure.axes[:2]
    boxes = [one.title.get_window_extent() for one in panels]
    boxes += [one.get_window_extent() for one in panels]
    boxes += [one.child_axes[0].get_tightbbox() for one in panels]
    boxes += [one.get_window_extent() for one in figure.legends]
    assert len(figure.legends) == len(lesions)
    for k, box in enumerate(boxes):
        inside = np.array([*box.min, *(figure.bbox.max - box.max)])
        assert (inside >= -1).all()
        assert not any(box.overlaps(other) for other in boxes[:k])
    assert max(rgb.shape) < 2200


def test_attention_and_tiles_must_agree(drawn):
    with pytest.raises(ValueError, match="slide_7: 3 tiles, but corners are"):
        drawn([0], attention=np.ones(3) / 3, title="slide_7")


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_first_zooms_are_shown_with_number_and_attention(tmp_path, figures, k):
    pixels = np.random.default_rng(0).integers(0, 255, (k, 32, 32, 3), np.uint8)
    path = tmp_path / "top.png"
    shares = np.linspace(0.3, 0.01, k)
    zoom_figure.top_zooms(pixels, shares, path, title="s", mpp=2.0, total=20)
    (figure,) = figures
    assert len(figure.axes) == k
    for i, axes in enumerate(figure.axes):
        assert (axes.images[0].get_array() == pixels[i]).all()
        colour = zoom_figure._scale(20).to_rgba(i + 1)
        assert axes.spines["left"].get_edgecolor() == pytest.approx(colour)
        assert axes.get_title().startswith(f"{i + 1}.  ")
    assert figure.axes[0].get_title() == "1.  30. % of the attention"
    assert figure.get_suptitle() == "s: first zooms, 64 µm wide, 2 µm/px"
    assert path.is_file()


def test_the_curve_of_a_class_looks_alike_in_both_panels():
    shares = np.linspace(0, 0.2, 5)
    line = shares + 0.5, shares + 0.4, shares + 0.6
    figure = curves.zooming(shares, {"a": line, "b": line}, {"b": line})
    left, right = figure.axes
    assert [line.get_color() for line in left.lines[1:]] == list(COLOURS[:2])
    (auc,) = right.lines[1:]
    assert auc.get_color() == COLOURS[1]
    assert auc.get_linestyle() == left.lines[2].get_linestyle()
    np.testing.assert_allclose(auc.get_xdata(), 100 * shares)
    for axes in (left, right):
        assert axes.get_xlim() == (0, 20)
        (*_, band) = axes.collections
        ends = band.get_paths()[0].vertices
        assert ends[:, 1].min() == pytest.approx(0.4)
        assert ends[:, 1].max() == pytest.approx(0.8)


def test_a_report_reads_the_tiles_that_count_in_their_order(tmp_path):
    """Tiles behind the last step are none."""
    read = []

    def pixels(yx, size_px, mpp):
        read.append((*yx.tolist(), size_px, mpp))
        return np.full((size_px, size_px, 3), STAIN)

    slide = SimpleNamespace(
        shape=(240, 360),
        mpp=4.0,
        overview=lambda mpp: np.full((240, 360, 3), STAIN),
        read=pixels,
    )
    yx = np.array([[0, 0], [0, 64], [64, 0], [64, 64]])
    source = SimpleNamespace(tiles=lambda row, slide: (yx, 32, 8.0))
    one = SimpleNamespace(
        trace={"order": np.array([2, 1, 0, 0]), "steps": np.int32(2)},
        attention=np.full(4, 0.25),
        row=SimpleNamespace(slide_id="s"),
    )
    config = SimpleNamespace(mpps=(2.0, 8.0))
    paths = tmp_path / "s.png", tmp_path / "s_top.png"
    pictures.draw_zooms(slide, config, source, one, "s: a, called b", [], paths)
    assert read == [(128, 0, 128, 2.0), (0, 128, 128, 2.0)]
    assert all(path.is_file() for path in paths)


def test_without_a_trace_there_is_no_curve():
    verdicts = [SimpleNamespace(trace=None, attention=np.ones(2))]
    nothing = draw.zooming(None, None, verdicts, None, None, [1])
    assert nothing == []
