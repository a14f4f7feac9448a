"""Tiles decoded straight from the file are what OpenSlide reads, or are not used."""

import concurrent.futures
import contextlib
import pickle
import subprocess
import sys

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from slides.test_slide import MPP, halved, picture, write_tiff

from wsi_jax.slides import direct_levels, jpeg, reader_pool, tile_cache
from wsi_jax.slides.flat_reader import FlatReader
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.tiff_reader import TiffReader

JPEG = {"compression": "jpeg", "compressionargs": {"level": 85}}


@pytest.fixture(autouse=True)
def closed_afterwards():
    yield
    reader_pool.close_all()


@pytest.fixture
def decodes(monkeypatch):
    """Counts the tiles that are decoded straight from the file."""
    seen, decode = [], jpeg.decode

    def counted(*args):
        seen.append(args)
        decode(*args)

    monkeypatch.setattr(jpeg, "decode", counted)
    return seen


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


def by_openslide(path, level, y, x, h, w):
    with openslide.OpenSlide(path) as slide:
        ds = slide.level_downsamples[level]
        at = round(x * ds), round(y * ds)
        image = np.asarray(slide.read_region(at, level, (w, h)))
    return np.where(image[..., 3:] == 0, 255, image[..., :3])


def write_raw(path, image, photometric, jpeg_space, subsampling, tables=False):
    """A tiled TIFF of JPEGs of any colour space, with its tables apart or not."""
    h, w = (-(-n // 64) * 64 for n in image.shape[:2])
    whole = np.pad(image, [(0, h - image.shape[0]), (0, w - image.shape[1]), (0, 0)])
    tiles = []
    for y in range(0, h, 64):
        for x in range(0, w, 64):
            tile = np.ascontiguousarray(whole[y : y + 64, x : x + 64])
            tiles.append(
                imagecodecs.jpeg8_encode(
                    tile, 85, colorspace="RGB", outcolorspace=jpeg_space,
                    subsampling=subsampling,
                )
            )  # fmt: skip
    shared = []
    if tables:
        parts = [_split(tile) for tile in tiles]
        assert len({apart for apart, _ in parts}) == 1
        apart, tiles = parts[0][0], [rest for _, rest in parts]
        shared = [(347, 7, len(apart), apart, True)]
    tifffile.imwrite(
        path, iter(tiles), shape=image.shape, dtype=np.uint8, tile=(64, 64),
        photometric=photometric, compression="jpeg", metadata=None,
        compressionargs={"outcolorspace": jpeg_space},  # else RGB is called YCbCr
        resolution=(1e4 / MPP,) * 2, resolutionunit=3, extratags=shared,
    )  # fmt: skip
    return path


def _split(jpeg):
    """(quantisation and Huffman tables, the rest), and no marker of a colour space."""
    tables, rest, at = b"\xff\xd8", b"\xff\xd8", 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] in (0xDB, 0xC4):
            tables += jpeg[at:end]
        elif jpeg[at + 1] == 0xC0:
            rest += _numbered(jpeg[at:end], 10)
        elif jpeg[at + 1] not in (0xE0, 0xEE):
            rest += jpeg[at:end]
        at = end
    scan = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return tables + b"\xff\xd9", rest + _numbered(jpeg[at:scan], 5) + jpeg[scan:]


def _numbered(segment, first):
    """Its components called 1, 2, 3 and not R, G, B, as Aperio does."""
    step, segment = 3 if first == 10 else 2, bytearray(segment)
    segment[first : first + 3 * step : step] = bytes((1, 2, 3))
    return bytes(segment)


@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.tif"]
)
def test_real_slides_are_read_as_openslide_does(shared, name):
    path = str(shared / "data/slides" / name)
    reader = open_reader(path)
    for level, shape in enumerate(reader.level_shapes):
        with openslide.OpenSlide(path) as slide:
            exact = slide.level_downsamples[level] % 1 == 0
        for y, x, h, w in rectangles(shape, 25, level):
            if not exact:  # only there does OpenSlide read what is stored
                y, x = 0, 0
            expected = by_openslide(path, level, y, x, h, w)
            np.testing.assert_array_equal(
                reader.read_region(level, y, x, h, w), expected
            )
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
    path, image = tmp_path / "sparse.tif", picture(256, 256)
    write_tiff(path, [image], **JPEG)
    _set_count(path, 5, 0)
    slide = open_slide(path)
    whole = slide.read((0, 0), 256, MPP)
    np.testing.assert_array_equal(whole, by_openslide(path, 0, 0, 0, 256, 256))
    assert (whole[64:128, 64:128] == 255).all()
    assert len(decodes) >= 3


def _set_count(path, index, count):
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        counts = list(tag.value)
        counts[index] = count
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)


def _damage(path, index):
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[index]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * 64)


def test_a_damaged_tile_is_openslides_to_refuse(tmp_path):
    path = write_tiff(tmp_path / "hurt.tif", [picture(256, 256)], **JPEG)
    _damage(path, 5)
    with pytest.raises(openslide.OpenSlideError) as theirs:
        by_openslide(path, 0, 70, 70, 20, 20)
    slide = open_slide(path)
    for _ in range(2):
        with pytest.raises(SlideError, match=r"hurt: level 0 .*\(70, 70\)") as ours:
            slide.read((70, 70), 20, MPP)
        assert str(theirs.value) in str(ours.value)
        expected = by_openslide(path, 0, 128, 0, 100, 100)
        np.testing.assert_array_equal(slide.read((128, 0), 100, MPP), expected)


def overwritten(data, offset, count, seed):
    """A file with 512 bytes of one tile overwritten by noise or by ones."""
    rng = np.random.default_rng(seed)
    first = offset + int(rng.integers(0, max(1, count - 512)))
    block = rng.bytes(512) if seed % 2 else b"\xff" * 512
    return data[:first] + block[: offset + count - first] + data[first + 512 :]


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_no_damaged_tile_is_read_that_openslide_refuses(tmp_path, subsampling):
    path = str(tmp_path / "hurt.tif")
    how = JPEG | {"tile": (128, 128), "subsampling": subsampling}
    write_tiff(path, [picture(384, 384)], **how)
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


@pytest.mark.parametrize("name", ["strips.tif", "tiles.tif", "planes.tif", "flat.jpg"])
def test_a_jpeg_that_ends_early_is_refused_by_every_back_end(tmp_path, name):
    """Also where OpenSlide does not open the file."""
    path, image = tmp_path / name, picture(256, 256)
    if name == "flat.jpg":
        Image.fromarray(image).save(path, quality=85)
        first, n = 0, path.stat().st_size
    else:
        layout = {"tile": (128, 128) if name == "tiles.tif" else None}
        if name == "strips.tif":
            layout["rowsperstrip"] = 96
        if name == "planes.tif":
            image = np.ascontiguousarray(image.transpose(2, 0, 1))
            grey = {"colorspace": "GRAYSCALE", "outcolorspace": "GRAYSCALE"}
            layout |= {"planarconfig": "separate", "compressionargs": grey}
        write_tiff(path, [image], **JPEG | layout)
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            first, n = page.dataoffsets[1], page.databytecounts[1]
    back_end = TiffReader if name in ("strips.tif", "tiles.tif") else FlatReader
    reader = back_end(str(path))
    whole = reader.read_region(0, 0, 0, 256, 256)
    assert np.abs(whole.astype(int) - picture(256, 256)).mean() < 12
    reader.close()
    with open(path, "r+b") as file:
        file.seek(first + n // 2)
        file.write(b"\xff\xd9")
    reader = back_end(str(path))
    with pytest.raises(ValueError, match="premature end"):
        reader.read_region(0, 0, 0, 256, 256)
    reader.close()


def test_what_openslide_refuses_of_a_sample_spoils_no_other_read(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "hurt.tif", [picture(256, 256)], **JPEG)
    _damage(path, 0)
    decode = jpeg.decode

    def lenient(*args):
        with contextlib.suppress(ValueError):
            decode(*args)

    monkeypatch.setattr(jpeg, "decode", lenient)
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
    small = halved(first)
    path = str(tmp_path / "twins.tif")
    write_tiff(path, [first, small, halved(other)], **JPEG)
    reader = open_reader(path)
    assert reader.level_shapes == ((256, 256), (128, 128), (128, 128))
    for level in range(3):
        expected = by_openslide(path, level, 0, 0, 128, 128)
        np.testing.assert_array_equal(
            reader.read_region(level, 0, 0, 128, 128), expected
        )
    decodes.clear()
    for level in range(3):
        reader.read_region(level, 0, 0, 128, 128)
    assert not decodes
    reader.close()


@pytest.mark.parametrize("level", [0, 1])
def test_another_decoders_pixels_are_refused(tmp_path, monkeypatch, level):
    """Whether OpenSlide would return stored pixels (level 0) or interpolate (1)."""
    image = picture(451, 603)
    path = str(write_tiff(tmp_path / "a.tif", [image, halved(image)], **JPEG))
    decode = jpeg.decode

    def brighter(data, head, rows, out):
        decode(data, head, rows, out)
        out[:] = np.clip(out.astype(int) + 6, 0, 255)

    monkeypatch.setattr(jpeg, "decode", brighter)
    reader = open_reader(path)
    read = reader.read_region(level, 64, 0, 64, 64)
    expected = by_openslide(path, level, 0, 0, 128, 64)[64:]
    np.testing.assert_array_equal(read, expected)
    reader.close()


def test_a_file_that_stays_the_same_is_compared_once(tmp_path):
    """To compare takes far longer than to open, and files are opened often."""
    path = str(write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG))
    compared = []

    def region(level, y, x, h, w):
        compared.append(path)
        return by_openslide(path, level, y, x, h, w)

    def planes():
        made = direct_levels.DirectLevels(path, [(256, 256)], [1.0], region)
        assert made.get(0) is not None
        made.close()

    planes()
    once = len(compared)
    planes()
    assert 0 < once == len(compared)
    write_tiff(path, [picture(256, 256, seed=1)], **JPEG)
    planes()
    assert len(compared) > once


def test_a_disk_that_failed_for_a_moment_is_asked_again(tmp_path):
    path = str(write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG))

    def fails(*_):
        raise OSError("for a moment")

    def found(region):
        made = direct_levels.DirectLevels(path, [(256, 256)], [1.0], region)
        plane = made.get(0)
        made.close()
        return plane

    assert found(fails) is None
    assert found(lambda *region: by_openslide(path, *region)) is not None


def test_other_compressions_are_left_to_openslide(tmp_path):
    path = str(write_tiff(tmp_path / "a.tif", [picture(256, 256)], compression="lzw"))
    region = lambda *_: pytest.fail("there is nothing to compare")
    planes = direct_levels.DirectLevels(path, [(256, 256)], [1.0], region)
    assert planes.get(0) is None
    planes.close()


def test_threads_see_the_same_pixels_whatever_is_kept(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", [picture(451, 603)], **JPEG)
    small = tile_cache.TileCache(3 * 64 * 64 * 3)
    monkeypatch.setattr(tile_cache, "tiles", small)
    corners = np.random.default_rng(0).integers(0, 380, (300, 2))
    slide = open_slide(path)
    alone = [slide.read(yx, 70, MPP) for yx in corners]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda yx: slide.read(yx, 70, MPP), corners))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
    slide.read((0, 0), 64, MPP)
    assert small.bytes <= small.limit_bytes


def test_each_tile_is_decoded_once_and_its_memory_used_again(monkeypatch):
    tiles, seen = tile_cache.TileCache(4 * 300), []

    def decode(index, out):
        seen.append(index)
        out[:] = index

    def read(owner, index):
        with tiles.tile(owner, index, (10, 10, 3), decode) as pixels:
            assert (pixels == index).all()
            return pixels.ctypes.data

    first = [read("a", i) for i in (1, 2, 1, 3, 2, 4)]
    assert seen == [1, 2, 3, 4]
    read("a", 1)
    assert read("a", 5) == first[3]  # 3 is what was used longest ago
    assert [read("a", i) for i in (1, 4)] == [first[0], first[5]]
    assert seen == [1, 2, 3, 4, 5]
    tiles.drop("a")
    assert {read("b", i) for i in (1, 2, 3, 4)} == set(first)
    assert seen[5:] == [1, 2, 3, 4]
    assert tiles.bytes == tiles.limit_bytes


def test_what_is_being_copied_is_not_decoded_over():
    tiles, shape = tile_cache.TileCache(300), (10, 10, 3)
    seen = []

    def read(index):
        with tiles.tile("a", index, shape, lambda i, out: out.fill(i)) as pixels:
            return pixels.copy()

    class Place(np.ndarray):
        def __setitem__(self, where, pixels):
            read(2)  # as another thread might
            seen.append(pixels.copy())

    read(1)
    assert tiles.copy("a", 1, np.empty(shape, np.uint8).view(Place))
    assert (seen[0] == 1).all()
    out = np.empty(shape, np.uint8)
    assert tiles.copy("a", 2, out)
    assert (out == 2).all()
    assert not tiles.copy("a", 3, out)


def test_a_tile_that_failed_is_tried_again():
    tiles, seen = tile_cache.TileCache(1000), []

    def decode(index, out):
        seen.append(index)
        if len(seen) == 1:
            raise ValueError("once")
        out[:] = 7

    for _ in range(2):
        try:
            with tiles.tile("a", 0, (4, 4, 3), decode) as pixels:
                assert (pixels == 7).all()
        except ValueError:
            continue
    assert seen == [0, 0]


def test_a_parents_region_serves_its_children(tmp_path, decodes):
    path = write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG)
    slide = open_slide(path)
    slide.read((0, 0), 128, 2 * MPP)
    n = len(decodes)
    assert n == 16
    for yx in ((0, 0), (0, 128), (128, 0), (128, 128)):
        slide.read(yx, 128, MPP)
    assert len(decodes) == n
    slide.close()
    slide.read((0, 0), 64, MPP)
    assert len(decodes) > n


def test_a_read_may_be_told_where_to_go(tmp_path):
    slide = open_slide(write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG))
    for yx, mpp in (((3, 5), MPP), ((-9, 40), MPP), ((3.5, 5), 0.3), ((0, 0), 0.5)):
        out = np.zeros((60, 70, 3), np.uint8)
        read = slide.read(yx, (60, 70), mpp, out)
        assert read is out
        np.testing.assert_array_equal(out, slide.read(yx, (60, 70), mpp))


def test_tiles_read_together_are_those_read_alone(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [picture(451, 603)], **JPEG)
    slide = open_slide(path)
    corners = np.random.default_rng(0).integers(-70, 620, (40, 2))
    places = [corners, np.clip(corners, 0, 320), np.clip(corners, 0, 320) // 64 * 64]
    for yx in places:
        for mpp in (MPP, 2 * MPP, 0.7):
            tiles = np.zeros((40, 64, 64, 3), np.uint8)
            before = slide.bytes_decoded
            assert slide.read_tiles(yx, mpp, list(tiles)) == [None] * 40
            together, before = slide.bytes_decoded - before, slide.bytes_decoded
            for at, tile in zip(yx, tiles, strict=True):
                np.testing.assert_array_equal(tile, slide.read(at, 64, mpp))
            assert slide.bytes_decoded - before == together


@pytest.mark.parametrize("level", [1, 2])
def test_together_they_end_where_slide_and_level_end(tmp_path, level):
    """A row and a column of the first level too many, of the second too few."""
    image = picture(451, 603)
    more = halved(np.pad(image, [(0, 1), (0, 1), (0, 0)], mode="edge"))
    few = halved(halved(image))
    slide = open_slide(write_tiff(tmp_path / "a.tif", [image, more, few], **JPEG))
    shape, mpp = slide.levels[level]
    ends = slide.shape_at(mpp)
    assert np.sign(np.subtract(shape, ends)).tolist() == [3 - 2 * level] * 2
    for at in np.stack(np.indices((5, 5)), -1).reshape(-1, 2) + shape - 66:
        tile = np.zeros((64, 64, 3), np.uint8)
        assert slide.read_tiles(at[None], mpp, [tile]) == [None]
        np.testing.assert_array_equal(tile, slide.read(at, 64, mpp))


@pytest.mark.parametrize("first", [0, 30])
def test_together_each_tile_is_decoded_once(tmp_path, decodes, monkeypatch, first):
    slide = open_slide(write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG))
    slide.read((0, 0), 9, MPP)
    monkeypatch.setattr(tile_cache, "tiles", tile_cache.TileCache(0))
    yx = np.array([(first, x + first) for x in (128, 0, 64)])
    decodes.clear()
    slide.read_tiles(yx, MPP, list(np.empty((3, 64, 64, 3), np.uint8)))
    assert len(decodes) == (3 if first == 0 else 8)


def test_a_damaged_tile_fails_alone_among_many(tmp_path):
    image = picture(256, 256)
    path = write_tiff(tmp_path / "a.tif", [image], compression="jpeg", tile=(64, 64))
    _damage(path, 5)
    slide = open_slide(path)
    yx = np.stack(np.indices((4, 4)), -1).reshape(-1, 2) * 64
    tiles = np.zeros((16, 64, 64, 3), np.uint8)
    errors = slide.read_tiles(yx, MPP, list(tiles))
    assert [i for i, error in enumerate(errors) if error] == [5]
    assert isinstance(errors[5], SlideError)
    for i in (0, 4, 6, 15):
        np.testing.assert_array_equal(tiles[i], slide.read(yx[i], 64, MPP))


def test_a_slide_is_pickled_and_forked(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [picture(256, 256)], **JPEG)
    slide = open_slide(path)
    read = slide.read((9, 9), 99, MPP)
    again = pickle.loads(pickle.dumps(slide)).read((9, 9), 99, MPP)
    np.testing.assert_array_equal(again, read)
    program = f"""
import os
from wsi_jax.slides import tile_cache
from wsi_jax.slides.slide import open_slide
slide = open_slide({str(path)!r})
before = slide.read((9, 9), 99, {MPP})
with tile_cache.tiles._lock:  # as another thread might have it
    if not (child := os.fork()):
        os._exit(int((slide.read((9, 9), 99, {MPP}) != before).any()))
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
