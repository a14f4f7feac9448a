"""Tiles decoded straight from the file are what OpenSlide reads, or are not used."""

import contextlib

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from slides.tiffs import (
    JPEG,
    MPP,
    by_openslide,
    damage,
    halved,
    picture,
    write_raw,
    write_tiff,
)

from wsi_jax.slides import strict_jpeg
from wsi_jax.slides.direct_levels import DirectLevels
from wsi_jax.slides.flat_reader import FlatReader
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.tiff_reader import TiffReader


def rectangles(shape, n, seed=0):
    """Random (y, x, h, w) inside a shape, its far corner among them."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        h, w = (int(rng.integers(1, min(side, 300) + 1)) for side in shape)
        y, x = (
            side - m if i == 0 else int(rng.integers(0, side - m + 1))
            for side, m in zip(shape, (h, w), strict=True)
        )
        yield y, x, h, w


@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.tif"]
)
def test_real_slides_are_read_as_openslide_does(shared, name):
    path = str(shared / "data/slides" / name)
    reader = open_reader(path)
    with openslide.OpenSlide(path) as slide:
        exact = [ds % 1 == 0 for ds in slide.level_downsamples]
    for level, shape in enumerate(reader.level_shapes):
        for y, x, h, w in rectangles(shape, 25, level):
            # Only of an exact level does OpenSlide read what is stored.
            box = (y, x, h, w) if exact[level] else (0, 0, h, w)
            expected = by_openslide(path, level, *box)
            np.testing.assert_array_equal(reader.read_region(level, *box), expected)
        assert reader._direct.get(level) is not None
    reader.close()


@pytest.mark.parametrize(
    ("space", "subsampling"),
    [("rgb", "444"), ("ycbcr", "444"), ("ycbcr", "422"), ("ycbcr", "420")],
)
@pytest.mark.parametrize("tables", [False, True])
def test_any_colour_space_and_subsampling(tmp_path, subsampling, space, tables):
    path = str(tmp_path / "a.tif")
    image = picture(300, 401)
    write_raw(path, image, space, space.upper(), subsampling, tables)
    reader = open_reader(path)
    for box in rectangles(image.shape[:2], 10):
        expected = by_openslide(path, 0, *box)
        np.testing.assert_array_equal(reader.read_region(0, *box), expected)
    assert reader._direct.get(0) is not None
    assert np.abs(reader.read_region(0, 0, 0, 300, 401) - image.astype(int)).mean() < 15
    reader.close()


def test_a_missing_tile_is_openslides_to_fill(tmp_path, decodes):
    path = write_tiff(tmp_path / "sparse.tif", [picture(256, 256)], **JPEG)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        tag.overwrite([0 if i == 5 else n for i, n in enumerate(tag.value)])
    whole = open_slide(path).read((0, 0), 256, MPP)
    np.testing.assert_array_equal(whole, by_openslide(path, 0, 0, 0, 256, 256))
    assert (whole[64:128, 64:128] == 255).all()
    assert len(decodes) >= 3


def overwritten(data, offset, count, seed):
    """A file with 512 bytes of one tile overwritten by noise or by ones."""
    rng = np.random.default_rng(seed)
    first = offset + int(rng.integers(0, max(1, count - 512)))
    block = rng.bytes(512) if seed % 2 else b"\xff" * 512
    return data[:first] + block[: offset + count - first] + data[first + 512 :]


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_no_damaged_tile_is_read_that_openslide_refuses(tmp_path, subsampling):
    path = str(tmp_path / "hurt.tif")
    options = JPEG | {"tile": (128, 128), "subsampling": subsampling}
    write_tiff(path, [picture(384, 384)], **options)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        # Not one of those that are compared before any is read.
        index = min((1, 2, 3, 5, 6, 7), key=page.databytecounts.__getitem__)
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    y, x = 128 * (index // 3), 128 * (index % 3)
    box = y, x, 128, 128
    with open(path, "rb") as file:
        whole = file.read()
    refused = 0
    for seed in range(50):
        with open(path, "wb") as file:
            file.write(overwritten(whole, offset, count, seed))
        try:
            expected = by_openslide(path, 0, *box)
        except openslide.OpenSlideError:
            expected, refused = None, refused + 1
        reader = open_reader(path)
        try:
            read = reader.read_region(0, *box)
        except (openslide.OpenSlideError, ValueError):
            read = None
        reader.close()
        if expected is None:
            assert read is None, seed
        else:
            np.testing.assert_array_equal(read, expected)
    assert refused >= 45


PLANES = {
    "planarconfig": "separate",
    "compressionargs": {"colorspace": "GRAYSCALE", "outcolorspace": "GRAYSCALE"},
}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (TiffReader, {"tile": None, "rowsperstrip": 96}),
        (TiffReader, {"tile": (128, 128)}),
        (FlatReader, {"tile": None} | PLANES),
        (FlatReader, None),
    ],
    ids=["strips", "tiles", "planes", "jpeg"],
)
def test_a_jpeg_that_ends_early_is_refused_by_every_reader(tmp_path, kind, layout):
    """Also where OpenSlide does not open the file."""
    path, image = tmp_path / "a", picture(256, 256)
    if layout is None:
        Image.fromarray(image).save(path, "jpeg", quality=85)
        first, n = 0, path.stat().st_size
    else:
        stored = image.transpose(2, 0, 1) if "planarconfig" in layout else image
        write_tiff(path, [np.ascontiguousarray(stored)], **JPEG | layout)
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            first, n = page.dataoffsets[1], page.databytecounts[1]
    reader = kind(str(path))
    whole = reader.read_region(0, 0, 0, 256, 256)
    assert np.abs(whole.astype(int) - image).mean() < 12
    reader.close()
    with open(path, "r+b") as file:
        file.seek(first + n // 2)
        file.write(b"\xff\xd9")
    reader = kind(str(path))
    with pytest.raises(ValueError, match="premature end"):
        reader.read_region(0, 0, 0, 256, 256)
    reader.close()


def test_what_openslide_refuses_of_a_sample_spoils_no_other_read(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "hurt.tif", [picture(256, 256)], **JPEG)
    damage(path, 0)
    decode = strict_jpeg.decode

    def lenient(*args):
        with contextlib.suppress(ValueError):
            decode(*args)

    monkeypatch.setattr(strict_jpeg, "decode", lenient)
    expected = by_openslide(path, 0, 128, 0, 100, 100)
    np.testing.assert_array_equal(open_slide(path).read((128, 0), 100, MPP), expected)
    with pytest.raises(SlideError, match="hurt"):
        open_slide(path).read((0, 0), 20, MPP)


def test_a_file_cut_short_is_not_believed(tmp_path):
    path = write_tiff(tmp_path / "cut.tif", [picture(256, 256)], **JPEG)
    with tifffile.TiffFile(path) as tiff:
        end = tiff.pages[0].dataoffsets[9] + 10
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].offset < end, "the directory comes first"
    path.write_bytes(data[:end])
    slide = open_slide(path)
    with pytest.raises(SlideError, match="cut: level 0 cannot be read"):
        slide.read((128, 64), 64, MPP)
    assert slide.read((0, 0), 64, MPP).std() > 1


def test_a_page_that_is_not_the_level_is_refused(tmp_path, decodes):
    """Two pages of one size: by its size alone the first would pass for both."""
    first, other = picture(256, 256), picture(256, 256, seed=1)
    path = str(tmp_path / "twins.tif")
    write_tiff(path, [first, halved(first), halved(other)], **JPEG)
    reader = open_reader(path)
    assert reader.level_shapes == ((256, 256), (128, 128), (128, 128))
    for _ in range(2):
        decodes.clear()
        for level in range(3):
            expected = by_openslide(path, level, 0, 0, 128, 128)
            read = reader.read_region(level, 0, 0, 128, 128)
            np.testing.assert_array_equal(read, expected)
    assert not decodes
    reader.close()


@pytest.mark.parametrize("level", [0, 1])
def test_another_decoders_pixels_are_refused(tmp_path, monkeypatch, level):
    """Whether OpenSlide would return stored pixels (level 0) or interpolate (1)."""
    image = picture(451, 603)
    path = str(write_tiff(tmp_path / "a.tif", [image, halved(image)], **JPEG))
    decode = strict_jpeg.decode

    def brighter(data, head, rows, out):
        decode(data, head, rows, out)
        out[:] = np.clip(out.astype(int) + 6, 0, 255)

    monkeypatch.setattr(strict_jpeg, "decode", brighter)
    reader = open_reader(path)
    read = reader.read_region(level, 64, 0, 64, 64)
    expected = by_openslide(path, level, 0, 0, 128, 64)[64:]
    np.testing.assert_array_equal(read, expected)
    reader.close()


def compared(path, fails=False):
    """(number of comparisons, whether a file's level may be read directly)."""
    regions = []

    def region(*where):
        regions.append(where)
        if fails:
            raise OSError("for a moment")
        return by_openslide(path, *where)

    direct = DirectLevels(path, [(256, 256)], [1.0], region)
    agrees = direct.get(0) is not None
    direct.close()
    return len(regions), agrees


def test_a_file_is_compared_once_while_it_stays_the_same(tmp_path):
    """To compare takes far longer than to open, and files are opened often. What a
    disk failed to give for a moment is asked for again."""
    path = str(write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG))
    assert compared(path, fails=True) == (1, False)
    n, agrees = compared(path)
    assert agrees
    assert n > 0
    assert compared(path) == (0, True)
    write_tiff(path, [picture(256, 256, seed=1)], **JPEG)
    assert compared(path) == (n, True)
    write_tiff(path, [picture(256, 256)], compression="lzw")
    assert compared(path) == (0, False)  # OpenSlide's to read
