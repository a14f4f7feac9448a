"""Files that would be read wrong, hang a library or abort the process are refused."""

import os
import socket
import struct
import subprocess
import sys

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from slides.tiffs import MPP, halved, picture, write_tiff

from wsi_jax.slides import size_limits
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.openslide_reader import OpenSlideReader
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.tiff_directories import read_directories
from wsi_jax.slides.tiff_reader import TiffReader


def write_directories(path, shape, tile, following, big=False, order="<"):
    """A grey TIFF of nothing but directories; `following` of each is another's index.

    The last tag points to SubIFDs where `following` holds a pair of indices.
    """
    letters = ("Q", "Q", 8) if big else ("H", "I", 4)
    count, offset, width = letters
    start = 16 if big else 8
    tags = {
        256: shape[1], 257: shape[0], 258: 8, 259: 1, 262: 1, 277: 1,
        322: tile[1], 323: tile[0], 324: start, 325: 16,
    }  # fmt: skip
    n = len(tags) + 1
    size = struct.calcsize("=" + count) + n * (4 + 2 * width) + width
    place = lambda i: start + 16 + i * size if i is not None else 0
    head = (b"II" if order == "<" else b"MM") + (
        struct.pack(order + "HHHQ", 43, 8, 0, place(0))
        if big
        else struct.pack(order + "HI", 42, place(0))
    )
    body = bytes(16)
    for after in following:
        after, below = after if isinstance(after, tuple) else (after, None)
        body += struct.pack(order + count, n)
        for code, value in (*tags.items(), (330, place(below))):
            body += struct.pack(order + "HH" + offset * 2, code, 4, 1, 0)[:-width]
            body += struct.pack(order + "I", value).ljust(width, b"\0")
        body += struct.pack(order + offset, place(after))
    path.write_bytes(head + body)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_directories_are_read_in_every_layout(tmp_path, big, order):
    path, image = tmp_path / "a.tif", picture(150, 210)
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as tiff:
        for kind, one in ((0, image), (1, halved(image))):
            tiff.write(one, tile=(64, 48), photometric="rgb", subfiletype=kind)
        tiff.write(image[..., 0].astype(np.uint16), rowsperstrip=9)
    assert read_directories(path) == [
        (0, (150, 210), (64, 48), (8, 8, 8), 3, 2, ()),
        (1, (75, 105), (64, 48), (8, 8, 8), 3, 2, ()),
        (0, (150, 210), (0, 0), (16,), 1, 1, ()),
    ]


def test_a_large_ndpi_has_offsets_of_eight_bytes(tmp_path):
    """Beyond 4 GB the upper halves follow the directory. The file here is a hole."""
    path, at = tmp_path / "a.ndpi", 5 * 2**30
    tags = (256, 4, 1, 300), (257, 4, 1, 200), (258, 3, 3, at % 2**32), (65420, 4, 1, 1)
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHQ", b"II", 42, at + 6))
        file.seek(at)
        file.write(struct.pack("<4H", 8, 8, 8, len(tags)))
        file.write(b"".join(struct.pack("<HHII", *tag) for tag in tags))
        file.write(struct.pack("<Q4I", 0, 0, 0, 1, 0))
    (image,) = read_directories(path)
    assert (image.shape, image.bits) == ((200, 300), (8, 8, 8))


@pytest.mark.parametrize(("big", "order"), [(False, "<"), (True, "<"), (True, ">")])
def test_directories_in_a_circle_are_refused(tmp_path, big, order):
    path = tmp_path / "circle.tif"
    for following in ([0], [1, 2, 0], [1, 1], [(1, 0), None]):
        write_directories(path, (256, 256), (256, 256), following, big, order)
        with pytest.raises(ValueError, match="its image directories go in a circle"):
            read_directories(path)


def test_directories_without_end_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "many.tif"
    write_directories(path, (256, 256), (256, 256), [*range(1, 30), None])
    assert len(read_directories(path)) == 30
    monkeypatch.setattr(size_limits, "DIRECTORIES", 29)
    with pytest.raises(SlideError, match="more than 29 image directories"):
        open_slide(path, MPP)
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**60))
    with pytest.raises(SlideError, match="more than 4096 tags"):
        open_slide(path, MPP)


def test_what_hangs_or_aborts_the_process_is_refused(tmp_path):
    """In a process of its own. OpenSlide opens a tile of a million px a side and ends
    the process when it is read; a pipe is waited for; directories in a circle without
    end, also beside a slide of several files; a device has no end."""
    million = 10**6, 10**6
    write_directories(tmp_path / "circle", (256, 256), (256, 256), [1, 2, 0])
    write_directories(tmp_path / "huge", million, (256, 256), [None])
    write_directories(tmp_path / "tile", (1000, 1000), million, [None])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    for folder in ("dicom", "mirax"):
        (tmp_path / folder).mkdir()
        os.mkfifo(tmp_path / folder / "Slidedat.ini")
    (tmp_path / "dicom/slide").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "mirax.mrxs").write_bytes(b"")
    messages = {
        "dicom/slide": "dicom/Slidedat.ini, one of its files, is no file; remove it",
        "mirax.mrxs": "mirax/Slidedat.ini, one of its files, is no file",
        "circle": "directories go in a circle",
        "huge": "1000000 x 1000000 px; the limit is 500000 px a side",
        "tile": "tiles of 1000000 x 1000000 px; the limit is 67108864 px a tile",
        "pipe": "it is a named pipe, not a file; mend the manifest's path",
        "folder": "it is a folder, not a file",
        "device": "it is a device, not a file",
        "socket": "it is a socket, not a file",
    }
    program = f"""
import pathlib
from wsi_jax.slides.slide import SlideError, open_slide
for name in {tuple(messages)!r}:
    try:
        open_slide(pathlib.Path({str(tmp_path)!r}) / name, 0.5).overview(8.0)
    except SlideError as error:
        print(error)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    lines = ended.stdout.splitlines()
    assert len(lines) == len(messages), ended.stderr
    for line, (name, message) in zip(lines, messages.items(), strict=True):
        assert f"/{name} cannot be opened as a slide" in line
        assert message in line


def test_sizes_are_refused_by_whoever_gives_them(tmp_path):
    """A tile by OpenSlide's size, whatever the format; a whole slide by its overview;
    a read by memory. The slide is as good as before."""
    tile, size = (10**4, 10**4), (4 * 10**5, 4 * 10**5)
    path = write_directories(tmp_path / "tile.tif", (1000, 1000), tile, [None])
    with pytest.raises(ValueError, match="tiles of 10000 x 10000 px; the limit"):
        OpenSlideReader(str(path))
    path = write_directories(tmp_path / "wide.tif", size, (256, 256), [None])
    with pytest.raises(SlideError, match=r"wide: .* 400000 x 400000 px; the limit is"):
        open_slide(path, 8.0).overview(8.0)
    slide = open_slide(write_tiff(tmp_path / "a.tif", [picture(80, 90)]))
    message = r"a: cannot be read \(.*MemoryError: .*a\.tif"
    with pytest.raises(SlideError, match=message):
        slide.read((0, 0), 10**6, MPP)
    assert slide.read((0, 0), 64, MPP).std() > 1


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((80, 90, 3), np.uint16, {}, "16 bits a channel, not 8"),
        ((80, 90), np.uint16, {"photometric": "minisblack"}, "16 bits a channel"),
        ((80, 90), np.float32, {"photometric": "minisblack"}, "32 bits a channel"),
        ((80, 90), bool, {"photometric": "minisblack"}, "1 bits a channel"),
        ((80, 90, 2), np.uint8, {"photometric": "minisblack"}, "2 channels"),
        ((80, 90, 5), np.uint8, {}, "5 channels"),
    ],
)
def test_what_is_no_8_bit_colour_is_refused_in_every_layout(
    tmp_path, shape, dtype, options, message, tile
):
    path = tmp_path / "odd.tif"
    pixels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    channels = {"planarconfig": "contig"} if pixels.ndim == 3 and shape[0] > 9 else {}
    options = {"metadata": None, "photometric": "rgb"} | channels | options
    tifffile.imwrite(path, pixels, tile=tile, **options)
    with pytest.raises(SlideError, match=rf"odd\.tif cannot .*{message}"):
        open_reader(str(path))


def test_flat_images_too_deep_or_too_large_are_refused(tmp_path, monkeypatch):
    """Of a PNG of 16 bits Pillow shows the upper half of each channel."""
    pixels = np.random.default_rng(0).integers(0, 4096, (60, 70, 3), np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(imagecodecs.png_encode(pixels))
    with Image.open(path) as image:
        assert image.mode == "RGB"
    with pytest.raises(SlideError, match="16 bits a channel, not 8"):
        open_slide(path, MPP)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (60, 70)).save(tmp_path / "bomb.png")
    with pytest.raises(SlideError, match=r"bomb\.png .*convert it to a tiled.*exceeds"):
        open_slide(tmp_path / "bomb.png", MPP)


def write_with_macro(path, image, macro, kind=1, tile=(64, 64)):
    """A pyramid of two levels and, stored as a level, a macro image."""
    with tifffile.TiffWriter(path) as tiff:
        for what, one in ((0, image), (1, halved(image)), (kind, macro)):
            tiff.write(
                one, tile=tile, subfiletype=what, photometric="rgb", metadata=None,
                resolution=(1e4 / MPP,) * 2, resolutionunit=3,
            )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("shape", "kind"), [((140, 84), 1), ((120, 40), 9), ((75, 90), 9)]
)
def test_a_label_or_macro_is_no_level(tmp_path, shape, kind):
    """Known by its proportions, or by what the file says of it."""
    image, macro = picture(300, 360), np.full((*shape, 3), (40, 90, 200), np.uint8)
    slide = open_slide(write_with_macro(tmp_path / "a.tif", image, macro, kind))
    assert [level.shape for level in slide.levels] == [(300, 360), (150, 180)]
    expected = Image.fromarray(halved(image)).reduce(2)
    read = slide.read((0, 0), (75, 90), 4 * MPP).astype(int)
    assert np.abs(read - np.asarray(expected)).mean() < 8
    assert not (read == (40, 90, 200)).all(-1).any()


def test_a_macro_wider_than_the_slide_is_not_the_slide(tmp_path):
    """OpenSlide takes the widest image for level 0; the slide itself is read then."""
    image, macro = picture(300, 360), np.full((100, 640, 3), (40, 90, 200), np.uint8)
    path = write_with_macro(tmp_path / "a.tif", image, macro)
    with pytest.raises(ValueError, match="widest image is a reduced one"):
        OpenSlideReader(str(path))
    reader = open_reader(str(path))
    assert isinstance(reader, TiffReader)
    np.testing.assert_array_equal(reader.read_region(0, 0, 0, 300, 360), image)
    reader.close()


def test_levels_filled_up_to_whole_tiles_keep_their_scale(tmp_path):
    """As in CAMELYON16: 300 x 520 px halved thrice, each in whole tiles of 64."""
    image = picture(300, 520)
    levels, one = [image], image
    for _ in range(3):
        one = halved(one)
        h, w = (-n % 64 for n in one.shape[:2])
        levels.append(np.pad(one, [(0, h), (0, w), (0, 0)], constant_values=255))
    slide = open_slide(write_tiff(tmp_path / "a.tif", levels))
    assert [level.shape for level in slide.levels] == [
        (300, 520), (150, 260), (75, 130), (38, 65)
    ]  # fmt: skip
    assert [level.mpp / MPP for level in slide.levels] == [1, 2, 4, 8]
    read = slide.read((10, 20), 30, 2 * MPP)
    np.testing.assert_array_equal(read, levels[1][10:40, 20:50])


@pytest.mark.parametrize("compression", ["APERIO_JP2000_RGB", "APERIO_JP2000_YCBC"])
def test_reads_agree_where_a_step_is_not_whole(tmp_path, compression):
    """JPEG 2000 is OpenSlide's to read, and 4002 px over 2000 are no step of two: it
    moves what it returns by a part of a pixel, another for every corner."""
    grain = np.random.default_rng(0).integers(0, 256, (128, 4002, 3), np.uint8)
    small = np.random.default_rng(1).integers(0, 256, (64, 2000, 3), np.uint8)
    path = tmp_path / "jp2k.tif"
    options = {
        "compression": compression,
        "description": "Aperio |AppMag = 20|MPP = 0.5",
    }
    write_tiff(path, [grain, small], tile=(128, 128), **options)
    slide = open_slide(path)
    assert slide.levels[1].mpp == pytest.approx(0.5 * 2.0005)
    for mpp in (1.0, slide.levels[1].mpp):
        whole = slide.read((0, 0), (64, 1999), mpp).astype(int)
        for x in (0, 1, 301, 999, 1000, 1001, 1502, 1903):
            part = slide.read((9, x), (50, 90), mpp)
            assert np.abs(part - whole[9:59, x : x + 90]).max() <= 1
