"""The order in which tiles are computed: in batches whose tiles do not need each other.

A tile needs the one above it and the one on its left. Tiles of an anti-diagonal are
independent, and so are those of other slides: they make a batch.
"""

import heapq

import numpy as np
from jaxtyping import Bool, Int


def tile_batches(
    computed: Bool[np.ndarray, "rows columns"], size: int
) -> list[Int[np.ndarray, "n 2"]]:
    """Batches of at most `size` tiles, each after those that it needs.

    A tile follows the last computed tile of its row and of its column, neighbours or
    not, so that one buffer for each row and one for each column suffice. Of the tiles
    that could be next, those with the longest way before them come first: that keeps
    batches full.

    Returns:
        For each batch (row, column) of its tiles.
    """
    needs, follows = _neighbours(computed)
    left = _steps_left(follows)
    ready = [(-left[tile], tile) for tile, count in needs.items() if not count]
    heapq.heapify(ready)
    batches = []
    while ready:
        batch = [heapq.heappop(ready)[1] for _ in range(min(size, len(ready)))]
        for tile in batch:
            for after in follows[tile]:
                needs[after] -= 1
                if not needs[after]:
                    heapq.heappush(ready, (-left[after], after))
        batches.append(np.array(batch))
    return batches


def _neighbours(computed):
    """How many tiles each tile needs, and which need it; by (row, column)."""
    tiles = [(int(r), int(c)) for r, c in np.argwhere(computed)]
    needs, follows = dict.fromkeys(tiles, 0), {tile: [] for tile in tiles}
    row_end, column_end = {}, {}
    for r, c in tiles:
        for end, line in ((row_end, r), (column_end, c)):
            if line in end:
                follows[end[line]].append((r, c))
                needs[r, c] += 1
            end[line] = r, c
    return needs, follows


def _steps_left(follows):
    """Tiles on the longest way from each tile to the last that needs it."""
    left = {}
    for tile in sorted(follows, reverse=True):  # those that follow a tile come after it
        left[tile] = 1 + max((left[after] for after in follows[tile]), default=0)
    return left
