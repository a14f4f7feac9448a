"""Tiles of pre-training: augmented by a key of their own, and nothing lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pretraining.augment import (
    augment_tiles,
    gaussian_blur,
    swap_coarse_structure,
)

AS_IT_IS = {"stain": 0.0, "shade": 0.0}
augmented = jax.jit(augment_tiles, static_argnames=("crop_px", "stain", "shade"))


@pytest.fixture(scope="module")
def tiles():
    return jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (16, 6, 6, 3), np.uint8)
    )


def symmetries(tile):
    turned = [np.rot90(tile, i) for i in range(4)]
    return [t.copy() for t in (*turned, *(t[::-1] for t in turned))]


@pytest.mark.parametrize("side", [6, 4])
def test_without_stain_a_window_of_a_tile_is_turned_and_nothing_else(tiles, key, side):
    """Windows differ in where they lie, and in how they are turned."""
    keys = jax.random.split(key, 16)
    out = np.rint(augmented(keys, tiles, crop_px=side, **AS_IT_IS)).astype(np.uint8)
    corners, turns = set(), set()
    for tile, one in zip(tiles, out, strict=True):
        (place,) = (
            (y, x, turn)
            for y, x in np.ndindex(7 - side, 7 - side)
            for turn, part in enumerate(symmetries(tile[y : y + side, x : x + side]))
            if np.array_equal(part, one)
        )
        corners.add(place[:2])
        turns.add(place[2])
    assert len(turns) >= 4
    assert len(corners) >= min(5, (7 - side) ** 2)


def test_a_key_decides_and_the_rest_of_the_batch_does_not(tiles, key):
    keys = jax.random.split(key, 16)
    run = lambda keys, tiles: np.asarray(
        augmented(keys, tiles, crop_px=5, stain=0.3, shade=0.1)
    )
    again, for_one = jax.random.clone(keys)[3:5], jax.random.clone(keys)
    whole = run(keys, tiles)
    np.testing.assert_allclose(run(again, tiles[3:5]), whole[3:5], rtol=1e-5)
    same = jnp.repeat(tiles[:1], 16, 0)
    assert len({image.tobytes() for image in run(for_one, same)}) == 16


def test_what_borrows_keeps_its_detail_and_takes_the_next_ones_look():
    """Seen from far off it is the next image; seen against that, it is itself."""
    rng = np.random.default_rng(3)
    look = rng.uniform(90, 160, (4, 1, 1, 3))
    detail = rng.choice([-8.0, 8.0], (4, 8, 16, 1))
    detail = np.concatenate([detail, -detail], 1)  # no mean over any column
    tiles = jnp.asarray((look + detail).astype(np.float32))
    which = jnp.array([True, False, True, True])
    out = np.asarray(swap_coarse_structure(tiles, which, 16))
    np.testing.assert_array_equal(out[1], tiles[1])
    for i in (0, 2, 3):
        mean = lambda image: np.asarray(image).mean((0, 1))
        np.testing.assert_allclose(mean(out[i]), look[(i + 1) % 4, 0, 0], atol=2)
        own = out[i] - mean(out[i])
        assert np.corrcoef(own.ravel(), (detail[i] + 0 * look[i]).ravel())[0, 1] > 0.99


def test_a_blur_is_a_gaussian_of_each_images_own_width():
    spot = jnp.zeros((2, 15, 15, 3)).at[:, 7, 7].set(100.0)
    out = np.asarray(gaussian_blur(spot, jnp.array([0.0, 1.0])))
    np.testing.assert_allclose(out[0], spot[0], atol=1e-5)
    np.testing.assert_allclose(out[1].sum((0, 1)), 100, rtol=1e-5)
    away = np.arange(15) - 7
    variance = (out[1, :, :, 0].sum(1) * away**2).sum() / 100
    assert variance == pytest.approx(1, rel=0.03)
    flat = jnp.full((1, 9, 9, 3), 200, jnp.uint8)
    np.testing.assert_allclose(gaussian_blur(flat, jnp.array([1.0])), flat, rtol=1e-5)
