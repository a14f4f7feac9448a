"""StreamingCLAM: slides on disk as images on the device, in every mode."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streamed_images import PLAIN, TASK, ImageSlide, config, images, on_disk
from trunks import assert_same

from wsi_jax.methods.streaming_clam import Augment, Mode, StreamingCLAM
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.optimiser import Thaw
from wsi_jax.types import Bag, Dtype

ONE = make_mesh(jax.devices()[:1])


def on_one(config, tx):
    """The method on slides on disk, on one device."""
    return compile_method(config.stages(TASK, tx)[0].method, ONE)


def trained(config, bag, streamed):
    """State and metrics after a step."""
    (stage,) = config.stages(TASK, optax.sgd(0.1), streamed=streamed)
    method = compile_method(stage.method, ONE)
    state = method.init(jax.random.key(0), bag)
    return method, *method.step(state, bag)


# Without a change of colours training and prediction share what is compiled.
CASES = {
    "as published": {},
    "masked": {
        "mode": Mode.masked, "augment": PLAIN,
    },
    "all, pooled at once, clustered": {
        "mode": Mode.every, "stream_pool": False, "instance_weight": 0.3, "sampled": 2,
        "multi_branch": True, "subtyping": True, "normaliser": Normaliser.average,
        "augment": PLAIN,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_streamed_is_pure(x64, name):
    """Parameters after a step, loss and prediction: augmented alike."""
    made, bag = config(Dtype.float64, **CASES[name]), images()
    pure, state, metrics = trained(made, bag, streamed=False)
    streamed, again, same = trained(made, on_disk(bag), streamed=True)
    # Parameters are float32 in either, and move by up to 0.2.
    chex.assert_trees_all_close(again.params, state.params, rtol=1e-5, atol=1e-6)
    for metric, value in metrics.items():
        np.testing.assert_allclose(same[metric], value, rtol=1e-6)
    if name == "masked":  # predicts from the same map
        return
    pure = pure.predict(state.params, bag, None)
    streamed = streamed.predict(state.params, on_disk(bag), None)
    assert_same(streamed.logits, pure.logits)
    for i, there in enumerate(bag.mask.reshape(2, -1)):
        n = there.sum()
        assert streamed.counts["tiles"][i] == n
        assert_same(streamed.attention[i, :n], pure.attention[i][there])
        even = np.allclose(pure.attention[i][there], 1 / n, atol=1e-9)
        assert even == (made.normaliser is Normaliser.average)
        assert not streamed.attention[i, n:].any()


def test_a_sliver_too_narrow_for_the_map_is_masked():
    """Pooled with the map or from it: no prediction comes from beyond the image."""
    image = images(96, 1).x[0][:82, :83]  # a sliver of 2 and of 3 px, and stem 4
    slide = ImageSlide(image, np.ones((6, 6), bool))
    bag = Bag((slide,), None, np.zeros(1, np.int32), np.ones(1, np.float32))
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5)
    made = (config(trunk=trunk, stream_pool=pool) for pool in (True, False))
    streamed, at_once = (on_one(one, optax.sgd(0.1)) for one in made)
    params = streamed.init(jax.random.key(0), bag).params
    streamed, at_once = (one.predict(params, bag, None) for one in (streamed, at_once))
    assert np.isfinite(streamed.logits).all()
    assert not streamed.attention.reshape(6, 6)[5].any()
    chex.assert_trees_all_close(streamed[:2], at_once[:2], rtol=1e-5, atol=1e-6)


def test_resumed_is_uninterrupted_and_a_frozen_trunk_has_no_backward_pass(tmp_path):
    still = Augment(turn=False, hue=0.0, saturation=0.0, value=0.0)
    made = config(thaw=Thaw(frozen=1), augment=still)
    method = on_one(made, optax.adam(3e-2))
    slides = on_disk(images(count=1))
    first = method.init(jax.random.key(0), slides)
    state, tiles = jax.tree.map(jnp.copy, first), []
    for step in range(3):
        before = slides.x[0].tiles_read
        state, _ = method.step(state, slides)
        tiles.append(slides.x[0].tiles_read - before)
        if step == 0:
            chex.assert_trees_all_equal(state.params["trunk"], first.params["trunk"])
            checkpoints = Checkpoints(tmp_path)
            checkpoints.save(1, state, {})
            checkpoints.close()
    assert tiles == [tiles[0], 2 * tiles[0], 2 * tiles[0]]
    moved = lambda a, b: bool((a != b).any())
    moved = jax.tree.map(moved, state.params["trunk"], first.params["trunk"])
    assert all(jax.tree.leaves(moved))
    again, _ = Checkpoints(tmp_path).restore(state)
    for _ in range(2):
        again, _ = method.step(again, slides)
    chex.assert_trees_all_equal(again.params, state.params)


def test_a_trunk_that_attends_to_the_whole_slide_is_refused():
    trunk = ViTEncoder(width=8, depth=1, heads=2, hidden=16, native_px=64)
    with pytest.raises(ValueError, match=r"method\.trunk: a ViT attends to the whole"):
        StreamingCLAM(trunk=trunk).check(64)
