"""Tiles changed as tissue may look without its label changing; one key an image."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped, UInt8

# Rows: haematoxylin, eosin and DAB in optical density (Ruifrok and Johnston, 2001).
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED = _HED / np.linalg.norm(_HED, axis=1, keepdims=True)


def augment(
    keys: Key[Array, " b"],
    pixels: UInt8[Array, "b s s 3"],
    *,
    crop_px: int,
    stain: float,
    shade: float,
) -> Float[Array, "b {crop_px} {crop_px} 3"]:
    """Cuts, turns and restains each tile by its own key, whatever else is in the batch.

    Args:
        keys: one a tile.
        pixels: grey levels.
        crop_px: side of the square that is cut out, anywhere.
        stain: the log gain of each stain is drawn from -stain to stain.
        shade: what is added to the density of each stain, from -shade to shade.

    Returns:
        Grey levels, 0 to 255, not rounded.
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
    return restain(turn(tiles, which), gains, shifts)


def blur(
    pixels: Num[Array, "b h w 3"], sigma: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Blurs each image by a Gaussian of its own sigma, px, as optics do.

    The kernel reaches 3 px; beyond the border stands the border.
    """
    away = jnp.arange(-3, 4, dtype=sigma.dtype)
    kernel = jnp.exp(-0.5 * (away[None] / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    kernel /= kernel.sum(1, keepdims=True)

    def along(x, axis):
        widths = [(0, 0)] * 4
        widths[axis] = (3, 3)
        wide = jnp.pad(x, widths, "edge")
        n = x.shape[axis]
        taps = (lax.slice_in_dim(wide, i, i + n, axis=axis) for i in range(7))
        return sum(kernel[:, i, None, None, None] * tap for i, tap in enumerate(taps))

    return along(along(pixels.astype(sigma.dtype), 1), 2)


def borrow(
    pixels: Num[Array, "b h w 3"], which: Bool[Array, " b"], px: int
) -> Float[Array, "b h w 3"]:
    """Shows the detail of some images on the coarse look of the next one in the batch.

    What is left of such an image is what an overview of `px` pixels a pixel does not
    see: an encoder that is to know it learns from texture, not from colour or density.

    Args:
        pixels: grey levels.
        which: images that borrow.
        px: below which structure is detail.
    """
    b, height, width, _ = pixels.shape
    pixels = pixels.astype(jnp.promote_types(pixels.dtype, jnp.float32))
    coarse = (b, height // px, width // px, 3)
    low = jax.image.resize(pixels, coarse, "linear")
    low = jax.image.resize(low, pixels.shape, "linear")
    borrowed = jnp.clip(pixels - low + jnp.roll(low, -1, 0), 0, 255)
    return jnp.where(which[:, None, None, None], borrowed, pixels)


def turn(
    pixels: Shaped[Array, "b s s d"], which: Int[Array, " b"]
) -> Shaped[Array, "b s s d"]:
    """One of the eight turns and flips of each square, which moves pixels exactly.

    Args:
        pixels: squares.
        which: 0 to 7; bit 0 transposes, then bit 1 reverses y, then bit 2 reverses x.
    """
    bit = lambda i: (which >> i & 1 == 1)[:, None, None, None]
    pixels = jnp.where(bit(0), pixels.swapaxes(1, 2), pixels)
    pixels = jnp.where(bit(1), pixels[:, ::-1], pixels)
    return jnp.where(bit(2), pixels[:, :, ::-1], pixels)


def augment_crops(
    key: Key[Array, ""], crops: UInt8[Array, "b n s s 3"], *, stain: float
) -> Num[Array, "b n s s 3"]:
    """Turns, flips and restains each crop of each slide in its own way.

    Args:
        key: of all of them.
        crops: grey levels.
        stain: the log gain of each stain is drawn from -stain to stain; at 0 grey
            levels stay whole.
    """
    flat, keys = crops.reshape(-1, *crops.shape[2:]), jax.random.split(key)
    flat = turn(flat, jax.random.randint(keys[0], (len(flat),), 0, 8))
    if stain:
        gains = jax.random.uniform(keys[1], (len(flat), 3), minval=-stain, maxval=stain)
        flat = restain(flat, jnp.exp(gains), jnp.zeros_like(gains))
    return flat.reshape(crops.shape)


def restain(
    pixels: Num[Array, "b h w 3"],
    gains: Float[Array, "b 3"],
    shifts: Float[Array, "b 3"],
) -> Float[Array, "b h w 3"]:
    """Changes how much haematoxylin, eosin and rest there is (Tellez et al. 2018).

    Of each stain's optical density s, `gain * s + shift`; gains of 1 and shifts of 0
    change nothing.

    Args:
        pixels: grey levels.
        gains: of each image's stains.
        shifts: of each image's stains.

    Returns:
        Grey levels, 0 to 255, not rounded.
    """
    dtype = gains.dtype
    mix, unmix = (jnp.asarray(m, dtype) for m in (HED, np.linalg.inv(HED)))
    # Gains and shifts as one affine map of RGB densities: [b 3 3] and [b 3].
    matrix = jnp.einsum("ij,bj,jk->bik", unmix, gains, mix)
    offset = shifts @ mix
    density = -jnp.log((pixels.astype(dtype) + 1) / 256)
    density = jnp.einsum("bhwi,bik->bhwk", density, matrix) + offset[:, None, None]
    return jnp.clip(256 * jnp.exp(-density) - 1, 0, 255)


def shift_hsv(
    pixels: Num[Array, "b h w 3"], shift: Float[Array, "3"]
) -> Float[Array, "b h w 3"]:
    """Shifts hue, saturation and value, every pixel by itself.

    Args:
        pixels: grey levels.
        shift: of the hue, in turns of the colour circle; of saturation and value, which
            are 0 to 1 and stay so.

    Returns:
        Grey levels, 0 to 255, not rounded.
    """
    wide = jnp.promote_types(shift.dtype, pixels.dtype)
    red, green, blue = jnp.moveaxis(pixels.astype(wide) / 255, -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = chroma / jnp.where(value > 0, value, 1)
    hue = sixth + 6 * shift[0]
    saturation = jnp.clip(saturation + shift[1], 0, 1)
    value = jnp.clip(value + shift[2], 0, 1)

    def channel(n):
        k = (n + hue) % 6
        away = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
        return value * (1 - saturation * away)

    return 255 * jnp.stack([channel(5), channel(3), channel(1)], -1)


def shrink(pixels: Num[Array, "b s s 3"], times: int) -> Num[Array, "b t t 3"]:
    """Tiles at so many times as many um/px, by means over squares, without a rest."""
    whole = pixels.shape[1] // times * times
    part = pixels[:, :whole, :whole].astype(jnp.float32)
    means = reduce(part, "b (h i) (w j) c -> b h w c", "mean", i=times, j=times)
    return means.round().astype(pixels.dtype)
