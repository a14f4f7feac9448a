"""Vision transformers have timm's names and shapes, and load what others saved."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from wsi_jax import config_io
from wsi_jax.nets import foundation_models, pretrained
from wsi_jax.nets.crop_classifier import CropClassifier, CropHead
from wsi_jax.nets.pretrained import WeightsError
from wsi_jax.nets.transformer import Bias, Mlp
from wsi_jax.nets.vit import Positions
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header
from wsi_jax.ops import position_embedding
from wsi_jax.types import Dtype

TINY = {"width": 8, "depth": 1, "heads": 2, "hidden": 12, "patch": 4, "native_px": 16}
PLAIN = {
    "cls_token": (1, 1, 8),
    "pos_embed": (1, 17, 8),
    "patch_embed.proj.weight": (8, 3, 4, 4),
    "patch_embed.proj.bias": (8,),
    "blocks.0.norm1.weight": (8,),
    "blocks.0.norm1.bias": (8,),
    "blocks.0.attn.qkv.weight": (24, 8),
    "blocks.0.attn.qkv.bias": (24,),
    "blocks.0.attn.proj.weight": (8, 8),
    "blocks.0.attn.proj.bias": (8,),
    "blocks.0.norm2.weight": (8,),
    "blocks.0.norm2.bias": (8,),
    "blocks.0.mlp.fc1.weight": (12, 8),
    "blocks.0.mlp.fc1.bias": (12,),
    "blocks.0.mlp.fc2.weight": (8, 12),
    "blocks.0.mlp.fc2.bias": (8,),
    "norm.weight": (8,),
    "norm.bias": (8,),
}
SCALES = {"blocks.0.ls1.gamma": (8,), "blocks.0.ls2.gamma": (8,)}


def shapes(encoder):
    return jax.eval_shape(encoder.make().init, jax.random.key(0))["params"]


def sizes(encoder):
    """Parameters and tensors; all blocks are alike, and two of them traced."""

    def of(depth):
        leaves = jax.tree.leaves(shapes(dataclasses.replace(encoder, depth=depth)))
        return np.array([sum(math.prod(a.shape) for a in leaves), len(leaves)])

    one, two = of(1), of(2)
    return tuple(map(int, one + (encoder.depth - 1) * (two - one)))


def drawn(encoder, seed=0):
    """Parameters with nothing at its initial value, drawn without compiling."""
    rng = np.random.default_rng(seed)
    draw = lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype)
    return jax.tree.map(draw, shapes(encoder))


def saved(tmp_path, encoder, change=lambda tensors: tensors):
    """A file of weights, and the parameters in it."""
    params, path = drawn(encoder), tmp_path / "vit.safetensors"
    pretrained.save(path, params, {})
    save_file(change(load_file(path)), path)
    encoder.weights = str(path)
    return params


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def pixels(side, n=2):
    rng = np.random.default_rng(side)
    return jnp.asarray(rng.integers(0, 256, (n, side, side, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "change", "without"),
    [
        ({}, {}, ()),
        ({"layer_scale": 1e-5}, SCALES, ()),
        ({"registers": 3}, {"reg_token": (1, 3, 8), "pos_embed": (1, 20, 8)}, ()),
        ({"positions": Positions.patches}, {"pos_embed": (1, 16, 8)}, ()),
        ({"positions": Positions.rotary}, {}, ("pos_embed",)),
        ({"bias": Bias.none}, {}, ("blocks.0.attn.qkv.bias",)),
        ({"mlp": Mlp.swiglu}, {"blocks.0.mlp.fc2.weight": (8, 6)}, ()),
    ],
)
def test_names_and_shapes_are_timms(tmp_path, options, change, without):
    encoder = ViTEncoder(**TINY | options)
    saved(tmp_path, encoder)
    found = {name: a.shape for name, a in load_file(encoder.weights).items()}
    assert found == {n: s for n, s in (PLAIN | change).items() if n not in without}


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
def test_every_known_encoder_can_be_built(name):
    it = foundation_models.foundation_model(name)
    it.encoder.check_tile("grid.size_px", it.tile_px)
    if name in COUNTS:
        assert sizes(it.encoder)[0] == COUNTS[name]
    first = dataclasses.replace(it.encoder, depth=1)
    made, params = first.make(), {"params": shapes(first)}
    tiles = jax.ShapeDtypeStruct((2, it.tile_px, it.tile_px, 3), jnp.uint8)
    assert jax.eval_shape(made.apply, params, tiles).shape == (2, made.dim)
    assert f"| `{name}` |" in foundation_models.markdown_table()


def test_a_dinov3_has_as_many_tensors_as_its_file():
    assert sizes(foundation_models.foundation_model("dinov3_s").encoder)[1] == 162


def test_an_unknown_encoder_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'virchov2'.*did you mean virchow2"):
        foundation_models.foundation_model("virchov2")


def test_every_known_encoder_is_new():
    foundation_models.foundation_model("uni").encoder.weights = "mine.safetensors"
    assert foundation_models.foundation_model("uni").encoder.weights == ""


def test_a_file_has_its_classifier_and_mask_token_ignored(tmp_path):
    encoder = ViTEncoder(**TINY)
    more = {
        "head.weight": np.zeros((5, 8), np.float32),
        "fc.bias": np.zeros(5, np.float32),
        "mask_token": np.zeros((1, 8), np.float32),
        "blocks.0.attn.qkv.bias_mask": np.zeros(24, np.float32),
        "rope_embed.periods": np.zeros(1, np.float32),
    }
    params = saved(tmp_path, encoder, lambda tensors: tensors | more)
    same(encoder.params()["params"], params)


def test_all_that_does_not_fit_is_named(tmp_path):
    def spoil(tensors):
        tensors["blocks.0.attn.q_norm.weight"] = tensors.pop("blocks.0.ls2.gamma")
        tensors["pos_embed"] = np.zeros((1, 26, 8), np.float32)
        return tensors

    encoder = ViTEncoder(**TINY, layer_scale=1e-5)
    saved(tmp_path, encoder, spoil)
    with pytest.raises(WeightsError) as caught:
        encoder.params()
    message = str(caught.value)
    assert "missing from the file: blocks.0.ls2.gamma;" in message
    assert "unexpected in the file: blocks.0.attn.q_norm.weight;" in message
    assert "of another shape: pos_embed (1, 26, 8) for (1, 17, 8);" in message
    assert "width=8, depth=1, hidden=12, patch=4, registers=0, mlp=gelu" in message


def test_weights_of_other_heads_are_refused_though_their_shapes_agree(tmp_path):
    encoder, path = ViTEncoder(**TINY), tmp_path / "ours.safetensors"
    origin = WeightsMetadata(encoder.describe(), (), (), {})
    pretrained.save(path, drawn(encoder), to_header(origin))
    other = ViTEncoder(**TINY | {"heads": 4}, weights=str(path))
    with pytest.raises(
        WeightsError, match="an encoder of heads=2; this one has heads=4"
    ):
        other.params()
    encoder.weights = str(path)
    assert encoder.training_ids() == ()


def split(tensors, name, names):
    """A tensor in several of equal length."""
    parts = np.split(tensors.pop(name), len(names))
    return dict(zip(names, parts, strict=True))


def as_dinov2(tensors):
    old = {"reg_token": "register_tokens", "mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    return renamed(tensors, old)


def as_dinov3(tensors):
    for end in ("weight", "bias"):
        names = [f"blocks.0.mlp.{w}.{end}" for w in ("w1", "w2")]
        tensors |= split(tensors, f"blocks.0.mlp.fc1.{end}", names)
    return renamed(tensors, {"reg_token": "storage_tokens", "mlp.fc2": "mlp.w3"})


def as_eva(tensors):
    for end in ("weight", "bias"):
        names = [f"blocks.0.mlp.{w}.{end}" for w in ("fc1_g", "fc1_x")]
        tensors |= split(tensors, f"blocks.0.mlp.fc1.{end}", names)
    return renamed(tensors, {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"})


def as_transformers(tensors, norms=("norm1", "norm2"), mlp=("mlp.fc1", "mlp.fc2")):
    """`Dinov2Model`; with other names `ViTModel`."""
    for end in ("weight", "bias"):
        names = [f"attention.attention.{x}.{end}" for x in ("query", "key", "value")]
        names = [f"blocks.0.{name}" for name in names]
        tensors |= split(tensors, f"blocks.0.attn.qkv.{end}", names)
    tensors["layernorm.weight"] = tensors.pop("norm.weight")
    tensors["layernorm.bias"] = tensors.pop("norm.bias")
    old = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        "norm1": norms[0],
        "norm2": norms[1],
        "mlp.fc1": mlp[0],
        "mlp.fc2": mlp[1],
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    return renamed(tensors, old)


def as_vit_model(tensors):
    norms = "layernorm_before", "layernorm_after"
    return as_transformers(tensors, norms, ("intermediate.dense", "output.dense"))


def renamed(tensors, names):
    def one(name):
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return {one(name): tensor for name, tensor in tensors.items()}


GATED = {"mlp": Mlp.swiglu, "registers": 2, "layer_scale": 0.1}


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (GATED, as_dinov2),
        (GATED | {"positions": Positions.rotary}, as_dinov3),
        (GATED | {"positions": Positions.rotary}, as_eva),
        ({"layer_scale": 0.1}, as_transformers),
        ({}, as_vit_model),
    ],
)
def test_other_names_are_found(tmp_path, options, change):
    encoder = ViTEncoder(**TINY | options)
    params = saved(tmp_path, encoder, change)
    assert load_file(encoder.weights).keys() != PLAIN.keys()
    same(encoder.params()["params"], params)


def test_positions_on_their_own_grid_are_themselves():
    grid = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 3)), jnp.float32)
    same(position_embedding.resize_positions(grid, 4, 4), grid)
    other = position_embedding.resize_positions(grid, 6, 3)
    assert other.shape == (6, 3, 3)
    ones = position_embedding.resize_positions(jnp.ones((4, 4, 3)), 6, 3)
    np.testing.assert_allclose(ones, jnp.ones((6, 3, 3)), rtol=1e-5)


def test_rotary_positions_turn_patches_alone_and_tell_how_far_apart_they_are():
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 2 + 6, 1, 8)), jnp.float32)
    # Everywhere the same query and key: what they say to each other is how far apart.
    q, k = (jnp.broadcast_to(a[:, :1], a.shape) for a in (q, k))
    turns = position_embedding.rotary_angles(2, 3, 8)
    turned = position_embedding.apply_rotary(q, turns)
    same(turned[:, :2], q[:, :2])
    assert not jnp.allclose(turned[:, 2:], q[:, 2:])
    norms = lambda a: jnp.linalg.norm(a, axis=-1)
    np.testing.assert_allclose(norms(turned), norms(q), rtol=1e-5)
    said = jnp.einsum(
        "bqhd,bkhd->qk", turned, position_embedding.apply_rotary(k, turns)
    )[2:, 2:]
    said = said.reshape(2, 3, 2, 3)
    right = [said[0, x, 0, x + 1] for x in (0, 1)] + [said[1, 0, 1, 1]]
    np.testing.assert_allclose(right, 3 * [right[0]], rtol=1e-4)
    assert not np.isclose(said[0, 0, 0, 0], right[0], rtol=1e-3)
    with pytest.raises(ValueError, match="heads of 6 numbers"):
        position_embedding.rotary_angles(2, 3, 6)


@pytest.mark.parametrize("kind", Positions)
def test_places_matter(kind):
    """Patches that change places change what the class token says."""
    encoder = ViTEncoder(**TINY | {"width": 16}, positions=kind, registers=1)
    params, apply = {"params": drawn(encoder)}, jax.jit(encoder.make().apply)
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

    found, cells = everything({"params": drawn(encoder)}, pixels(16))
    for name, features in found.items():
        assert features.shape == (2, made[name].dim)
        assert features.dtype == jnp.float32
    both = jnp.concatenate([found["class_token"], found["mean"]], -1)
    np.testing.assert_allclose(found["class_and_mean"], both, rtol=1e-6)
    assert cells.shape == (2, 4, 4, 8)
    mean = cells.astype(jnp.float32).mean((1, 2))
    np.testing.assert_allclose(mean, found["mean"], rtol=1e-5, atol=1e-6)


def test_every_parameter_learns_but_the_bias_that_is_left_out():
    encoder = ViTEncoder(**TINY | GATED, bias=Bias.no_key, output=Output.class_and_mean)
    params, apply = {"params": drawn(encoder)}, encoder.make().apply
    energy = lambda p: (apply(p, pixels(16)) ** 2).sum()
    grads = flatten_dict(jax.jit(jax.grad(energy))(params)["params"])
    for path, grad in grads.items():
        whole = np.ones(grad.shape, bool)
        if path[-2:] == ("qkv", "bias"):
            whole[8:16] = False
        assert ((np.asarray(grad) != 0) == whole).mean() > 0.99, path


def test_a_random_one_begins_with_its_layer_scale_and_sees_any_multiple():
    encoder = ViTEncoder(**TINY, layer_scale=0.25)
    params = jax.jit(lambda key: encoder.init_on_batch(key, None))(jax.random.key(0))
    assert (params["params"]["blocks"]["0"]["ls1"]["gamma"] == 0.25).all()
    seen = lambda side: jax.eval_shape(encoder.make().apply, params, pixels(side))
    assert seen(12).shape == (2, 8)
    with pytest.raises(ValueError, match="18 x 18 px do not divide into patches of 4"):
        seen(18)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"heads": 3}, "width=8 does not divide by heads=3"),
        ({"depth": 0}, "no number below 1"),
        ({"native_px": 18}, "native_px=18 is no multiple of patch=4"),
        ({"mlp": Mlp.swiglu, "hidden": 13}, "half are gates"),
        ({"heads": 4, "positions": Positions.rotary}, "heads of 2 numbers"),
    ],
)
def test_what_cannot_be_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        config_io.validate(ViTEncoder(**TINY | change))


def test_a_description_tells_all_but_the_seed_and_goes_to_json_and_back():
    encoder = ViTEncoder(**TINY, mlp=Mlp.swiglu)
    told = encoder.describe()
    assert told["mlp"] == "swiglu"
    assert told["weights"] == "random:0"
    assert "seed" not in told
    assert config_io.from_plain(config_io.to_plain(encoder)) == encoder


def test_methods_that_look_at_crops_take_the_map_of_their_patches():
    encoder = ViTEncoder(**TINY, output=Output.class_and_mean)
    reader = CropClassifier(encoder, CropHead(2, width=4), deviation=True, chunk=None)
    params = jax.eval_shape(reader.init, jax.random.key(0))
    crops = jax.ShapeDtypeStruct((1, 3, 16, 16, 3), jnp.uint8)
    assert jax.eval_shape(reader.encode, params, crops).shape == (1, 3, 2 * 8)
