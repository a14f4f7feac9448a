"""One plane per mpp, whatever the tile, the level or the reader."""

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from slides.tiffs import MPP, picture, write_tiff

from wsi_jax.slides import reader_pool
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.slide_id import slide_id_of

SHIFTS = np.array(((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)))


def shifted(one, two, yx, size, mpp, by=1):
    """How two slides differ at a place, as a share of how they do `by` pixels aside."""
    a, b = (slide.read(yx, size, mpp).astype(float) for slide in (one, two))
    moved = [np.roll(b, by * shift, (0, 1)) for shift in SHIFTS]
    here, *elsewhere = (np.abs(a - one).mean() for one in moved)
    return here / min(elsewhere)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_native_read_is_the_stored_pixels(pyramid, levels, level):
    slide = open_slide(pyramid)
    assert openslide.OpenSlide(pyramid).level_downsamples[2] != 4
    mpp = slide.levels[level].mpp
    assert mpp == pytest.approx(MPP * 2**level, rel=1e-6)
    assert slide.levels[level].shape == levels[level].shape[:2]
    for yx in ((0, 0), (3, 5), (31, 77), (60, 83)):
        expected = levels[level][yx[0] : yx[0] + 40, yx[1] : yx[1] + 50]
        np.testing.assert_array_equal(slide.read(yx, (40, 50), mpp), expected)


@pytest.mark.parametrize("mpp", [0.21, 0.31, 0.5, 0.61, 0.75, 1.3, 4.0])
def test_tiles_are_cut_from_one_plane(pyramid, mpp):
    slide = open_slide(pyramid)
    plane = slide.overview(mpp)
    assert plane.shape[:2] == slide.shape_at(mpp)
    h, w = plane.shape[:2]
    for y in range(0, h, 37):
        for x in range(0, w, 53):
            size = min(37, h - y), min(53, w - x)
            tile = slide.read((y, x), size, mpp)
            cut = plane[y : y + size[0], x : x + size[1]]
            assert np.abs(tile.astype(int) - cut).max() <= 1


def test_the_plane_does_not_show_how_it_was_chunked(pyramid, monkeypatch):
    slide = open_slide(pyramid)
    whole = {mpp: slide.overview(mpp) for mpp in (0.25, 0.31, 0.5, 1.3)}
    monkeypatch.setattr("wsi_jax.slides.slide._CHUNK_PX", 90)
    for mpp, plane in whole.items():
        assert np.abs(slide.overview(mpp).astype(int) - plane).max() <= 1


@pytest.mark.parametrize("mpp", [0.22, 0.3, 0.7, 1.7])
def test_resampling_is_the_triangle_filter_at_the_exact_mpp(tmp_path, levels, mpp):
    slide = open_slide(write_tiff(tmp_path / "one.tif", levels[:1]))
    ratio = mpp / slide.mpp

    def weights(start, n_out, n_in):
        centres = (start + np.arange(n_out)[:, None] + 0.5) * ratio
        away = np.abs(np.arange(n_in) + 0.5 - centres) / max(1, ratio)
        triangle = np.maximum(0, 1 - away)
        return triangle / triangle.sum(1, keepdims=True)

    h, w = slide.shape
    rows, cols = weights(9.25, 20, h), weights(12.5, 30, w)
    expected = np.einsum("ih,hwc,jw->ijc", rows, levels[0] / 1.0, cols, optimize=True)
    got = slide.read((9.25, 12.5), (20, 30), mpp)
    assert np.abs(got - expected).max() < 1.2  # two roundings to whole grey levels


def test_a_coarser_read_is_antialiased(tmp_path):
    checks = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    path = write_tiff(tmp_path / "checks.tif", [np.stack([checks] * 3, -1)])
    for mpp in (0.5, 0.6, 2.0):
        inside = open_slide(path).overview(mpp)[2:-2, 2:-2]
        assert np.abs(inside.astype(int) - 127.5).max() < 30
        assert abs(inside.mean() - 127.5) < 1


@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.3])
def test_levels_agree_in_size_and_place(tmp_path, pyramid, levels, mpp):
    """A pyramid and its level 0 alone show the same tissue at the same place."""
    flat = open_slide(write_tiff(tmp_path / "flat.tif", levels[:1]))
    stored = open_slide(pyramid)
    assert stored.shape_at(mpp) == flat.shape_at(mpp)
    assert shifted(flat, stored, (20, 30), 60, mpp) < 0.3


def test_outside_the_slide_is_background(pyramid, levels):
    slide = open_slide(pyramid)
    canvas = np.pad(levels[0], [(40, 40), (40, 40), (0, 0)], constant_values=255)
    for y, x, h, w in ((-10, -20, 30, 50), (445, 595, 16, 16)):
        read = slide.read((y, x), (h, w), MPP)
        expected = canvas[y + 40 : y + 40 + h, x + 40 : x + 40 + w]
        np.testing.assert_array_equal(read, expected)
    assert (slide.read((5000, 5000), 8, MPP) == 255).all()


def test_upsampling_has_a_limit_and_says_so_and_stored_pixels_are_counted(pyramid):
    slide = open_slide(pyramid)
    slide.read((0, 0), (10, 20), MPP)
    assert slide.bytes_decoded == 10 * 20 * 3
    slide.read((0, 0), (10, 20), 4 * MPP)
    assert slide.bytes_decoded == 2 * 10 * 20 * 3
    assert slide.read((0, 0), 32, MPP / 1.25).shape == (32, 32, 3)
    with pytest.raises(SlideError, match=r"(?s)pyramid: 0\.15.*0\.25.*--config\.grid"):
        slide.read((0, 0), 32, 0.15)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("strips.tif", {"tile": None, "rowsperstrip": 7}),
        ("one_strip.tif", {"tile": None}),
        ("deflate.tif", {"tile": None, "compression": "deflate", "predictor": True}),
        ("zstd.tif", {"compression": "zstd"}),
        ("separate.tif", {"planarconfig": "separate", "tile": None}),
        ("flat.png", None),
        ("flat.bmp", None),
    ],
)
def test_flat_images_are_slides_too(tmp_path, name, options):
    image, path = picture(150, 210), tmp_path / name
    if options is None:
        Image.fromarray(image).save(path)
    elif "planarconfig" in options:
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        tifffile.imwrite(path, planes, photometric="rgb", metadata=None, **options)
    else:
        write_tiff(path, [image], **options)
    slide = open_slide(path, MPP)
    np.testing.assert_array_equal(slide.overview(MPP), image)
    read = slide.read((31, 47), (60, 70), MPP)
    np.testing.assert_array_equal(read, image[31:91, 47:117])


def test_transparent_is_white_and_grey_has_three_channels(tmp_path):
    image = picture(60, 70)
    alpha = np.full((60, 70, 1), 255, np.uint8)
    alpha[:, :30] = 0
    Image.fromarray(np.concatenate([image, alpha], -1)).save(tmp_path / "alpha.png")
    read = open_slide(tmp_path / "alpha.png", MPP).overview(MPP)
    assert (read[:, :30] == 255).all()
    np.testing.assert_array_equal(read[:, 30:], image[:, 30:])
    for name, tile in (("strips.tif", None), ("tiles.tif", (64, 64))):
        path = tmp_path / name
        write_tiff(path, [image[..., 0]], photometric="minisblack", tile=tile)
        grey = open_slide(path).overview(MPP)
        np.testing.assert_array_equal(grey, np.stack([image[..., 0]] * 3, -1))


def test_what_is_not_a_slide_is_named(tmp_path):
    (tmp_path / "junk.svs").write_bytes(b"no slide at all" * 100)
    for name in ("junk.svs", "gone.svs"):
        with pytest.raises(SlideError, match=rf"{name}(;| cannot be .*) (copy|mend) "):
            open_slide(tmp_path / name, MPP)
        assert not reader_pool._entries


def test_only_a_known_extension_is_stripped():
    barcode = "TCGA-05-4244-01Z-00-DX1.d4ff32cd"
    names = {f"/a/{barcode}.svs": barcode, barcode: barcode, "x/a_1.TIF": "a_1"}
    names |= {"case.1.ome.tiff": "case.1", "test3-(387).ndpi": "test3-(387)"}
    assert {name: slide_id_of(name) for name in names} == names


# Real slides.


def test_real_pyramid_levels_are_read_as_stored(shared):
    path = shared / "data/slides/CMU-1-Small-Region.pyramid.tif"
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tiff:
        for level, page in zip(slide.levels, tiff.pages, strict=True):
            y, x = (int(n * 0.6) for n in level.shape)
            stored = page.asarray()[y : y + 50, x : x + 50]
            np.testing.assert_array_equal(
                slide.read((y, x), stored.shape[:2], level.mpp), stored
            )


def test_real_svs_and_its_pyramid_show_the_same(shared):
    """The same place whichever level was read, to less than two of its pixels.

    Not to less: this pyramid stretches its levels to sizes rounded down (its resolution
    tags say it halves), others drop the last row; no file says which.
    """
    folder = shared / "data/slides"
    svs = open_slide(folder / "CMU-1-Small-Region.svs")
    pyramid = open_slide(folder / "CMU-1-Small-Region.pyramid.tif")
    assert (svs.mpp, svs.shape) == (pyramid.mpp, pyramid.shape)
    for mpp in (1.0, 2.1, 4.5):
        yx = np.array(svs.shape) * 0.5 * svs.mpp / mpp
        assert shifted(svs, pyramid, yx, 100, mpp, by=2) < 0.75


@pytest.mark.parametrize(
    ("name", "given", "source", "mpp"),
    [
        ("CMU-1-Small-Region.svs", None, "property", 0.499),
        ("TCGA-CR-7395-01A-01-TS1.pyramid.tif", 0.5, "manifest", 0.5),
        ("test3-DAPI-2-(387).ndpi", None, "property", 0.22818),
        ("multi_frame_jpeg_camelyon_challenge_image.dcm", None, "property", 28.9685),
        ("kidney-48-5.tif", 0.5, "manifest", 0.5),
    ],
)
def test_real_formats_open(shared, name, given, source, mpp):
    with open_slide(shared / "data/slides" / name, given) as slide:
        assert slide.mpp == pytest.approx(mpp, rel=1e-4)
        assert slide.mpp_source == source
        assert slide.overview(60.0).std() > 1


def test_real_troubles_are_named(shared):
    for name in ("TCGA-CR-7395-01A-01-TS1.pyramid.tif", "broken_not_a_slide.svs"):
        with pytest.raises(SlideError, match=slide_id_of(name)):
            open_slide(shared / "data/slides" / name)
