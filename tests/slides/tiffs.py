"""Pictures, and TIFFs of them, that the tests of slides share."""

import imagecodecs
import numpy as np
import openslide
import tifffile
from PIL import Image

MPP = 0.25
PIXELS_PER_CM = 1e4 / MPP
JPEG = {"compression": "jpeg", "compressionargs": {"level": 85}}


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


def write_tiff(path, levels, resolution=(PIXELS_PER_CM,) * 2, unit=3, **options):
    options = {"tile": (64, 64), "photometric": "rgb"} | options
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            tiff.write(
                level,
                resolution=tuple(r / 2**i for r in resolution),
                resolutionunit=unit,
                subfiletype=int(i > 0),
                metadata=None,
                **options,
            )
    return path


def write_strips(path, image):
    return write_tiff(path, [image], tile=None, rowsperstrip=1)


def damage(path, index, byte=b"\x00"):
    """Overwrites the beginning of a tile of the first level."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[index]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(byte * 64)


def by_openslide(path, level, y, x, h, w):
    """What OpenSlide reads, its transparent pixels white."""
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
