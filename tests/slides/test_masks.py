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


def palette(mask):
    """0 is painted white."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette([255, 255, 255, 200, 0, 0])
    return image


def rgba(mask):
    rest = np.zeros_like(mask)
    return Image.fromarray(np.stack([rest, rest, mask * 9, rest + 255], -1))


KINDS = {
    "grey": Image.fromarray,
    "palette": palette,
    "bits": lambda mask: Image.fromarray(mask > 0),
    "16 bits": lambda mask: Image.fromarray(mask.astype(np.uint16) * 1000),
    "rgba": rgba,
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_and_kind_of_png(tmp_path, kind):
    """Finer and coarser than the result alike."""
    for scale in (1, 4, 20, 40):
        KINDS[kind](truth(scale)).save(tmp_path / "mask.png")
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


def test_outlines_are_filled_or_named_as_too_intricate(tmp_path, monkeypatch):
    """ASAP's too that are in no group: in CAMELYON16 that is a hole, here an area."""
    box = np.array([(120, 80), (120, 400), (360, 400), (360, 80)], float)
    hole = np.array([(200, 200), (200, 240), (240, 240), (240, 200)], float)
    polygons = [Polygon("a", "None", box), Polygon("b", "Exclusion", hole)]
    write_asap(tmp_path / "a.xml", polygons)
    expected = truth(8) > 0
    expected[25:30, 25:30] = False
    np.testing.assert_array_equal(read(tmp_path / "a.xml"), expected)
    monkeypatch.setattr(annotations, "MAX_CROSSINGS", 10)
    with pytest.raises(AnnotationError, match=r"a\.xml: outlines cross rows"):
        read(tmp_path / "a.xml")


def test_another_slides_mask_is_refused_and_a_small_one_may_be_rounded(tmp_path):
    path = tmp_path / "mask.png"
    for shape in ((640, 480), (480, 600), (20, 30)):
        as_png(path, np.ones(shape, np.uint8))
        with pytest.raises(SlideError, match=r"mask\.png.*not the same proportions"):
            read(path)
    as_png(path, np.ones((5, 6), np.uint8))  # of 5 x 6.67
    assert read(path).all()


def test_a_bad_mask_is_named(tmp_path):
    as_png(tmp_path / "whole.png", truth(1))
    data = (tmp_path / "whole.png").read_bytes()
    junk = {
        "a.png": b"\x89junk",
        "a.tif": b"\x89junk",
        "cut.png": data[: len(data) // 2],
    }
    for name, content in junk.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError, match=rf"{name} cannot be opened as a mask"):
            read(tmp_path / name)
    with pytest.raises(AnnotationError, match=r"gone\.png cannot be read.*mask_path"):
        read(tmp_path / "gone.png")
