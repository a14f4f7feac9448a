"""Slide ids from file names."""

import os

_EXTENSIONS = (
    *(".ome.tiff", ".ome.tif", ".tiff", ".tif", ".svs", ".ndpi", ".mrxs", ".dcm"),
    *(".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".zvi", ".isyntax"),
    *(".png", ".jpeg", ".jpg", ".bmp"),
)


def slide_id_of(path: str | os.PathLike) -> str:
    """The name of a file without a slide's extension.

    Other suffixes stay, for names hold dots (TCGA-...-DX1.d4ff32cd-....svs).
    """
    name = os.path.basename(os.fspath(path))
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name
