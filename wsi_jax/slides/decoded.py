"""Decoded tiles of all open files, in a bounded number of bytes.

A grid of tiles off the file's own grid touches each of the file's tiles up to four
times, and the children of a region lie on the tiles of the region: kept for a while,
each is decoded once.
"""

import collections
import os
import threading
from collections.abc import Callable, Hashable

import numpy as np
from jaxtyping import UInt8

# Two rows of 256 px tiles across 80,000 px.
LIMIT_BYTES = 128 * 2**20


class DecodedTiles:
    """The tiles used last. Of threads that want one, the first decodes, others wait.

    Args:
        limit_bytes: of pixels kept; a tile on its own may be larger.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._tiles = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, owner: Hashable, index: int, decode: Callable[[int], np.ndarray]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Tile `index` of `owner`, decoded unless it is kept. Not to be written to."""
        key = owner, index
        with self._lock:
            tile = self._tiles.get(key)
            if tile is None:
                tile = self._tiles[key] = _Tile()
            self._tiles.move_to_end(key)
        if tile.pixels is None:
            with tile.decoding:
                if tile.pixels is None:
                    tile.pixels = decode(index)
                    self._kept(key, tile)
        return tile.pixels

    def _kept(self, key, tile):
        with self._lock:
            if self._tiles.get(key) is not tile:  # dropped while it was decoded
                return
            tile.counted = True
            self.bytes += tile.pixels.nbytes
            while self.bytes > self.limit_bytes and len(self._tiles) > 1:
                self._forget(next(iter(self._tiles)))

    def _forget(self, key):
        tile = self._tiles.pop(key)
        if tile.counted:
            self.bytes -= tile.pixels.nbytes

    def drop(self, owner: Hashable) -> None:
        """Forgets the tiles of an owner."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] is owner]:
                self._forget(key)


class _Tile:
    __slots__ = ("counted", "decoding", "pixels")

    def __init__(self):
        self.pixels, self.counted, self.decoding = None, False, threading.Lock()


tiles = DecodedTiles(LIMIT_BYTES)

if hasattr(os, "register_at_fork"):
    # A child must not wait for threads that only its parent has.
    os.register_at_fork(after_in_child=lambda: tiles.__init__(LIMIT_BYTES))
