"""Pixels of a level stored in chunks: tiles, strips or blocks, each decoded whole."""

import numpy as np

from wsi_jax.slides import decoded_tile_cache


class ChunkedLevel:
    """Random access to one level whose chunks lie on a grid. Any thread.

    The level is of `shape` (h, w), its chunks of `step`; the last may be cut off.
    """

    def __init__(self, shape: tuple[int, int], step: tuple[int, int]):
        self._h, self._w = shape
        self._step = step
        self._columns = -(-self._w // step[1])

    def _decode(self, index: int, out: np.ndarray) -> None:
        """Writes the pixels of a chunk to `out` [h w 3]."""
        raise NotImplementedError

    def read(self, y, x, h, w, out=None):
        """Pixels [y, y + h) x [x, x + w). Raises ValueError for a missing chunk, and
        whatever a decoder raises."""
        if out is None:
            out = np.empty((h, w, 3), np.uint8)
        self.read_many([(y, x)], [out])
        return out

    def read_many(self, corners, outs):
        """Writes rectangles; decodes a chunk once for all of them."""
        parts, cached = {}, decoded_tile_cache.tiles
        for corner, out in zip(corners, outs, strict=True):
            for index, there, here in self._overlaps(*corner, *out.shape[:2]):
                parts.setdefault(index, []).append((there, out[here]))
        shape = *self._step, 3
        for index, pieces in parts.items():
            place = pieces[0][1]
            if len(pieces) == 1 and place.shape == shape and place.flags.c_contiguous:
                if not cached.copy(self, index, place):
                    self._decode(index, place)
                continue
            with cached.tile(self, index, shape, self._decode) as chunk:
                for there, place in pieces:
                    place[:] = chunk[there]

    def _overlaps(self, y, x, h, w):
        """(index, slices of the chunk, slices of the rectangle) for each chunk that
        a rectangle overlaps."""
        step_y, step_x = self._step
        for i in range(y // step_y, -(-(y + h) // step_y)):
            top = i * step_y - y
            y0, y1 = max(top, 0), min(top + step_y, h)
            for j in range(x // step_x, -(-(x + w) // step_x)):
                left = j * step_x - x
                x0, x1 = max(left, 0), min(left + step_x, w)
                there = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
                yield i * self._columns + j, there, (slice(y0, y1), slice(x0, x1))

    def close(self) -> None:
        """Forgets its decoded tiles."""
        decoded_tile_cache.tiles.drop(self)
