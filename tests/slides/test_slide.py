"""One plane per mpp, whatever the tile, the thread, the level or the back end."""

import concurrent.futures
import pickle

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from wsi_jax.slides import reader_pool, tiff_reader
from wsi_jax.slides.names import slide_id_of
from wsi_jax.slides.slide import SlideError, open_slide

MPP = 0.25
PIXELS_PER_CM = 1e4 / MPP
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def picture(h, w, seed=0):
    """Smooth blobs and fine grain: wrong phases and wrong scales both show."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (h // 16 + 2, w // 16 + 2, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC)
    grain = rng.integers(-20, 21, (h, w, 3))
    return np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)


def halved(image):
    """Box mean of 2 x 2, the odd last row and column dropped as writers do."""
    h, w = (n // 2 * 2 for n in image.shape[:2])
    boxes = image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).astype(np.uint16)
    return ((boxes.sum((1, 3)) + 2) // 4).astype(np.uint8)


def write_tiff(path, levels, resolution=(PIXELS_PER_CM,) * 2, unit=3, **how):
    how = {"tile": (64, 64), "photometric": "rgb"} | how
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            tiff.write(
                level,
                resolution=tuple(r / 2**i for r in resolution),
                resolutionunit=unit,
                subfiletype=int(i > 0),
                metadata=None,
                **how,
            )
    return path


@pytest.fixture(scope="module")
def levels():
    """Three levels whose sizes OpenSlide takes for downsamples of 2.003 and 4.02."""
    first = picture(451, 603)
    return first, halved(first), halved(halved(first))


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, levels):
    return write_tiff(tmp_path_factory.mktemp("slides") / "pyramid.tif", levels)


@pytest.fixture(autouse=True)
def closed_afterwards():
    yield
    reader_pool.close_all()


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
    a, b = (s.read((20, 30), 60, mpp).astype(float) for s in (flat, stored))
    here, *elsewhere = (np.abs(a - np.roll(b, by, (0, 1))).mean() for by in SHIFTS)
    assert here < 0.3 * min(elsewhere)


def test_outside_the_slide_is_background(pyramid, levels):
    slide = open_slide(pyramid)
    read = slide.read((-10, -20), (30, 50), MPP)
    np.testing.assert_array_equal(read[10:, 20:], levels[0][:20, :30])
    assert (read[:10] == 255).all()
    assert (read[:, :20] == 255).all()
    assert (slide.read((5000, 5000), 8, MPP) == 255).all()
    corner = slide.read((445, 595), 16, MPP)
    np.testing.assert_array_equal(corner[:6, :8], levels[0][445:, 595:])
    assert (corner[6:] == 255).all()
    assert (corner[:, 8:] == 255).all()


def test_upsampling_has_a_limit_and_says_so(pyramid):
    slide = open_slide(pyramid)
    assert slide.read((0, 0), 32, MPP / 1.25).shape == (32, 32, 3)
    with pytest.raises(SlideError, match=r"(?s)pyramid: 0\.15.*0\.25.*--config\.grid"):
        slide.read((0, 0), 32, 0.15)


def test_mpp_comes_from_manifest_then_property_then_tags(tmp_path, levels):
    tiled = write_tiff(tmp_path / "tiled.tif", levels[:1])
    strips = write_tiff(tmp_path / "strips.tif", levels[:1], tile=None)
    inches = write_tiff(
        tmp_path / "inches.tif", levels[:1], (25400 / MPP,) * 2, 2, tile=None
    )
    found = [
        (slide.mpp, slide.mpp_source)
        for slide in (
            *(open_slide(tiled, 0.5), open_slide(tiled)),
            *(open_slide(strips), open_slide(inches)),
        )
    ]
    assert [source for _, source in found] == ["manifest", "property", "tiff", "tiff"]
    assert [mpp for mpp, _ in found] == pytest.approx([0.5, MPP, MPP, MPP], rel=1e-6)


OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{w}" SizeY="{h}"
 SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{x}" PhysicalSizeY="{y}" {units}>
<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>
</Pixels></Image></OME>"""


def write_ome(path, h, w, x, y, unit, tile, resolution=None):
    units = f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    description = OME.format(h=h, w=w, x=x, y=y, units=units).encode()
    how = {"resolution": (resolution,) * 2, "resolutionunit": 3} if resolution else {}
    pixels = picture(80, 90)
    tifffile.imwrite(
        path, pixels, tile=tile, description=description, metadata=None, **how
    )


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("size", "unit"),
    [(0.25, ""), (0.25, "\u00b5m"), (0.25, "um"), (250, "nm"), (0.00025, "mm")],
)
def test_an_ome_tiff_tells_its_mpp(tmp_path, size, unit, tile):
    path = tmp_path / "a.ome.tif"
    write_ome(path, 80, 90, size, size, unit, tile)
    slide = open_slide(path)
    assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.25), "ome")
    assert slide.mpp_note == ""


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_an_ome_tiff_is_believed_before_its_resolution_with_a_note(tmp_path, tile):
    write_ome(tmp_path / "a.ome.tif", 80, 90, 0.25, 0.25, "um", tile, 20_000)
    slide = open_slide(tmp_path / "a.ome.tif")
    assert slide.mpp == 0.25
    assert "mpp 0.25 is used, by its ome" in slide.mpp_note
    assert "says 0.5" in slide.mpp_note


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "pixel"}, "no usable um/px"),
        ({"x": "small"}, "no usable um/px"),
        ({"x": "1<", "y": 1}, "no usable um/px"),
        ({"h": 40}, "no usable um/px"),  # another image of the file
        ({"x": 0.5}, "not square"),
        ({"x": 900, "y": 900}, "its ome says 900"),
    ],
)
def test_an_ome_that_tells_nothing_of_use_is_refused_as_ever(
    tmp_path, change, message, tile
):
    usual = {"h": 80, "w": 90, "x": 0.25, "y": 0.25, "unit": "um"}
    write_ome(tmp_path / "a.ome.tif", **usual | change, tile=tile)
    with pytest.raises(SlideError, match=message):
        open_slide(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("resolution", "unit"), [((72, 72), 2), ((1, 1), 1), ((300, 300), 2), ((1, 1), 3)]
)
def test_a_writers_default_resolution_is_no_mpp(tmp_path, resolution, unit, tile):
    path = tmp_path / "TCGA-X.a.b.tif"
    write_tiff(path, [picture(80, 90)], resolution, unit, tile=tile)
    with pytest.raises(SlideError, match=r"TCGA-X\.a\.b: .*mpp column.*--config\.data"):
        open_slide(path)
    assert open_slide(path, 0.5).mpp == 0.5


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_pixels_must_be_square(tmp_path, tile):
    path = tmp_path / "oblong.tif"
    write_tiff(path, [picture(80, 90)], (40000, 20000), 3, tile=tile)
    with pytest.raises(SlideError, match=r"oblong: .*not square, 0\.5 x 0\.25"):
        open_slide(path)


@pytest.mark.parametrize("mpp", [0.0, -1.0, 1000.0])
def test_a_given_mpp_must_be_sane(pyramid, mpp):
    with pytest.raises(SlideError, match=r"pyramid: .*mpp column"):
        open_slide(pyramid, mpp)


@pytest.mark.parametrize(
    ("name", "how"),
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
def test_flat_images_are_slides_too(tmp_path, name, how):
    image, path = picture(150, 210), tmp_path / name
    if how is None:
        Image.fromarray(image).save(path)
    elif "planarconfig" in how:
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        tifffile.imwrite(path, planes, photometric="rgb", metadata=None, **how)
    else:
        write_tiff(path, [image], **how)
    slide = open_slide(path, MPP)
    np.testing.assert_array_equal(slide.overview(MPP), image)
    read = slide.read((31, 47), (60, 70), MPP)
    np.testing.assert_array_equal(read, image[31:91, 47:117])


def test_transparent_is_white_and_grey_has_three_channels(tmp_path):
    image = picture(60, 70)
    alpha = np.full((60, 70, 1), 255, np.uint8)
    alpha[:, :30] = 0
    Image.fromarray(np.concatenate([image, alpha], -1)).save(tmp_path / "alpha.png")
    seen = open_slide(tmp_path / "alpha.png", MPP).overview(MPP)
    assert (seen[:, :30] == 255).all()
    np.testing.assert_array_equal(seen[:, 30:], image[:, 30:])
    for name, tile in (("strips.tif", None), ("tiles.tif", (64, 64))):
        path = tmp_path / name
        write_tiff(path, [image[..., 0]], photometric="minisblack", tile=tile)
        grey = open_slide(path).overview(MPP)
        np.testing.assert_array_equal(grey, np.stack([image[..., 0]] * 3, -1))


@pytest.mark.parametrize("name", ["junk.svs", "deep.tif", "gone.svs", "folder.svs"])
def test_what_is_not_a_slide_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "junk.svs":
        path.write_bytes(b"no slide at all" * 100)
    if name == "deep.tif":
        tifffile.imwrite(path, picture(80, 90).astype(np.uint16) * 256)
    if name == "folder.svs":
        path.mkdir()
    with pytest.raises(SlideError, match=rf"{name} cannot be .*(copy|mend)"):
        open_slide(path, MPP)
    assert not reader_pool._entries


@pytest.fixture
def hurt(tmp_path):
    """A slide whose tile at (64, 64) is damaged, and what it should be."""
    image = picture(256, 256)
    path = write_tiff(tmp_path / "hurt.tif", [image], compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    return open_slide(path), image


def test_a_damaged_tile_fails_alone(hurt):
    slide, image = hurt
    for _ in range(2):
        with pytest.raises(SlideError, match=r"hurt: level 0 .*\(70, 70\).*hurt\.tif"):
            slide.read((70, 70), 20, MPP)
        assert not reader_pool._entries
        read = slide.read((128, 0), 100, MPP)
        np.testing.assert_array_equal(read, image[128:228, :100])


def test_one_threads_damaged_tile_is_not_anothers(hurt):
    """OpenSlide refuses everything after its first error, to every thread."""
    slide, image = hurt
    with reader_pool.lease(slide._key) as reader:
        for y in (70, 128):
            with pytest.raises(openslide.OpenSlideError):
                reader.read_region(0, y, 70, 20, 20)
        read = slide.read((128, 0), 100, MPP)
    np.testing.assert_array_equal(read, image[128:228, :100])


def write_strips(path, image):
    return write_tiff(path, [image], tile=None, rowsperstrip=1)


@pytest.mark.parametrize("back_end", ["openslide", "tifffile"])
def test_threads_see_the_same_pixels(tmp_path, levels, monkeypatch, back_end):
    """Also while handles are being closed under them for want of room."""
    monkeypatch.setattr(reader_pool, "MAX_OPEN", 1)
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for path in paths:
        if back_end == "openslide":
            write_tiff(path, levels)
        else:
            write_strips(path, levels[0])
    slides = [open_slide(path) for path in paths]
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 300, (150, 2))
    jobs = [(slides[i % 3], yx, MPP * (1 + i % 4)) for i, yx in enumerate(corners)]

    def read(job):
        slide, yx, mpp = job
        return slide.read(yx, 48, mpp)

    alone = [read(job) for job in jobs]
    before = [slide.bytes_decoded for slide in slides]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, jobs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [slide.bytes_decoded for slide in slides] == [2 * n for n in before]
    assert len(reader_pool._entries) <= 1


def test_a_file_in_use_stays_open(tmp_path, levels, monkeypatch):
    monkeypatch.setattr(reader_pool, "MAX_OPEN", 1)
    a, b = (
        open_slide(write_strips(tmp_path / name, levels[2]))
        for name in ("a.tif", "b.tif")
    )
    with reader_pool.lease(a._key) as reader:
        b.overview(MPP)
        a.close()
        read = reader.read_region(0, 0, 0, *levels[2].shape[:2])
        np.testing.assert_array_equal(read, levels[2])
    assert not reader_pool._entries


def test_open_files_are_few_and_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_pool, "MAX_OPEN", 2)
    opened, closed = [], []
    start, close = tiff_reader.TiffReader.__init__, tiff_reader.TiffReader.close
    monkeypatch.setattr(
        tiff_reader.TiffReader,
        "__init__",
        lambda self, path: start(self, path) or opened.append(self),
    )
    monkeypatch.setattr(
        tiff_reader.TiffReader, "close", lambda self: closed.append(self) or close(self)
    )
    image = picture(80, 90)
    slides = [
        open_slide(write_tiff(tmp_path / f"{i}.tif", [image], tile=None))
        for i in range(5)
    ]
    assert len(reader_pool._entries) == len(opened) - len(closed) == 2
    for slide in slides:
        with slide:
            np.testing.assert_array_equal(slide.overview(MPP), image)
    assert not reader_pool._entries
    assert set(map(id, opened)) == set(map(id, closed))
    assert len(closed) == len(opened)


def test_a_file_written_anew_is_read_anew(tmp_path):
    first, second = picture(80, 90), picture(96, 70, seed=1)
    path = tmp_path / "same.tif"
    for image in (first, second):
        write_tiff(path, [image])
        np.testing.assert_array_equal(open_slide(path).overview(MPP), image)


def test_a_slide_is_pickled_as_its_path(pyramid):
    slide = open_slide(pyramid, 0.3)
    slide.read((0, 0), 10, 0.3)
    sent = pickle.dumps(slide)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    assert (back.mpp, back.levels, back.bytes_decoded) == (0.3, slide.levels, 0)


def test_bytes_decoded_counts_stored_pixels(pyramid):
    slide = open_slide(pyramid)
    slide.read((0, 0), (10, 20), MPP)
    assert slide.bytes_decoded == 10 * 20 * 3
    slide.read((0, 0), (10, 20), 4 * MPP)
    assert slide.bytes_decoded == 2 * 10 * 20 * 3


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("/a/TCGA-05-4244-01Z-00-DX1.d4ff32cd.svs", "TCGA-05-4244-01Z-00-DX1.d4ff32cd"),
        ("TCGA-05-4244-01Z-00-DX1.d4ff32cd", "TCGA-05-4244-01Z-00-DX1.d4ff32cd"),
        ("x/normal_001.TIF", "normal_001"),
        ("case.1.ome.tiff", "case.1"),
        ("test3-DAPI-2-(387).ndpi", "test3-DAPI-2-(387)"),
    ],
)
def test_only_a_known_extension_is_stripped(path, stem):
    assert slide_id_of(path) == stem


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
        a, b = (s.read(yx, 100, mpp).astype(float) for s in (svs, pyramid))
        here, *elsewhere = (
            np.abs(a - np.roll(b, by, (0, 1))).mean() for by in 2 * np.array(SHIFTS)
        )
        assert here < 0.75 * min(elsewhere)


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


@pytest.mark.parametrize(
    "name", ["TCGA-CR-7395-01A-01-TS1.pyramid.tif", "broken_not_a_slide.svs"]
)
def test_real_troubles_are_named(shared, name):
    with pytest.raises(SlideError, match=slide_id_of(name)):
        open_slide(shared / "data/slides" / name)
