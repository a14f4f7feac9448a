"""A cache of decoded tiles for all open files, bounded in bytes.

A grid of tiles off the file's own grid touches each of the file's tiles up to four
times, and the children of a region lie on the tiles of the region: kept for a while,
each is decoded once.
"""

import collections
import contextlib
import math
import os
import threading
from collections.abc import Callable, Hashable, Iterator

import numpy as np
from jaxtyping import UInt8

# Two rows of 256 px tiles across 80,000 px.
LIMIT_BYTES = 128 * 2**20


class TileCache:
    """The tiles used last. Of threads that want one, the first decodes, others wait.

    Their memory, of `limit_bytes` at most but for those in use, is used again and not
    given back: to ask the system for fresh pages takes half as long as to decode.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._tiles = collections.OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def tile(
        self,
        owner: Hashable,
        index: int,
        shape: tuple[int, int, int],
        decode: Callable[[int, np.ndarray], None],
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yields the pixels of an owner's tile, read-only; decoded unless it is cached.

        `decode` (index, out) writes the pixels, of `shape` (h, w, 3).
        """
        with self._lock:
            tile = self._tiles.get((owner, index))
            if tile is None:
                tile = self._tiles[owner, index] = _Tile(self._memory(shape))
            else:
                self._tiles.move_to_end((owner, index))
            tile.users += 1
        try:
            if not tile.ready:
                with tile.decoding:
                    if not tile.ready:
                        decode(index, tile.pixels)
                        tile.ready = True
            yield tile.pixels
        finally:
            with self._lock:
                tile.users -= 1

    def copy(self, owner: Hashable, index: int, out: np.ndarray) -> bool:
        """Copies a tile to `out` if it is cached; returns whether it was."""
        with self._lock:
            tile = self._tiles.get((owner, index))
            if tile is None or not tile.ready:
                return False
            tile.users += 1
        out[:] = tile.pixels
        with self._lock:
            tile.users -= 1
        return True

    def _memory(self, shape):
        """Memory of the idle tile that was used longest ago, or new memory."""
        wanted = math.prod(shape)
        for key in [key for key, tile in self._tiles.items() if not tile.users]:
            if key[0] is not None and self.bytes + wanted <= self.limit_bytes:
                break
            pixels = self._tiles.pop(key).pixels
            if pixels.shape == shape and self.bytes <= self.limit_bytes:
                return pixels
            self.bytes -= pixels.nbytes
        self.bytes += wanted
        return off_aligned_buffer(shape)

    def drop(self, owner: Hashable) -> None:
        """Forgets the tiles of an owner; their memory is the first to be used again."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] is owner]:
                tile = self._tiles.pop(key)
                self._tiles[None, id(tile)] = tile
                self._tiles.move_to_end((None, id(tile)), last=False)


def off_aligned_buffer(shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """New memory at an odd multiple of 16 bytes. At multiples of 32, libjpeg-turbo
    writes past the processor's cache, and decoding takes half as long again."""
    size = math.prod(shape)
    memory = np.empty(size + 32, np.uint8)
    first = (16 - memory.ctypes.data) % 32
    return memory[first : first + size].reshape(shape)


class _Tile:
    __slots__ = ("decoding", "pixels", "ready", "users")

    def __init__(self, pixels):
        self.pixels, self.ready, self.users = pixels, False, 0
        self.decoding = threading.Lock()


tiles = TileCache(LIMIT_BYTES)

if hasattr(os, "register_at_fork"):
    # A child must not wait for threads that only its parent has.
    os.register_at_fork(after_in_child=lambda: tiles.__init__(LIMIT_BYTES))
