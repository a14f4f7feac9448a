"""How a tile is changed each time training shows it."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt8

from wsi_jax.ops.augment import augment_tiles, gaussian_blur, swap_coarse_structure


@dataclasses.dataclass(kw_only=True)
class Augment:
    """How much a tile is changed each time it is seen in training.

    Attributes:
        crop: side of the square cut out of a tile, as a share of the tile's.
        stain: spread of the log gain of each stain.
        shade: spread of what is added to the optical density of each stain.
        blur: most sigma of a Gaussian, in pixels.
        borrow: share of the tiles that show their detail on another tile's coarse look.
        borrow_px: side, in pixels, below which structure is detail.
    """

    crop: float = 0.85
    stain: float = 0.1
    shade: float = 0.03
    blur: float = 0.0
    borrow: float = 0.0
    borrow_px: int = 8

    def validate(self) -> None:
        """Refuses a crop that is none."""
        if not 0 < self.crop <= 1:
            raise ValueError(
                f"--config.method.augment.crop={self.crop:g}: a crop is a share of the "
                "tile, above 0 and at most 1"
            )

    def crop_px(self, side: int, multiple: int) -> int:
        """Side of the crops of tiles of a side, a multiple of what a trunk wants."""
        return max(1, round(self.crop * side / multiple)) * multiple

    def show(
        self,
        key: Key[Array, ""],
        pixels: UInt8[Array, "b s s 3"],
        *,
        crop_px: int,
        detail_px: int,
    ) -> tuple[Float[Array, "b {crop_px} {crop_px} 3"], Bool[Array, " b"]]:
        """Tiles turned, cut, restained and more, and which of them borrow.

        Args:
            key: of all of them.
            pixels: grey levels.
            crop_px: side of what is cut out.
            detail_px: side below which structure is detail.
        """
        b = len(pixels)
        shown = augment_tiles(
            jax.random.split(key, b),
            pixels,
            crop_px=crop_px,
            stain=self.stain,
            shade=self.shade,
        )
        which = jnp.zeros(b, bool)
        if self.borrow:
            which = jax.random.bernoulli(jax.random.fold_in(key, 1), self.borrow, b)
            shown = swap_coarse_structure(shown, which, detail_px)
        if self.blur:
            sigma = jax.random.uniform(jax.random.fold_in(key, 2), (b,))
            shown = gaussian_blur(shown, self.blur * sigma)
        return shown, which
