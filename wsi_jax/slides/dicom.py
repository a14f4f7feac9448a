"""The series of a DICOM file, read from its head alone.

A whole slide is one series (DICOM PS3.3, A.32.8): a file for each of its levels, and
more for label and overview. The header is walked as PS3.5, section 7 lays it out.
"""

import os
import struct

HEAD_BYTES = 1 << 18  # the series stands before pictures, profiles and annotations
_SYNTAX, _SERIES = 0x00020010, 0x0020000E
_ITEM_END, _SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT = "1.2.840.10008.1.2"
# Value representations whose length takes four bytes.
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV"} | {
    b"UC", b"UN", b"UR", b"UT", b"UV"
}  # fmt: skip


def series_uid(path: str | os.PathLike) -> str:
    """The SeriesInstanceUID of a file; "" where it has none, or is no DICOM file."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
        return _series(head) if head[128:132] == b"DICM" else ""
    except (OSError, struct.error, RecursionError):
        return ""


def _series(head):
    at, explicit = 132, True
    while True:
        (group,) = struct.unpack_from("<H", head, at)
        # The first group is always explicit; what follows is as its syntax says.
        tag, kind, start, length = _element(head, at, explicit or group == 2)
        value = head[start : start + length].decode("ascii", "replace").strip("\0 ")
        if tag == _SYNTAX:
            explicit = value != _IMPLICIT
        if tag >= _SERIES:
            return value if tag == _SERIES else ""
        at = _end(head, start, kind, length, explicit)


def _element(head, at, explicit):
    """(tag, value representation, start of the value, its length)."""
    group, element = struct.unpack_from("<HH", head, at)
    tag = group << 16 | element
    if not explicit or group == 0xFFFE:
        return tag, b"", at + 8, *struct.unpack_from("<I", head, at + 4)
    kind = head[at + 4 : at + 6]
    if kind in _LONG:
        return tag, kind, at + 12, *struct.unpack_from("<I", head, at + 8)
    return tag, kind, at + 8, *struct.unpack_from("<H", head, at + 6)


def _end(head, start, kind, length, explicit):
    """Where a value ends; one of undefined length ends behind its last item."""
    if length != _UNDEFINED:
        return start + length
    explicit = explicit and kind != b"UN"
    while True:
        tag, kind, start, length = _element(head, start, explicit)
        if tag in (_ITEM_END, _SEQUENCE_END):
            return start
        start = _end(head, start, kind, length, explicit)
