"""Vision transformers: foundation models, positions, outputs and refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vits
from flax.traverse_util import flatten_dict
from vits import TINY, shapes

from wsi_jax import config_fields
from wsi_jax.nets import foundation_models
from wsi_jax.nets.transformer import Bias, MlpKind
from wsi_jax.nets.vit import PositionKind
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.ops import position_embedding
from wsi_jax.types import Dtype

GATED = {"mlp": MlpKind.swiglu, "registers": 2, "layer_scale": 0.1}


def sizes(encoder):
    """Parameters and tensors; all blocks are alike, and two of them traced."""

    def of(depth):
        leaves = jax.tree.leaves(shapes(dataclasses.replace(encoder, depth=depth)))
        return np.array([sum(math.prod(a.shape) for a in leaves), len(leaves)])

    one, two = of(1), of(2)
    return tuple(map(int, one + (encoder.depth - 1) * (two - one)))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def pixels(side, n=2):
    rng = np.random.default_rng(side)
    return jnp.asarray(rng.integers(0, 256, (n, side, side, 3), np.uint8))


# Published; of DINOv2's with a token for what is masked while it learns.
COUNTS = {
    "uni": 303_350_784,
    "uni2_h": 681_394_176,
    "virchow": 631_229_184,
    "virchow2": 631_239_424,
    "h_optimus_0": 1_134_774_272,
    "h_optimus_1": 1_134_774_272,
    "gigapath": 1_134_953_984,
    "lunit_s16": 21_665_664,
    "phikon": 85_798_656,
    "phikon_v2": 303_351_808 - 1024,
    "dinov2_s": 22_056_576 - 384,
    "dinov2_b": 86_580_480 - 768,
    "dinov2_l": 304_368_640 - 1024,
    "dinov2_g": 1_136_480_768 - 1536,
}


@pytest.mark.parametrize("name", foundation_models.model_names())
def test_every_foundation_model_can_be_built(name):
    model = foundation_models.foundation_model(name)
    model.encoder.check_tile("grid.size_px", model.tile_px)
    if name in COUNTS:
        assert sizes(model.encoder)[0] == COUNTS[name]
    if name == "dinov3_s":
        assert sizes(model.encoder)[1] == 162  # tensors in its file
    first = dataclasses.replace(model.encoder, depth=1)
    made, params = first.make(), {"params": shapes(first)}
    tiles = jax.ShapeDtypeStruct((2, model.tile_px, model.tile_px, 3), jnp.uint8)
    assert jax.eval_shape(made.apply, params, tiles).shape == (2, made.dim)
    assert f"| `{name}` |" in foundation_models.markdown_table()


def test_positions_on_their_own_grid_are_themselves():
    grid = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 3)), jnp.float32)
    same(position_embedding.resize_positions(grid, 4, 4), grid)
    other = position_embedding.resize_positions(grid, 6, 3)
    assert other.shape == (6, 3, 3)
    ones = position_embedding.resize_positions(jnp.ones((4, 4, 3)), 6, 3)
    np.testing.assert_allclose(ones, jnp.ones((6, 3, 3)), rtol=1e-5)


def test_rotary_positions_rotate_patches_alone_and_depend_on_distances():
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 2 + 6, 8)), jnp.float32)
    # The same query and key everywhere: their products depend on the distance alone.
    q, k = (jnp.broadcast_to(a[:, :, :1], a.shape) for a in (q, k))
    angles = position_embedding.rotary_angles(2, 3, 8)
    turned = position_embedding.apply_rotary(q, angles)
    same(turned[:, :, :2], q[:, :, :2])
    assert not jnp.allclose(turned[:, :, 2:], q[:, :, 2:])
    norms = lambda a: jnp.linalg.norm(a, axis=-1)
    np.testing.assert_allclose(norms(turned), norms(q), rtol=1e-5)
    keys = position_embedding.apply_rotary(k, angles)
    product = jnp.einsum("bhqd,bhkd->qk", turned, keys)[2:, 2:].reshape(2, 3, 2, 3)
    right = [product[0, x, 0, x + 1] for x in (0, 1)] + [product[1, 0, 1, 1]]
    np.testing.assert_allclose(right, 3 * [right[0]], rtol=1e-4)
    assert not np.isclose(product[0, 0, 0, 0], right[0], rtol=1e-3)
    with pytest.raises(ValueError, match="heads of 6 numbers"):
        position_embedding.rotary_angles(2, 3, 6)


@pytest.mark.parametrize("kind", PositionKind)
def test_positions_matter(kind):
    """Patches that change places change the class token."""
    encoder = ViTEncoder(**TINY | {"width": 16}, positions=kind, registers=1)
    params, apply = {"params": vits.drawn(encoder)}, jax.jit(encoder.make().apply)
    x = pixels(16)
    swapped = jnp.concatenate([x[:, :, 8:], x[:, :, :8]], 2)
    assert jnp.abs(apply(params, x) - apply(params, swapped)).max() > 1e-3


def test_outputs_are_class_token_and_mean_in_float32():
    options = TINY | {"registers": 2, "dtype": Dtype.bfloat16}
    made = {o.name: ViTEncoder(**options, output=o).make() for o in Output}
    encoder = ViTEncoder(**options)

    @jax.jit
    def everything(params, x):
        features = {name: net.apply(params, x) for name, net in made.items()}
        return features, encoder.trunk().apply(params, x)

    outputs, cells = everything({"params": vits.drawn(encoder)}, pixels(16))
    for name, features in outputs.items():
        assert features.shape == (2, made[name].dim)
        assert features.dtype == jnp.float32
    both = jnp.concatenate([outputs["class_token"], outputs["mean"]], -1)
    np.testing.assert_allclose(outputs["class_and_mean"], both, rtol=1e-6)
    assert cells.shape == (2, 4, 4, 8)
    mean = cells.astype(jnp.float32).mean((1, 2))
    np.testing.assert_allclose(mean, outputs["mean"], rtol=1e-5, atol=1e-6)


def test_every_parameter_learns_but_the_bias_that_is_left_out():
    encoder = ViTEncoder(**TINY | GATED, bias=Bias.no_key, output=Output.class_and_mean)
    params, apply = {"params": vits.drawn(encoder)}, encoder.make().apply
    energy = lambda p: (apply(p, pixels(16)) ** 2).sum()
    grads = flatten_dict(jax.jit(jax.grad(energy))(params)["params"])
    for path, grad in grads.items():
        whole = np.ones(grad.shape, bool)
        if path[-2:] == ("qkv", "bias"):
            whole[8:16] = False
        assert ((np.asarray(grad) != 0) == whole).mean() > 0.99, path


def test_a_random_one_begins_with_its_layer_scale_and_sees_any_multiple():
    encoder = ViTEncoder(**TINY, layer_scale=0.25)
    params = jax.jit(lambda key: encoder.init_calibrated(key, None))(jax.random.key(0))
    assert (params["params"]["blocks"]["0"]["ls1"]["gamma"] == 0.25).all()
    features = lambda side: jax.eval_shape(encoder.make().apply, params, pixels(side))
    assert features(12).shape == (2, 8)
    with pytest.raises(ValueError, match="18 x 18 px do not divide into patches of 4"):
        features(18)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"heads": 3}, "width=8 does not divide by heads=3"),
        ({"depth": 0}, "no number below 1"),
        ({"native_px": 18}, "native_px=18 is no multiple of patch=4"),
        ({"mlp": MlpKind.swiglu, "hidden": 13}, "half are gates"),
        ({"heads": 4, "positions": PositionKind.rotary}, "heads of 2 numbers"),
    ],
)
def test_what_cannot_be_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        config_fields.validate(ViTEncoder(**TINY | change))
