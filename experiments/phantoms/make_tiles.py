"""Makes a folder of synthetic labelled tiles, as practice slides are made of.

    python -m experiments.phantoms.make_tiles \
        --config experiments/configs/practice.py:tiles \
        --config.out=tiles

For `experiments.pretraining.pretrain_tiles`: only styles that no practice slide is made
of, to learn from, and those of test slides, to test on. Run again, it goes on where it
stopped.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from experiments.phantoms.cohort_folder import (
    MakeCohortError,
    Maker,
    command,
    write_image,
)
from experiments.phantoms.textures import Kind, draw
from experiments.tile_clusters import INDEX, split_of
from wsi_jax.commands.config_command_line import launch
from wsi_jax.config_fields import COUNT, POSITIVE, FieldError
from wsi_jax.run.run_folder import write_csv

PARTS = ("encoder", "test")


@dataclasses.dataclass(kw_only=True)
class MakeTiles(Maker):
    """A folder of synthetic tiles on disk.

    Attributes:
        kinds: kinds of tissue.
        styles: styles of each kind, over all splits; half of them are drawn.
        variants: tiles of one style.
        size_px: side of a tile.
        mpp: micrometres per pixel.
    """

    kinds: tuple[str, ...] = ("normal", "tumor")
    styles: int = 600
    variants: int = 3
    size_px: int = 256
    mpp: float = 1.0

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **dict.fromkeys(("styles", "variants", "size_px"), COUNT),
        "mpp": (POSITIVE, math.inf),
    }

    def validate(self) -> None:
        """Refuses kinds that there are not."""
        kinds = [kind.value for kind in Kind]
        if set(self.kinds) - set(kinds):
            raise FieldError("kinds", f"some of {', '.join(kinds)}")


def make_tiles(config: MakeTiles) -> pathlib.Path:
    """Draws what is missing of a folder of tiles.

    Returns:
        The path of its index: file, class, cluster.

    Raises:
        MakeCohortError: no folder named, one that holds other tiles, or nothing to
            draw.
        OSError: the disk is full or not to be written to.
    """
    out = config.checked()
    styles = [
        (kind, style)
        for kind in config.kinds
        for style in range(config.styles)
        if split_of(f"{kind}:{style}") in PARTS
    ]
    if not styles:
        raise MakeCohortError(
            f"--config.styles={config.styles} of --config.kinds={config.kinds}: none "
            "that no training slide is made of; ask for more"
        )
    config.claim()
    config.in_parallel(lambda one: _make(config, *one), styles, "styles")
    lines = [
        {"file": file, "class": kind, "cluster": f"{kind}:{style}"}
        for kind, style in styles
        for file in _files(config, kind, style)
    ]
    write_csv(out / INDEX, lines)
    return out / INDEX


def _files(config, kind, style) -> list[str]:
    """Names of one style's tiles, below the folder."""
    return [f"{kind}/{style:04}_{i}.png" for i in range(config.variants)]


def _make(config, kind, style) -> None:
    """Writes the tiles of one style; where the last one is, all are."""
    paths = [pathlib.Path(config.out) / file for file in _files(config, kind, style)]
    if paths[-1].is_file():
        return
    tiles = draw(Kind(kind), style, config.variants, config.size_px, config.mpp)
    for path, tile in zip(paths, tiles, strict=True):
        write_image(path, tile)


main = command(make_tiles)

if __name__ == "__main__":
    launch(main, "MakeTiles")
