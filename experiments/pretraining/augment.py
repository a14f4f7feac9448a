"""Augmentation of tiles in pre-training: crops, stain, blur, coarse structure."""

import dataclasses

import jax
import jax.numpy as jnp
from einops import reduce
from jax import lax
from jaxtyping import Array, Bool, Float, Key, Num, UInt8

from wsi_jax.ops.augment import jitter_stain, rotate_flip


@dataclasses.dataclass(kw_only=True)
class Augment:
    """Options of the random augmentation of tiles.

    Attributes:
        crop: side of the random crop, as a share of the tile's.
        stain: range of the log gain of each stain.
        shade: range of the shift of each stain's optical density.
        blur: greatest sigma of a Gaussian blur, in pixels.
        borrow: share of the tiles whose coarse structure is another tile's.
        borrow_px: size below which structure is detail, in pixels.
    """

    crop: float = 0.85
    stain: float = 0.1
    shade: float = 0.03
    blur: float = 0.0
    borrow: float = 0.0
    borrow_px: int = 8

    def validate(self) -> None:
        """Raises ValueError for a crop that is no share of the tile."""
        if not 0 < self.crop <= 1:
            raise ValueError(
                f"--config.method.augment.crop={self.crop:g}: a crop is a share of the "
                "tile, above 0 and at most 1"
            )

    def crop_px(self, side: int, multiple: int) -> int:
        """Side of the crops of tiles of a side, a multiple of `multiple`."""
        return max(1, round(self.crop * side / multiple)) * multiple

    def show(
        self,
        key: Key[Array, ""],
        pixels: UInt8[Array, "b s s 3"],
        *,
        crop_px: int,
        detail_px: int,
    ) -> tuple[Float[Array, "b {crop_px} {crop_px} 3"], Bool[Array, " b"]]:
        """Augmented tiles, and which have another's coarse structure.

        Crops have a side of `crop_px`; what is smaller than `detail_px` is detail.
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


def augment_tiles(
    keys: Key[Array, " b"],
    pixels: UInt8[Array, "b s s 3"],
    *,
    crop_px: int,
    stain: float,
    shade: float,
) -> Float[Array, "b {crop_px} {crop_px} 3"]:
    """Random square crop, rotation or flip, and stain of each tile, by its own key.

    A stain's log gain is drawn from -stain to stain, the shift of its density from
    -shade to shade. Pixels are 0 to 255, not rounded.
    """

    def one(key, tile):
        where, which, gain, shift = jax.random.split(key, 4)
        free = tile.shape[0] - crop_px + 1
        y, x = jax.random.randint(where, (2,), 0, free)
        tile = lax.dynamic_slice(tile, (y, x, 0), (crop_px, crop_px, 3))
        gain = jnp.exp(jax.random.uniform(gain, (3,), minval=-stain, maxval=stain))
        shift = jax.random.uniform(shift, (3,), minval=-shade, maxval=shade)
        return tile, jax.random.randint(which, (), 0, 8), gain, shift

    tiles, which, gains, shifts = jax.vmap(one)(keys, pixels)
    return jitter_stain(rotate_flip(tiles, which), gains, shifts)


def gaussian_blur(
    pixels: Num[Array, "b h w 3"], sigma: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Gaussian blur of each image by a sigma of its own, in pixels.

    The kernel reaches 3 px; the border is repeated.
    """
    away = jnp.arange(-3, 4, dtype=sigma.dtype)
    kernel = jnp.exp(-0.5 * (away[None] / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    kernel /= kernel.sum(1, keepdims=True)

    def blur_axis(x, axis):
        widths = [(0, 0)] * 4
        widths[axis] = (3, 3)
        wide = jnp.pad(x, widths, "edge")
        n = x.shape[axis]
        taps = (lax.slice_in_dim(wide, i, i + n, axis=axis) for i in range(7))
        return sum(kernel[:, i, None, None, None] * tap for i, tap in enumerate(taps))

    return blur_axis(blur_axis(pixels.astype(sigma.dtype), 1), 2)


def swap_coarse_structure(
    pixels: Num[Array, "b h w 3"], which: Bool[Array, " b"], px: int
) -> Float[Array, "b h w 3"]:
    """Replaces the coarse structure of some images by that of the next in the batch.

    What is left is the detail that an overview of `px` pixels a pixel does not show: an
    encoder must learn from texture, not from colour or density.
    """
    b, height, width, _ = pixels.shape
    pixels = pixels.astype(jnp.promote_types(pixels.dtype, jnp.float32))
    coarse = (b, height // px, width // px, 3)
    low = jax.image.resize(pixels, coarse, "linear")
    low = jax.image.resize(low, pixels.shape, "linear")
    swapped = jnp.clip(pixels - low + jnp.roll(low, -1, 0), 0, 255)
    return jnp.where(which[:, None, None, None], swapped, pixels)


def downsample(pixels: Num[Array, "b s s 3"], times: int) -> Num[Array, "b t t 3"]:
    """Tiles at `times` as many um/px, by means over squares; a remainder is cut off."""
    whole = pixels.shape[1] // times * times
    part = pixels[:, :whole, :whole].astype(jnp.float32)
    means = reduce(part, "b (h i) (w j) c -> b h w c", "mean", i=times, j=times)
    return means.round().astype(pixels.dtype)
