import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import hsv2rgb, rgb2hsv

from wsi_jax.ops.augment import HED, jitter_stain, rotate_flip, shift_hsv


@pytest.fixture(scope="module")
def tiles():
    return jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (16, 6, 6, 3), np.uint8)
    )


def symmetries(tile):
    turned = [np.rot90(tile, i) for i in range(4)]
    return [t.copy() for t in (*turned, *(t[::-1] for t in turned))]


def test_eight_turns_are_the_eight_symmetries_of_the_square(tiles):
    """Each exactly, and none twice."""
    same = jnp.repeat(tiles[:1], 8, 0)
    turned = np.asarray(rotate_flip(same, jnp.arange(8)))
    as_set = lambda images: {image.tobytes() for image in images}
    assert turned.dtype == np.uint8
    assert len(as_set(turned)) == 8
    assert as_set(turned) == as_set(symmetries(tiles[0]))


def test_no_stain_changes_nothing(tiles):
    ones, zeros = jnp.ones((16, 3)), jnp.zeros((16, 3))
    np.testing.assert_allclose(jitter_stain(tiles, ones, zeros), tiles, atol=2e-3)
    strong = np.asarray(jitter_stain(tiles, 3 * ones, zeros - 2))
    assert 0 <= strong.min() <= strong.max() <= 255


def test_a_gain_multiplies_one_stain_and_a_shift_adds_to_it():
    """A pixel of pure haematoxylin, then of white."""
    density = 0.8 * HED[0].astype(np.float32)
    pixel = jnp.asarray(256 * np.exp(-density) - 1)[None, None, None]
    gains = jnp.array([[1.5, 9.0, 9.0]])
    stronger = jitter_stain(pixel, gains, jnp.zeros((1, 3)))
    np.testing.assert_allclose(
        np.asarray(stronger)[0, 0, 0], 256 * np.exp(-1.5 * density) - 1, rtol=1e-4
    )
    white = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
    stained = jitter_stain(white, jnp.ones((1, 3)), jnp.array([[0.0, 0.3, 0.0]]))
    np.testing.assert_allclose(
        np.asarray(stained)[0, 0, 0], 256 * np.exp(-0.3 * HED[1]) - 1, rtol=1e-4
    )


def test_hsv_is_that_of_a_well_known_library():
    """scikit-image's colours, shifted as ours; grey has no hue to shift."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), np.uint8)
    pixels[0, 0, :3] = [[0, 0, 0], [255, 255, 255], [90, 90, 90]]
    shift = np.array([0.11, -0.2, 0.05], np.float32)
    hsv = rgb2hsv(pixels) + shift
    hsv[..., 0] %= 1
    hsv[..., 1:] = np.clip(hsv[..., 1:], 0, 1)
    shifted = lambda by: shift_hsv(jnp.asarray(pixels), jnp.asarray(by))
    np.testing.assert_allclose(shifted(shift), 255 * hsv2rgb(hsv), atol=1e-3)
    np.testing.assert_allclose(shifted(0 * shift), pixels, atol=1e-3)
