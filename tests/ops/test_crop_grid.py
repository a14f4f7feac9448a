"""Where crops lie, and that the device cuts them as the host reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops.crop_grid import CropGrid, gather_crops, map_in_chunks
from wsi_jax.slides.pyramid_writer import write_pyramid
from wsi_jax.slides.slide import open_slide


def test_corners_are_those_of_the_fixture(shared):
    z = np.load(shared / "fixtures" / "sampling" / "geometry.npz")
    (w, h), (m, rows, columns) = z["size0_wh"], z["map_shape"]
    downsamples, mpp0 = z["target_downsample"], float(z["mpp0"])
    side = w / columns, h / rows
    index = jnp.asarray(z["flat_index"])
    for axis, (name, extent) in enumerate(
        (("y0_level0", side[1]), ("x0_level0", side[0]))
    ):
        mpps = tuple(float(d) * mpp0 for d in downsamples)
        cells = CropGrid(mpps, int(z["patch"]), extent * mpp0, (1,) * int(m))
        which, yx = cells.crop_corners(index, (int(rows), int(columns)))
        np.testing.assert_array_equal(which, z["m"])
        level0 = np.asarray(yx)[:, axis] * downsamples[np.asarray(which)]
        np.testing.assert_array_equal(level0, z[name])


def test_coarse_cells_of_their_own_hold_fine_ones():
    """Mask, geometry and spreading agree on which fine cells a coarse one holds."""
    cells = CropGrid((1.0, 3.0), 10, 10.0, (1, 3))
    mask = jnp.asarray(np.random.default_rng(0).random((2, 5, 7)) < 0.3)
    masks = cells.tissue_cells(mask)
    assert cells.cell_counts((5, 7)) == (35, 6)
    assert masks.shape == (2, 41)
    which, yx = cells.crop_corners(jnp.arange(35, 41), (5, 7))
    assert set(np.asarray(which)) == {1}
    np.testing.assert_array_equal(yx, 10 * np.array(list(np.ndindex(2, 3))))
    for b in range(2):
        for k, (r, c) in enumerate(np.ndindex(2, 3)):
            block = np.asarray(mask)[b, 3 * r : 3 * r + 3, 3 * c : 3 * c + 3]
            assert bool(masks[b, 35 + k]) == block.any()
            one = jnp.zeros((2, 41)).at[b, 35 + k].set(1)
            spread = np.asarray(cells.attention_on_finest(one, mask))
            assert not spread[:, 0].any()
            if block.any():
                inside = spread[b, 1, 3 * r : 3 * r + 3, 3 * c : 3 * c + 3]
                np.testing.assert_allclose(inside, block / block.sum())


@pytest.mark.parametrize("mpp", [1.0, 2.0, 2.3])
def test_the_device_cuts_what_the_host_reads(tmp_path, mpp):
    """Also off the slide; bit by bit, or to a grey level where it is resampled."""
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    write_pyramid(tmp_path / "slide.tif", image, 1.0)
    slide = open_slide(tmp_path / "slide.tif")
    corners = np.array([[0, 0], [13, 7], [-9, -3], [85, 120], [-60, 500], [80, -5]])
    planes = [jnp.zeros((3, 3, 3), jnp.uint8), jnp.asarray(slide.overview(mpp))]
    ground = jnp.asarray(slide.background, jnp.uint8)
    which = jnp.ones(len(corners), jnp.int32)
    ours = gather_crops(planes, ground, which, jnp.asarray(corners), 16)
    for crop, yx in zip(np.asarray(ours), corners, strict=True):
        theirs = slide.read(yx, 16, mpp).astype(int)
        assert np.abs(crop - theirs).max() <= (0 if mpp < 2.3 else 1)


def test_chunks_change_nothing_but_memory(x64):
    crops = jnp.asarray(
        np.random.default_rng(0).integers(0, 255, (2, 7, 4, 4, 3)), "uint8"
    )
    kernel = jnp.linspace(-1, 1, 144).reshape(48, 3)
    encode = lambda kernel: lambda x: jnp.tanh(x.reshape(len(x), -1) / 255 @ kernel)
    energy = lambda kernel, chunk: (
        map_in_chunks(encode(kernel), crops, chunk) ** 2
    ).sum()
    whole, value = jax.grad(energy)(kernel, None), energy(kernel, None)
    for chunk in (1, 6, 9, 100):
        np.testing.assert_allclose(energy(kernel, chunk), value, rtol=1e-12)
        np.testing.assert_allclose(
            jax.grad(energy)(kernel, chunk), whole, rtol=1e-10, atol=1e-12
        )
    # What fits at once is not encoded again on the way back.
    again = lambda chunk: "remat" in str(jax.make_jaxpr(energy, 1)(kernel, chunk))
    assert [again(chunk) for chunk in (None, 14, 12)] == [False, False, True]
