"""A contact sheet: every slide, small, with the outline of what was taken as tissue."""

import functools
import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from wsi_jax.files import AnyPath, any_path, replacing

SIDE_PX = 180
PER_PAGE = 100
COLUMNS = 10
LETTERS = 27  # of the small font, side by side in SIDE_PX
_GAP, _LINE, _HEAD = 12, 15, 40
_INK, _SOFT, _BAD, _EDGE = "#1d2330", "#5b6472", "#b83a00", (0, 158, 115)


class Picture(NamedTuple):
    """A slide that fits into a square of `SIDE_PX`, and its tissue."""

    image: np.ndarray  # uint8 [h w 3]
    tissue: np.ndarray  # bool [h w]


class Contact(NamedTuple):
    """One slide of the sheet."""

    name: str
    picture: Picture | None  # None where the slide could not be read
    summary: str  # tiles, tissue and resolution, in a few words
    reason: str  # why the slide is refused, or ""


def shrink(overview: np.ndarray, tissue: np.ndarray) -> Picture:
    """A picture small enough that those of a whole cohort fit into memory."""
    h, w = tissue.shape
    scale = SIDE_PX / max(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    box = Image.Resampling.BOX
    small = Image.fromarray(tissue.astype(np.uint8) * 255).resize(size, box)
    image = Image.fromarray(overview).resize(size, box)
    return Picture(np.asarray(image), np.asarray(small) > 127)


def contact_sheet(
    slides: Sequence[Contact], path: str | os.PathLike, per_page: int = PER_PAGE
) -> list[AnyPath]:
    """Writes PNGs of all slides, at least one, refused ones first; returns their paths.

    `path` is the first page; those after it are called path_2, path_3, ...
    """
    path = any_path(path)
    order = sorted(slides, key=lambda one: not one.reason)
    pages = [order[i : i + per_page] for i in range(0, len(order), per_page)]
    refused = sum(bool(one.reason) for one in slides)
    paths = []
    for number, page in enumerate(pages, 1):
        head = f"{len(slides)} slides, {refused} refused" + " (first)" * bool(refused)
        head += f", page {number} of {len(pages)}" * (len(pages) > 1)
        beside = path.with_stem(f"{path.stem}_{number}") if number > 1 else path
        with replacing(beside) as temporary:
            _page(page, head).save(temporary, format="png")
        paths.append(beside)
    return paths


def _page(slides, head) -> Image.Image:
    columns = min(COLUMNS, max(4, len(slides)))
    cell_w, cell_h = SIDE_PX + _GAP, SIDE_PX + 4 * _LINE + _GAP
    size = columns * cell_w + _GAP, -(-len(slides) // columns) * cell_h + _HEAD
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 10), f"Tissue: {head}", _INK, _font("DejaVuSans", 16))
    for i, one in enumerate(slides):
        row, column = divmod(i, columns)
        _cell(sheet, draw, _GAP + column * cell_w, _HEAD + row * cell_h, one)
    return sheet


def _cell(sheet, draw, x, y, one):
    font = _font("DejaVuSansMono", 11)
    if one.picture is None:
        draw.rectangle((x, y, x + SIDE_PX - 1, y + SIDE_PX - 1), "#eceef1")
        draw.text((x + 8, y + 8), "no picture", _SOFT, font)
    else:
        outlined = Image.fromarray(_outlined(one.picture))
        left = x + (SIDE_PX - outlined.width) // 2
        sheet.paste(outlined, (left, y + SIDE_PX - outlined.height))
    if one.reason:
        frame = (x - 3, y - 3, x + SIDE_PX + 2, y + SIDE_PX + 2)
        draw.rectangle(frame, outline=_BAD, width=3)
    # The name stands above the reason; what is left has more room.
    text = one.reason.removeprefix(f"{one.name}: ") or one.summary
    lines = [(line, _INK) for line in _wrap(one.name, 1)]
    lines += [(line, _BAD if one.reason else _SOFT) for line in _wrap(text, 3)]
    for i, (line, colour) in enumerate(lines):
        draw.text((x, y + SIDE_PX + 4 + i * _LINE), line, colour, font)


def _outlined(picture) -> np.ndarray:
    """The picture with an edge two pixels wide, just outside the tissue."""
    edge = ndimage.binary_dilation(picture.tissue, iterations=2) & ~picture.tissue
    # A slide that is all tissue has its edge along the border.
    whole = np.zeros_like(picture.tissue)
    whole[[0, 1, -2, -1]] = whole[:, [0, 1, -2, -1]] = True
    edge |= whole & picture.tissue
    return np.where(edge[..., None], np.uint8(_EDGE), picture.image)


def _wrap(text: str, lines: int) -> list[str]:
    """At most so many lines that fit into a cell; what is cut off ends in dots."""
    cut = textwrap.wrap(text, LETTERS, break_on_hyphens=False)
    if len(cut) > lines:
        cut = [*cut[: lines - 1], cut[lines - 1][: LETTERS - 1] + "…"]
    return cut


@functools.cache
def _font(name: str, size: int):
    """A font that comes with matplotlib: it has letters beyond English."""
    import matplotlib  # here, as configs are read without it

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"{name}.ttf", size)
