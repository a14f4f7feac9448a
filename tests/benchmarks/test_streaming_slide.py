"""A real slide from disk, forward and backward through a whole ResNet-34."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.methods.streaming_clam import StreamingCLAM
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.run.tiling import Tiling, as_streamed_slide, tile_slide
from wsi_jax.slides.grid import Grid
from wsi_jax.types import Bag, Task


@pytest.mark.long
def test_a_real_slide_trains_resnet34(shared, optimised):
    """Single-level SVS of 2,220 x 2,967 px, every tile read twice and none kept."""
    path = shared / "data" / "slides" / "CMU-1-Small-Region.svs"
    encoder = Encoder(depth=Depth.resnet34)
    grid = Grid(mpp=0.5, size_px=256)
    row = Row("CMU", str(path), "", "CMU", "")
    slide = tile_slide(row, Tiling(grid=grid, encoder=encoder, overhang=True))
    streamed = as_streamed_slide(slide, grid, Reading(threads=2))
    config = StreamingCLAM(trunk=encoder, tile_px=768)
    (stage,) = config.stages(Task(("normal", "tumor")), optax.adam(1e-4))
    print(stage.memory_estimate([streamed]))
    bag = Bag((streamed,), None, np.zeros(1, np.int32), np.ones(1, np.float32))
    state = stage.method.init(jax.random.key(0), bag)
    before = jax.tree.map(jnp.copy, state.params)
    state, metrics = stage.method.step(state, bag)
    assert np.isfinite(float(metrics["loss"]))
    assert streamed.n_read % 2 == 0
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, before)
    assert all(move > 0 for move in jax.tree.leaves(moved["trunk"]))
    prediction = stage.method.predict(state.params, bag, None)
    assert prediction.attention.shape == (1, len(slide.yx))
    np.testing.assert_allclose(prediction.attention.sum(), 1, rtol=1e-5)
