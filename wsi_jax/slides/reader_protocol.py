"""The protocol that every reader of slides implements: stored pixels by level.

A reader of another format, or of remote files, is a class with these members;
`open_slide(path, open_reader=ThatClass)` uses it, and one more line in
`open_reader.READERS` makes it a format of the library.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

WHITE = (255, 255, 255)


class SlideError(ValueError):
    """A slide that cannot be used; the message names it and what would mend it."""


@runtime_checkable
class Reader(Protocol):
    """One open file. Reads integer rectangles of stored levels as RGB, in any thread.

    Of its properties um/px of level 0 stands under OpenSlide's names: `openslide.mpp-x`
    and `-y`, or `tiff.XResolution`, `tiff.YResolution` and `tiff.ResolutionUnit`, or an
    OME-XML in `tiff.ImageDescription`.
    """

    level_shapes: tuple[tuple[int, int], ...]  # (h, w) of each level, finest first
    background: tuple[int, int, int]  # colour of pixels that were never scanned
    properties: Mapping[str, str]  # raw metadata

    def read_region(
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels [y, y + h) x [x, x + w) of `level`, all inside it.

        They may, but need not, be written to `out` [h w 3], which is then returned.
        Raises whatever its decoder raises.
        """
        ...

    def read_regions(
        self,
        level: int,
        corners: Sequence[Sequence[int]],
        outs: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> None:
        """Writes the rectangles at `corners` (y, x), each as `read_region` reads it.

        To override where neighbours are read faster together.
        """
        for (y, x), out in zip(corners, outs, strict=True):
            out[:] = self.read_region(level, y, x, *out.shape[:2], out)

    def close(self) -> None:
        """Closes the file; no read follows."""
        ...


def is_url(path: str) -> bool:
    """Whether a slide's path is a URL, not the name of a local file."""
    return "://" in path


def flatten(image: Image.Image, background: tuple) -> UInt8[np.ndarray, "h w 3"]:
    """A Pillow RGBA image laid over `background`."""
    if np.asarray(image)[..., 3].min() < 255:
        over = Image.new("RGB", image.size, background)
        over.paste(image, mask=image.getchannel("A"))
        return np.array(over)
    return np.array(image.convert("RGB"))
