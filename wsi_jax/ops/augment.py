"""Augmentation of images: rotations and flips, stain and colour."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, Shaped, UInt8

# Optical density of haematoxylin, eosin and DAB, by row (Ruifrok & Johnston 2001).
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED = _HED / np.linalg.norm(_HED, axis=1, keepdims=True)


def rotate_flip(
    pixels: Shaped[Array, "b s s d"], which: Int[Array, " b"]
) -> Shaped[Array, "b s s d"]:
    """One of the eight rotations and flips of each square, without resampling.

    Args:
        which: 0 to 7; bit 0 transposes, then bit 1 reverses y, then bit 2 reverses x.
    """
    bit = lambda i: (which >> i & 1 == 1)[:, None, None, None]
    pixels = jnp.where(bit(0), pixels.swapaxes(1, 2), pixels)
    pixels = jnp.where(bit(1), pixels[:, ::-1], pixels)
    return jnp.where(bit(2), pixels[:, :, ::-1], pixels)


def augment_crops(
    keys: Key[Array, " b"], crops: UInt8[Array, "b n s s 3"], *, stain: float
) -> Num[Array, "b n s s 3"]:
    """Random rotation or flip, and stain, of each crop of each slide.

    Args:
        keys: of each slide.
        stain: range of each stain's log gain, drawn from -stain to stain; at 0 pixels
            stay whole numbers.
    """
    b, n = crops.shape[:2]
    flat = crops.reshape(b * n, *crops.shape[2:])

    def draw(key):
        which, gains = jax.random.split(key)
        which = jax.random.randint(which, (n,), 0, 8)
        return which, jax.random.uniform(gains, (n, 3), minval=-stain, maxval=stain)

    which, gains = jax.vmap(draw)(keys)
    flat = rotate_flip(flat, which.reshape(-1))
    if stain:
        gains = gains.reshape(-1, 3)
        flat = jitter_stain(flat, jnp.exp(gains), jnp.zeros_like(gains))
    return flat.reshape(crops.shape)


def jitter_stain(
    pixels: Num[Array, "b h w 3"],
    gains: Float[Array, "b 3"],
    shifts: Float[Array, "b 3"],
) -> Float[Array, "b h w 3"]:
    """Changes the amounts of haematoxylin, eosin and a residual (Tellez et al. 2018).

    Each stain's optical density s becomes `gain * s + shift`.

    Returns:
        Pixels, 0 to 255, not rounded.
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
    """Shifts hue, saturation and value of every pixel.

    Args:
        shift: shift of the hue, in turns of the colour circle; of saturation and of
            value, which are clipped to 0 to 1.

    Returns:
        Pixels, 0 to 255, not rounded.
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
