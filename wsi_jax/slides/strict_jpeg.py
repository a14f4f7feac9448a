"""JPEG decoded strictly: what libjpeg only warns of is an error.

Of data that end early, go on too long or make no sense libjpeg takes grey, counts a
warning and goes on. imagecodecs and Pillow hide the warnings; simplejpeg raises them.
"""

import numpy as np
import simplejpeg
from jaxtyping import UInt8

_START = b"\xff\xd8"
_SCAN, _JFIF, _ADOBE = 0xDA, 0xE0, 0xEE
# Adobe's marker ends with how the colours were transformed; a grey JPEG has none.
_COLOURS = {
    colours: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes((transform,))
    for colours, transform in (("RGB", 0), ("YCBCR", 1))
}


def header(tables: bytes | None, colours: str) -> bytes:
    """The bytes that every tile of a TIFF page begins with: its JPEGTables, if any.

    `colours`, "RGB", "YCBCR" or "GRAYSCALE", wins over the markers of the tiles:
    Aperio's RGB has none.
    """
    return (tables or _START)[: -2 if tables else None] + _COLOURS.get(colours, b"")


def decode(
    data: bytes, head: bytes, rows: int, out: UInt8[np.ndarray, "h w 3"]
) -> None:
    """Writes the pixels of a JPEG, behind the bytes of `header`, to `out`, contiguous.

    It has `rows` at least; fewer than `out` leave the others as they are. ValueError:
    it is damaged or has another size.
    """
    pixels = simplejpeg.decode_jpeg(head + _body(data), "RGB", buffer=out)
    h, w = pixels.shape[:2]
    if w != out.shape[1] or h < rows:
        raise ValueError(f"a JPEG of {h} x {w} px where {rows} x {out.shape[1]} belong")


def check(data: bytes, tables: bytes | None = None) -> None:
    """Raises ValueError if a JPEG of any colours is damaged."""
    whole = header(tables, "") + data[2:]
    four = simplejpeg.decode_jpeg_header(whole)[2] in ("CMYK", "YCCK")
    simplejpeg.decode_jpeg(whole, "CMYK" if four else "GRAY")


def _body(data):
    """A JPEG after its first marker, without those that name its colours."""
    if data[:2] != _START:
        raise ValueError("no JPEG")
    parts, at = [], 2
    while (marker := data[at + 1]) != _SCAN:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker not in (_JFIF, _ADOBE):
            parts.append(data[at:end])
        at = end
    return b"".join(parts) + data[at:]
