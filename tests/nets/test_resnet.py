import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import Norm, NormKind
from wsi_jax.nets.resnet import ResNet
from wsi_jax.types import Dtype

TINY = {"blocks": (1, 1), "bottleneck": False, "width": 8}
TINY_NECK = {"blocks": (1, 1), "bottleneck": True, "width": 4}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def resnet(shape, norm=NormKind.frozen, dtype="float32"):
    return ResNet(**shape, **IMAGENET, norm=norm, dtype=dtype)


def pixels(*shape):
    return jnp.array(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))


def lively(net, x):
    """Parameters with nothing at 0 or 1, drawn without compiling anything."""
    rng = np.random.default_rng(1)
    like = jax.eval_shape(net.init, jax.random.key(0), x)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                kaiming = math.sqrt(2 / math.prod(leaf.shape[:3]))
                a = rng.normal(0, kaiming, leaf.shape)
            case "scale" | "var":
                a = rng.uniform(0.8, 1.2, leaf.shape)
            case _:
                a = rng.uniform(-0.2, 0.2, leaf.shape)
        return a.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, like)


def names(depth):
    encoder = Encoder(depth=depth, norm=NormKind.frozen).make()
    params = jax.eval_shape(encoder.init, jax.random.key(0))["params"]
    return {".".join(path): leaf.shape for path, leaf in flatten_dict(params).items()}


def torchvision_modules(blocks, convolutions, projected):
    """Every conv and norm of torchvision's ResNet, as its state_dict has them."""
    modules = {"conv1", "bn1"}
    for stage, n in enumerate(blocks, start=1):
        for i in range(n):
            block = f"layer{stage}.{i}"
            for j in range(1, convolutions + 1):
                modules |= {f"{block}.conv{j}", f"{block}.bn{j}"}
        if stage in projected:
            modules |= {f"layer{stage}.0.downsample.{i}" for i in (0, 1)}
    return modules


@pytest.mark.parametrize(
    ("depth", "blocks", "convolutions", "projected", "parameters"),
    [
        (Depth.resnet18, (2, 2, 2, 2), 2, (2, 3, 4), 11_176_512),
        (Depth.resnet34, (3, 4, 6, 3), 2, (2, 3, 4), 21_284_672),
        (Depth.resnet50, (3, 4, 6, 3), 3, (1, 2, 3, 4), 23_508_032),
    ],
)
def test_names_and_sizes_are_torchvisions(
    depth, blocks, convolutions, projected, parameters
):
    ours = names(depth)
    assert {name.rpartition(".")[0] for name in ours} == torchvision_modules(
        blocks, convolutions, projected
    )
    # torchvision counts statistics as buffers, and 1,000 classes more than a trunk.
    learnt = {n: s for n, s in ours.items() if not n.endswith((".mean", ".var"))}
    assert sum(map(math.prod, learnt.values())) == parameters


def test_three_stages_of_resnet50_are_clams_1024_features():
    encoder = Encoder(depth=Depth.resnet50, stages=3).make()
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    assert jax.eval_shape(encoder.apply, params, x).shape == (2, encoder.dim)
    assert encoder.dim == 1024
    for stages in (0, 5):
        with pytest.raises(ValueError, match=f"stages is {stages}"):
            Encoder(stages=stages).make()


@pytest.mark.parametrize("norm", [NormKind.frozen, NormKind.layer])
def test_every_parameter_learns_but_frozen_statistics(norm):
    net = resnet(TINY, norm)
    x = pixels(2, 33, 40)
    params = lively(net, x)
    grads = jax.jit(jax.grad(lambda p: (net.apply(p, x) ** 2).sum()))(params)
    for path, grad in flatten_dict(grads).items():
        assert bool((grad != 0).any()) == (path[-1] not in ("mean", "var")), path


def test_bfloat16_is_float32_but_for_rounding():
    x = pixels(2, 64, 64)
    params = lively(resnet(TINY_NECK), x)
    exact, rounded = (
        jax.jit(resnet(TINY_NECK, dtype=dtype).apply)(params, x)
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == jnp.bfloat16
    error = jnp.linalg.norm(rounded.astype(jnp.float32) - exact)
    assert 0 < error < 0.02 * jnp.linalg.norm(exact)


def test_the_mean_colour_is_zero():
    """An image of the mean colour is as empty as the padding around it."""
    net = ResNet(
        **TINY,
        mean=(1 / 255, 2 / 255, 3 / 255),
        std=(1.0, 0.5, 0.25),
        norm=NormKind.frozen,
        dtype="float32",
    )
    grey = jnp.broadcast_to(jnp.uint8([1, 2, 3]), (1, 32, 32, 3))
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: a * (path[-1].key not in ("bias", "mean")), lively(net, grey)
    )
    apply = jax.jit(net.apply)
    features = apply(params, grey)
    chex.assert_trees_all_close(features, jnp.zeros((1, 4, 4, 16)), atol=1e-6)
    # Floats are not scaled to 1.
    x = pixels(1, 32, 32)
    same = apply(params, x), apply(params, x.astype(jnp.float32))
    chex.assert_trees_all_equal(*same)


@pytest.mark.parametrize(
    ("kind", "axes"), [(NormKind.layer, (3, 4)), (NormKind.group, (1, 2, 4))]
)
def test_moments_are_over_the_axes_that_the_papers_say(kind, axes):
    rng = np.random.default_rng(0)
    # Channels of different means: normalising each by itself is not the same.
    x = rng.normal(3, 2, (2, 5, 6, 8)) + rng.normal(0, 5, 8)
    scale, bias = rng.normal(size=(2, 8))
    split = x.reshape(2, 5, 6, 2, 4)
    mean, var = (f(split, axis=axes, keepdims=True) for f in (np.mean, np.var))
    expected = ((split - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    params = {"params": {"scale": scale, "bias": bias}}
    y = Norm(kind, groups=2).apply(params, jnp.array(x, jnp.float32))
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_random_encoders_differ_by_seed_and_say_so():
    one, again, two = (Encoder(seed=seed, stages=1, width=8) for seed in (1, 1, 2))
    kernels = [e.params()["params"]["conv1"]["kernel"] for e in (one, again, two)]
    chex.assert_trees_all_equal(*kernels[:2])
    assert not jnp.array_equal(*kernels[1:])
    assert one.provenance() == "random:1"
    assert one.describe() == again.describe()
    assert one.describe() != two.describe()


def test_features_are_float32_averages_of_the_map():
    encoder = Encoder(stages=1, width=8, dtype=Dtype.bfloat16)
    params, x = encoder.params(), pixels(2, 32, 32)
    features = jax.jit(encoder.make().apply)(params, x)
    assert features.dtype == jnp.float32
    cells = jax.jit(encoder.trunk().apply)(params, x).reshape(2, -1, 8)
    np.testing.assert_allclose(features, np.float64(cells).mean(1), rtol=0.01)
