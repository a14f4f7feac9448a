"""Where the tiles of a practice slide come from: drawn, or a folder of real ones."""

import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from experiments.phantoms import artefacts, textures
from experiments.tile_clusters import COLUMNS, INDEX, misshapen, read_tile, split_of
from wsi_jax.data.csv_table import read_table


class SourceError(ValueError):
    """A folder of tiles that cannot serve; the message says why and the mend."""


class Tiles(NamedTuple):
    """Square tiles of one size, and the clusters that they are from, each once."""

    pixels: UInt8[np.ndarray, "n s s 3"]
    clusters: tuple[str, ...]


class Textures:
    """Drawn tiles. A cluster is one style, and a draw is of one style.

    Args:
        mpp: micrometres per pixel.
        styles: number of styles of each kind, over all parts.
        size_px: side of a tile.
        variants: tiles of one style, which fit side by side without a seam.
    """

    def __init__(self, mpp: float, styles: int, size_px: int = 256, variants: int = 3):
        self.mpp = mpp
        self.kinds = tuple(kind.value for kind in textures.Kind)
        self._styles = styles
        # Drawn when first wanted: a slide wants some five.
        self._draw = functools.lru_cache(maxsize=256)(
            lambda kind, style: textures.draw(kind, style, variants, size_px, mpp)
        )
        self._of = functools.cache(
            lambda kind, part: [
                style for style in range(styles) if split_of(f"{kind}:{style}") == part
            ]
        )

    def draw(self, kind: str, part: str, n: int, rng: np.random.Generator) -> Tiles:
        """Draws up to n tiles of one style."""
        mine = self._of(kind, part)
        if not mine:
            raise SourceError(
                f"none of {self._styles} styles of {kind!r} falls to {part!r}; raise "
                "--config.styles"
            )
        style = int(rng.choice(mine))
        return Tiles(self._draw(textures.Kind(kind), style)[:n], (f"{kind}:{style}",))


class Folder:
    """A folder of real tiles with an `index.csv`: columns file, class, cluster.

    Args:
        path: the folder; files are named relative to it.
        kinds: classes to use, the normal tissue first.
        mpp: micrometres per pixel of the tiles.

    Raises:
        SourceError: no index, or a class without tiles.
        CohortError: an index that is no table, or lacks a column or a cell.
    """

    def __init__(
        self, path: str | os.PathLike, kinds: tuple[str, ...], mpp: float = 1.0
    ):
        self.mpp, self.kinds = mpp, kinds
        self._path = pathlib.Path(path)
        index = self._path / INDEX
        if not index.is_file():
            raise SourceError(
                f"{index}: no such file; it lists the tiles: {','.join(COLUMNS)}"
            )
        rows = [cells for _, cells in read_table(index, COLUMNS)[1]]
        self._rows = {}
        for kind in kinds:
            self._rows[kind] = [row for row in rows if row["class"] == kind]
            if not self._rows[kind]:
                classes = sorted({row["class"] for row in rows})
                raise SourceError(
                    f"{index}: no tile of class {kind!r}, but of {classes}; mend kinds"
                )
        self._read = functools.lru_cache(maxsize=4096)(self._read_file)

    def draw(self, kind: str, part: str, n: int, rng: np.random.Generator) -> Tiles:
        """Draws up to n different tiles, each turned and flipped at random.

        Raises:
            SourceError: none of the part, or naming a tile that cannot be used.
        """
        rows = [row for row in self._rows[kind] if split_of(row["cluster"]) == part]
        if not rows:
            raise SourceError(
                f"{self._path}: no cluster of {kind!r} falls to {part!r}; add tiles"
            )
        chosen = [rows[i] for i in rng.permutation(len(rows))[:n]]
        pixels = [self._read(row["file"]) for row in chosen]
        for i, reason in misshapen(pixels):
            raise self._bad(chosen[i]["file"], reason)
        turned = [np.rot90(tile, rng.integers(4)) for tile in pixels]
        flipped = [tile[:, ::-1] if rng.integers(2) else tile for tile in turned]
        clusters = dict.fromkeys(row["cluster"] for row in chosen)
        return Tiles(np.stack(flipped), tuple(clusters))

    def _read_file(self, name):
        try:
            return read_tile(self._path / name)
        except Exception as error:  # decoders raise whatever they like on junk
            raise self._bad(name, f"cannot be read ({error})") from error

    def _bad(self, name, why):
        return SourceError(
            f"{self._path / name}: {why}; mend it, or take its line out of {INDEX}"
        )


# What practice slides are made of; `kinds` of tissue, the normal one first, at `mpp`.
TileSource = Textures | Folder


def mosaic(
    tiles: UInt8[np.ndarray, "n s s 3"],
    shape: tuple[int, int],
    rng: np.random.Generator,
    gains: Float32[np.ndarray, "3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Tiles side by side, drawn at random, from a random origin, in a slide's stain."""
    side = tiles.shape[1]
    down, across = (-(-length // side) + 1 for length in shape)
    chosen = rng.integers(len(tiles), size=(down, across))
    used, chosen = np.unique(chosen, return_inverse=True)
    pixels = artefacts.restain(tiles[used], gains)
    whole = pixels[chosen.reshape(down, across)].swapaxes(1, 2)
    whole = whole.reshape(down * side, across * side, 3)
    y, x = rng.integers(0, side, 2)
    return whole[y : y + shape[0], x : x + shape[1]].copy()
