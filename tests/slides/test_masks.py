"""A mask of any size and kind is scaled to the slide; another slide's is refused."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_jax.slides import annotations, masks
from wsi_jax.slides.annotations import AnnotationError, Polygon, write_asap
from wsi_jax.slides.masks import read_mask
from wsi_jax.slides.reader_protocol import SlideError

SLIDE = (480, 640)  # level 0, at 0.5 um/px
TISSUE = (slice(120, 360), slice(80, 400))


def truth(factor):
    """The slide's tissue, `factor` level-0 pixels to a pixel."""
    mask = np.zeros(SLIDE, np.uint8)
    mask[TISSUE] = 1
    return mask[::factor, ::factor]


def read(path, factor=8):
    shape = tuple(round(n / factor) for n in SLIDE)
    return read_mask(path, shape, 0.5 * factor, SLIDE, 0.5)


def as_png(path, mask):
    Image.fromarray(mask).save(path)


def as_palette(path, mask):
    """0 is painted white."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette([255, 255, 255, 200, 0, 0])
    image.save(path)


def as_bits(path, mask):
    Image.fromarray(mask > 0).save(path)


def as_16_bits(path, mask):
    Image.fromarray(mask.astype(np.uint16) * 1000).save(path)


def as_rgba(path, mask):
    colour = np.zeros((*mask.shape, 4), np.uint8)
    colour[..., 2], colour[..., 3] = mask * 9, 255
    Image.fromarray(colour).save(path)


@pytest.mark.parametrize("scale", [1, 4, 20, 40])
@pytest.mark.parametrize("save", [as_png, as_palette, as_bits, as_16_bits, as_rgba])
def test_any_size_and_kind_of_png(tmp_path, save, scale):
    """Finer and coarser than the result alike."""
    save(tmp_path / "mask.png", truth(scale))
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), truth(8) > 0)


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_tiff(tmp_path, tile):
    """Labels 0 glass, 1 tissue, 2 lesion: all but 0 is tissue."""
    mask = truth(1)
    mask[200:220, 200:220] = 2
    options = {"tile": tile} if tile else {"rowsperstrip": 16}
    tifffile.imwrite(tmp_path / "a.tif", mask, compression="zlib", **options)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), truth(8) > 0)


def test_a_pyramid_is_read_where_it_is_small(tmp_path, monkeypatch):
    """As CAMELYON16's masks, whose level 0 does not fit into memory."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for level, factor in enumerate((1, 2, 4)):
            kind = {"subfiletype": 1} if level else {}
            tiff.write(truth(factor), tile=(64, 64), compression="lzw", **kind)
    levels, opened = [], masks._open

    def watched(path):
        reader = opened(path)
        plain = reader.read_region
        reader.read_region = lambda level, *a: levels.append(level) or plain(level, *a)
        return reader

    monkeypatch.setattr(masks, "_open", watched)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), truth(8) > 0)
    assert set(levels) == {2}


def test_strips_are_one_mask(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    mask = (rng.random(SLIDE) < 0.5).astype(np.uint8)
    as_png(tmp_path / "mask.png", mask)
    at_once = [read(tmp_path / "mask.png", factor) for factor in (8, 6.4)]
    monkeypatch.setattr(masks, "_CHUNK_PX", 640 * 7)
    for factor, whole in zip((8, 6.4), at_once, strict=True):
        np.testing.assert_array_equal(read(tmp_path / "mask.png", factor), whole)
    half = mask.reshape(60, 8, 80, 8).mean((1, 3))
    sure = np.abs(half - 0.5) > 0.02
    np.testing.assert_array_equal(at_once[0][sure], (half > 0.5)[sure])


def test_a_result_of_odd_size_is_not_stretched(tmp_path):
    """What rounding adds at the edge is no tissue moved."""
    as_png(tmp_path / "mask.png", truth(1))
    shape, mpp = (69, 91), 3.5  # 68.57 x 91.43 pixels
    mask = read_mask(tmp_path / "mask.png", shape, mpp, SLIDE, 0.5)
    y, x = np.nonzero(mask)
    edges = np.array([y.min(), y.max() + 1, x.min(), x.max() + 1]) * 7
    np.testing.assert_allclose(edges, [120, 360, 80, 400], atol=3.6)


def test_outlines_are_filled(tmp_path):
    """ASAP's too that are in no group: in CAMELYON16 that is a hole, here an area."""
    box = np.array([(120, 80), (120, 400), (360, 400), (360, 80)], float)
    hole = np.array([(200, 200), (200, 240), (240, 240), (240, 200)], float)
    polygons = [Polygon("a", "None", box), Polygon("b", "Exclusion", hole)]
    write_asap(tmp_path / "a.xml", polygons)
    expected = truth(8) > 0
    expected[25:30, 25:30] = False
    np.testing.assert_array_equal(read(tmp_path / "a.xml"), expected)


def test_outlines_that_are_too_intricate_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "MAX_CROSSINGS", 10)
    box = np.array([(120, 80), (120, 400), (360, 400), (360, 80)], float)
    write_asap(tmp_path / "a.xml", [Polygon("a", "None", box)])
    with pytest.raises(AnnotationError, match=r"a\.xml: outlines cross rows"):
        read(tmp_path / "a.xml")


@pytest.mark.parametrize("shape", [(640, 480), (480, 600), (20, 30)])
def test_another_slides_mask_is_refused(tmp_path, shape):
    as_png(tmp_path / "mask.png", np.ones(shape, np.uint8))
    with pytest.raises(SlideError, match=r"mask\.png.*not the same proportions"):
        read(tmp_path / "mask.png")


def test_a_small_mask_may_be_rounded(tmp_path):
    as_png(tmp_path / "mask.png", np.ones((5, 6), np.uint8))  # of 5 x 6.67
    assert read(tmp_path / "mask.png").all()


def test_a_bad_mask_is_named(tmp_path):
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_bytes(b"\x89junk")
        with pytest.raises(SlideError, match=rf"{name} cannot be opened as a mask"):
            read(tmp_path / name)
    with pytest.raises(AnnotationError, match=r"gone\.png cannot be read.*mask_path"):
        read(tmp_path / "gone.png")
    as_png(tmp_path / "whole.png", truth(1))
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlideError, match=r"cut\.png cannot be opened as a mask"):
        read(tmp_path / "cut.png")
