"""Finds the images of a file that are levels of one pyramid, and their downsamples."""

import math
from collections.abc import Sequence

# The sides of a level may disagree by so much, or by one of its pixels.
_SLACK = 0.02
_STEPS = tuple(2**k for k in range(1, 16))


def pyramid_levels(
    shapes: Sequence[tuple[int, int]], tiles: Sequence[tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """{index: (h, w)} of the images that show what the first one, the finest, shows.

    A label or macro beside a slide, stored in tiles (h, w) like a level, is recognised
    by its proportions. Philips' levels, and those of CAMELYON16 that were made of them,
    are filled up to whole tiles: there (h, w) is what the slide covers.
    """
    full, levels, padded = shapes[0], {}, False
    for index, (shape, tile) in enumerate(zip(shapes, tiles, strict=True)):
        covered = _without_padding(full, shape, tile)
        if len(covered) == 1:
            (levels[index],) = covered
            padded |= covered != [shape]
        # Of one tile more than one step may be right.
        elif _agrees(full, shape) and not (padded and covered):
            levels[index] = shape
    return levels


def _agrees(full, shape):
    """Whether one step leads from the size of level 0 to that of a level."""
    long, short = (0, 1) if full[0] >= full[1] else (1, 0)
    expected = full[short] * shape[long] / full[long]
    return abs(expected - shape[short]) <= max(1, _SLACK * shape[short])


def _without_padding(full, shape, tile):
    """(h, w) that a level may cover which was filled up to whole tiles."""
    if not all(tile) or any(n % t for n, t in zip(shape, tile, strict=True)):
        return []
    covered = [tuple(math.ceil(n / step) for n in full) for step in _STEPS]
    fill = lambda one: tuple(-(-n // t) * t for n, t in zip(one, tile, strict=True))
    return [one for one in covered if fill(one) == tuple(shape)]


def downsample(full, shape):
    """Level-0 pixels per pixel of a level, from the two sizes.

    Writers round the size of a level, not the step: 2967 rows halved thrice are 370,
    and the downsample is 8, not 8.02. A power of two, else a whole number, is believed
    where the sizes allow it.
    """
    ratio = sum(n / m for n, m in zip(full, shape, strict=True)) / 2
    power = 2 ** round(math.log2(ratio))
    candidates = ([power] if abs(ratio / power - 1) < 0.05 else []) + [round(ratio)]
    for step in candidates:
        if all(abs(n - m * step) < step for n, m in zip(full, shape, strict=True)):
            return float(step)
    return ratio
