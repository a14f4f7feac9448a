"""What becomes of crops: a trunk that is held, and one that learns."""

import chex
import jax
import jax.numpy as jnp
import pytest

from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.crop_classifier import CropClassifier, CropMILHead
from wsi_jax.nets.crop_options import HeadConfig


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_trunk_that_does_not_learn_says_the_same_and_has_no_gradient(chunk):
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, scale=1.0)
    crops = jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 3), 0, 255, jnp.uint8)
    which, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)

    def value_and_gradients(learns):
        classifier = CropClassifier(
            trunk, CropMILHead(2, HeadConfig(width=3)), chunk, learns
        )
        params = classifier.init(jax.random.key(1))
        energy = lambda params: (
            classifier.embed(params, crops, which, mask) ** 2
        ).sum()
        return jax.jit(jax.value_and_grad(energy))(params)

    (held, still), (free, moved) = value_and_gradients(False), value_and_gradients(True)
    assert held == free
    chex.assert_trees_all_close(still["head"], moved["head"], rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(still["trunk"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(moved["trunk"]))


@pytest.mark.parametrize("centred", [False, True])
def test_centred_crops_do_not_tell_what_their_slide_has_throughout(centred):
    """Two slides of two tissues each, one at either magnification; one is stained."""
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, scale=1.0)
    head = CropMILHead(2, HeadConfig(width=8, centred=centred), magnifications=2)
    classifier = CropClassifier(trunk, head, None)
    params = classifier.init(jax.random.key(1))
    which = jnp.array([[0, 1, 0, 1]] * 2)
    mask = jnp.ones((2, 4), bool).at[1, 3].set(False)
    colours = jnp.array([[90, 60, 90, 60], [130, 200, 130, 7]], jnp.uint8)
    crops = jnp.broadcast_to(colours[..., None, None, None], (2, 4, 8, 8, 3))
    one, other = classifier.embed(params, crops, which, mask)
    alike = [
        bool(jnp.allclose(a, b, atol=1e-5)) for a, b in zip(one, other, strict=True)
    ]
    assert alike[:3] == [centred] * 3


def test_what_was_not_read_is_no_part_of_the_mean():
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, scale=1.0)
    head = CropMILHead(2, HeadConfig(width=8, centred=True, unit_length=True))
    classifier = CropClassifier(trunk, head, None)
    params = classifier.init(jax.random.key(1))
    crops = jax.random.randint(jax.random.key(0), (1, 4, 8, 8, 3), 0, 255, jnp.uint8)
    which, mask = jnp.zeros((1, 4), jnp.int32), jnp.array([[True, True, True, False]])
    energy = lambda crops: classifier.embed(params, crops, which, mask)[:, :3]
    chex.assert_trees_all_equal(energy(crops), energy(crops.at[0, 3].set(77)))
    assert (energy(crops) != energy(crops.at[0, 2].set(77))).any()


def test_a_prediction_is_of_what_every_attention_pools():
    """In a row, each by its own softmax of log weights and logits."""
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, scale=1.0)
    head = CropMILHead(3, HeadConfig(width=5, attention_width=4, branches=2))
    classifier = CropClassifier(trunk, head, None)
    params = jax.tree.map(lambda a: 3 * a, classifier.init(jax.random.key(1)))
    h = jax.random.normal(jax.random.key(0), (2, 6, 5))
    prior = jax.random.uniform(jax.random.key(2), (2, 6)).at[1, 4:].set(0)
    weights = classifier.posterior_weights(params, prior, h)
    logits = classifier.attention_logits(params, h)
    assert weights.shape == logits.shape == (2, 2, 6)
    own = params["head"]["params"]["attention"]
    dense = lambda name, x: x @ own[name]["kernel"] + own[name]["bias"][None]
    hidden = jnp.tanh(dense("value", h[0])) * jax.nn.sigmoid(dense("gate", h[0]))
    chex.assert_trees_all_close(logits[0], dense("logits", hidden).T, rtol=1e-4)
    pooled = []
    for branch in (0, 1):
        w = prior * jnp.exp(logits[:, branch])
        w /= w.sum(1, keepdims=True)
        chex.assert_trees_all_close(weights[:, branch], w, rtol=1e-4)
        pooled.append((w[..., None] * h).sum(1))
    last = params["head"]["params"]["classifier"]
    wanted = jnp.concatenate(pooled, 1) @ last["kernel"] + last["bias"][None]
    value_and_gradients = classifier.classify(params, weights, h)
    chex.assert_trees_all_close(value_and_gradients, wanted, rtol=1e-4)
