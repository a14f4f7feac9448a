"""Outlines for practice slides: pieces of tissue, and foci inside them.

All on the block grid: one cell is one box of the composite, so that what a mask
covers is always whole boxes.
"""

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from scipy import ndimage


def noise(
    rng: np.random.Generator, shape: tuple[int, int], scale: float
) -> Float32[np.ndarray, "h w"]:
    """Smooth Gaussian noise of unit variance, `scale` cells across."""
    # Drawn coarse and enlarged: smoothing a whole canvas of white noise is slow.
    zoom = max(int(scale / 4), 1)
    coarse = tuple(side // zoom + 8 for side in shape)
    field = ndimage.gaussian_filter(
        rng.normal(size=coarse), scale / 2 / zoom, mode="wrap"
    )
    field = Image.fromarray((field / field.std()).astype(np.float32))
    size = (coarse[1] * zoom, coarse[0] * zoom)
    fine = np.asarray(field.resize(size, Image.Resampling.BILINEAR))
    return fine[: shape[0], : shape[1]]


def tissue(
    rng: np.random.Generator, shape: tuple[int, int], pieces: int, fill: float
) -> Bool[np.ndarray, "h w"]:
    """Pieces of tissue with organic outlines, apart from one another and the edge.

    They lie side by side, from 4 `pieces` in two rows, and cover a share `fill` of the
    area, at most about .6.
    """
    rows = 1 if pieces < 4 else 2
    per_row = np.array_split(np.arange(pieces), rows)
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rough = noise(rng, shape, 14.0) * 0.05 + noise(rng, shape, 5.0) * 0.025
    score = np.full(shape, np.inf, np.float32)
    for row, members in enumerate(per_row):
        cell_h, cell_w = height / rows, width / len(members)
        for column in range(len(members)):
            centre = np.array([(row + 0.5) * cell_h, (column + 0.5) * cell_w])
            centre += rng.uniform(-0.05, 0.05, 2) * (cell_h, cell_w)
            half = np.array([cell_h, cell_w]) * rng.uniform(0.85, 1.0, 2) / 2
            dy, dx = (y - centre[0]) / half[0], (x - centre[1]) / half[1]
            angle = np.arctan2(dy, dx)
            outline = 1 + sum(
                rng.normal(0, 0.13 / order)
                * np.cos(order * angle + rng.uniform(0, 6.3))
                for order in (2, 3, 4, 5)
            )
            # A power above 2 fills the corners that ellipses leave.
            radius = (np.abs(dx) ** 2.6 + np.abs(dy) ** 2.6) ** (1 / 2.6)
            score = np.minimum(score, radius / outline)
    score += rough
    border = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    score[border < 3] = np.inf
    # Between pieces stays a gap, whatever the fill that is asked for.
    mask = score < min(np.quantile(score, fill), 0.93)
    return ndimage.binary_fill_holes(ndimage.binary_opening(mask, iterations=2))


def focus(
    rng: np.random.Generator, allowed: Bool[np.ndarray, "h w"], cells: int
) -> Bool[np.ndarray, "h w"]:
    """One focus of so many allowed cells, if there are, with an organic outline."""
    inside = ndimage.distance_transform_edt(np.pad(allowed, 1))[1:-1, 1:-1]
    # Away from the outline by the focus's own radius where there is such a place.
    deep = inside > min(np.sqrt(cells / np.pi), 0.8 * inside.max())
    at = np.argwhere(deep)
    mask = np.zeros_like(allowed)
    if not len(at):
        return mask
    y, x = at[rng.integers(len(at))]
    yy, xx = np.ogrid[: allowed.shape[0], : allowed.shape[1]]
    radius = np.sqrt(cells / np.pi)
    rough = noise(rng, allowed.shape, float(max(radius, 4))) * 0.15
    distance = np.hypot(yy - y, xx - x) * np.exp(rough)
    distance[~allowed] = np.inf
    order = np.argpartition(distance, min(cells, distance.size) - 1, axis=None)
    mask.flat[order[:cells]] = True
    return mask & allowed


def dominoes(
    rng: np.random.Generator, shape: tuple[int, int], block: int, gutter: int
) -> tuple[list[list[Bool[np.ndarray, "h w"]]], list[tuple[int, int]]]:
    """An even number of pairs of blocks, as masks, and the centre (y, x) of each pair.

    Blocks of a pair are one gutter apart, pairs half as much more, along either axis.

    Raises:
        ValueError: there is no room for two pairs.
    """
    long, short = 2 * block + gutter, block
    between = gutter + gutter // 2
    pitch_y, pitch_x = short + between, long + between
    down = (shape[0] - 4 + between) // pitch_y
    across = (shape[1] - 4 + between) // pitch_x
    sites = [(r, c) for r in range(down) for c in range(across)]
    if len(sites) < 2:
        raise ValueError(
            f"side_px is too small for two pairs of blocks: {shape} cells, a pair is "
            f"{pitch_y}x{pitch_x}; raise --config.side_px"
        )
    sites = [sites[i] for i in rng.permutation(len(sites))[: len(sites) // 2 * 2]]
    slack_y = shape[0] - 4 + between - down * pitch_y
    slack_x = shape[1] - 4 + between - across * pitch_x
    origin_y, origin_x = (
        2 + rng.integers(0, slack + 1) for slack in (slack_y, slack_x)
    )
    rough = noise(rng, shape, 6.0) * 0.08
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    pairs, centres = [], []
    for row, column in sites:
        top = origin_y + row * pitch_y
        left = origin_x + column * pitch_x
        pair = []
        for half in (0, 1):
            start = left + half * (block + gutter)
            dy = (y - top - (block - 1) / 2) / (block / 2)
            dx = (x - start - (block - 1) / 2) / (block / 2)
            radius = (np.abs(dx) ** 3.5 + np.abs(dy) ** 3.5) ** (1 / 3.5)
            square = np.maximum(np.abs(dx), np.abs(dy)) <= 1
            pair.append((radius + rough < 0.97) & square)
        pairs.append(pair)
        centres.append((int(top + block // 2), int(left + long // 2)))
    return pairs, centres
