"""Checks of a file before any library opens it: some would hang or abort."""

import os
import stat

from wsi_jax.slides import size_limits
from wsi_jax.slides.tiff_directories import Directory, read_directories

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_DICOM_AT = 128
# TIFF's photometric interpretations: samples of their colours.
_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}


def check_file(path: str | os.PathLike) -> None:
    """Raises ValueError for what is no slide, or none that can be read right."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:  # a pipe would be waited for
        raise ValueError(
            f"it is {_KINDS.get(kind, 'something else')}, not a file; mend the "
            "manifest's path column"
        )
    _check_companions(path)
    directories = read_directories(path)
    for one in directories:
        check_size(one.shape, one.tile)
    for one in directories[:1] + [one for one in directories if any(one.tile)]:
        _check_pixels(one)


def _check_companions(path):
    """OpenSlide opens what lies beside a DICOM or VMS, or in the folder of a MIRAX."""
    stem, extension = os.path.splitext(path)
    with open(path, "rb") as file:
        is_dicom = file.read(_DICOM_AT + 4)[_DICOM_AT:] == b"DICM"
    if not is_dicom and extension.lower() not in (".mrxs", ".vms", ".vmu"):
        return
    folder = stem if extension.lower() == ".mrxs" else os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for one in entries:
            there = os.path.exists(one.path)
            if there and not one.is_file() and not one.is_dir():
                raise ValueError(f"{one.path}, one of its files, is no file; remove it")


def check_size(shape: tuple[int, int], tile: tuple[int, int]) -> None:
    """Raises ValueError for a level or a tile, (h, w) in pixels, beyond the limits."""
    if max(shape) > size_limits.SIDE_PX:
        raise ValueError(
            f"it claims to be {shape[0]} x {shape[1]} px; the limit is "
            f"{size_limits.SIDE_PX} px a side"
        )
    if tile[0] * tile[1] > size_limits.TILE_PX:
        raise ValueError(
            f"it claims tiles of {tile[0]} x {tile[1]} px; the limit is "
            f"{size_limits.TILE_PX} px a tile"
        )


def _check_pixels(image: Directory):
    """Refuses what readers would cut: 16 bits to the upper 8, channels to the first."""
    if set(image.bits) != {8}:
        raise ValueError(f"{max(image.bits)} bits a channel, not 8")
    colours = _SAMPLES.get(image.photometric, image.samples)
    more = image.samples - colours
    opacity = more == 1 and (colours > 1 or image.extra in ((1,), (2,)))
    if more and not opacity:
        raise ValueError(f"{image.samples} channels, not colours")
