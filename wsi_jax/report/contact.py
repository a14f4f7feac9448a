"""A contact sheet: every slide, small, with the outline of what was taken as tissue."""

import bisect
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from wsi_jax.files import replacing

SIDE_PX = 180
PER_PAGE = 100
COLUMNS = 10
_GAP, _LINE, _HEAD = 12, 15, 40
_INK, _SOFT, _BAD, _EDGE = "#1d2330", "#5b6472", "#b83a00", (0, 158, 115)


class Picture(NamedTuple):
    """A slide that fits into a square of `SIDE_PX`, and its tissue.

    Attributes:
        image: uint8 [h w 3].
        tissue: bool [h w].
    """

    image: np.ndarray
    tissue: np.ndarray


class Contact(NamedTuple):
    """One slide of the sheet.

    Attributes:
        name: of the slide.
        picture: None where the slide could not be read.
        told: about it, in a few words.
        reason: why it is refused, or "".
    """

    name: str
    picture: Picture | None
    told: str
    reason: str


def shrink(overview: np.ndarray, tissue: np.ndarray) -> Picture:
    """A picture small enough that those of a whole cohort fit into memory.

    Args:
        overview: uint8 [h w 3].
        tissue: bool [h w].
    """
    h, w = tissue.shape
    scale = SIDE_PX / max(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    box = Image.Resampling.BOX
    small = Image.fromarray(tissue.astype(np.uint8) * 255).resize(size, box)
    image = Image.fromarray(overview).resize(size, box)
    return Picture(np.asarray(image), np.asarray(small) > 127)


def contact_sheet(
    slides: Sequence[Contact], path: str | os.PathLike, per_page: int = PER_PAGE
) -> list[pathlib.Path]:
    """Writes PNGs of all slides, the refused ones first, `per_page` a page.

    Args:
        slides: at least one.
        path: of the first page; those after it are called path_2, path_3, ...
        per_page: slides.

    Returns:
        The pages' paths.
    """
    path = pathlib.Path(path)
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
    draw.text((_GAP, 10), f"Tissue: {head}", _INK, _font(16))
    for i, one in enumerate(slides):
        row, column = divmod(i, columns)
        _cell(sheet, draw, _GAP + column * cell_w, _HEAD + row * cell_h, one)
    return sheet


def _cell(sheet, draw, x, y, one):
    if one.picture is None:
        draw.rectangle((x, y, x + SIDE_PX - 1, y + SIDE_PX - 1), "#eceef1")
        draw.text((x + 8, y + 8), "no picture", _SOFT, _font(11))
    else:
        outlined = Image.fromarray(_outlined(one.picture))
        left = x + (SIDE_PX - outlined.width) // 2
        sheet.paste(outlined, (left, y + SIDE_PX - outlined.height))
    if one.reason:
        frame = (x - 3, y - 3, x + SIDE_PX + 2, y + SIDE_PX + 2)
        draw.rectangle(frame, outline=_BAD, width=3)
    lines = [(line, _INK) for line in _wrap(one.name, 1)]
    if one.reason:
        # The name stands above; what is left has more room.
        reason = one.reason.removeprefix(f"{one.name}: ")
        lines += [(line, _BAD) for line in _wrap(reason, 3)]
    else:
        lines += [(line, _SOFT) for line in _wrap(one.told, 3)]
    for i, (line, colour) in enumerate(lines):
        draw.text((x, y + SIDE_PX + 4 + i * _LINE), line, colour, _font(11))


def _outlined(picture) -> np.ndarray:
    """The picture with an edge two pixels wide, just outside the tissue."""
    edge = ndimage.binary_dilation(picture.tissue, iterations=2) & ~picture.tissue
    # A slide that is all tissue has its edge along the border.
    whole = np.zeros_like(picture.tissue)
    whole[[0, 1, -2, -1]] = whole[:, [0, 1, -2, -1]] = True
    edge |= whole & picture.tissue
    return np.where(edge[..., None], np.uint8(_EDGE), picture.image)


def _wrap(text, most) -> list[str]:
    """At most so many lines that fit into a cell; what is cut off ends in dots."""
    text, lines = " ".join(text.split()), []
    while text and len(lines) < most:
        n = _fitting(text, "")
        if n < len(text) and len(lines) == most - 1:
            return [*lines, text[: _fitting(text, "…")] + "…"]
        if n < len(text) and " " in text[:n]:
            n = text.rindex(" ", 0, n)
        lines.append(text[:n])
        text = text[n:].lstrip()
    return lines


def _fitting(text, end) -> int:
    """How many letters fit into a cell, with `end` behind them."""
    most = min(len(text), SIDE_PX // 2)  # no letter is narrower than two pixels
    fits = lambda n: _font(11).getlength(text[:n] + end) <= SIDE_PX
    return bisect.bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


@functools.cache
def _font(size):
    """The font that comes with matplotlib: it has letters beyond English."""
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)
