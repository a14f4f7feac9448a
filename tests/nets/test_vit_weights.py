"""Vision transformers have timm's names and shapes, and load what others saved."""

import jax
import numpy as np
import pytest
import vits
from safetensors.numpy import load_file, save_file
from vits import TINY

from wsi_jax.nets import pretrained
from wsi_jax.nets.pretrained import WeightsError
from wsi_jax.nets.transformer import Bias, MlpKind
from wsi_jax.nets.vit import PositionKind
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header

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


def saved(tmp_path, encoder, change=lambda tensors: tensors):
    """A file of weights, and the parameters in it."""
    params, path = vits.drawn(encoder), tmp_path / "vit.safetensors"
    pretrained.save(path, params, {})
    save_file(change(load_file(path)), path)
    encoder.weights = str(path)
    return params


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("options", "change", "without"),
    [
        ({}, {}, ()),
        ({"layer_scale": 1e-5}, SCALES, ()),
        ({"registers": 3}, {"reg_token": (1, 3, 8), "pos_embed": (1, 20, 8)}, ()),
        ({"positions": PositionKind.patches}, {"pos_embed": (1, 16, 8)}, ()),
        ({"positions": PositionKind.rotary}, {}, ("pos_embed",)),
        ({"bias": Bias.none}, {}, ("blocks.0.attn.qkv.bias",)),
        ({"mlp": MlpKind.swiglu}, {"blocks.0.mlp.fc2.weight": (8, 6)}, ()),
    ],
)
def test_names_and_shapes_are_timms(tmp_path, options, change, without):
    encoder = ViTEncoder(**TINY | options)
    saved(tmp_path, encoder)
    ours = {name: a.shape for name, a in load_file(encoder.weights).items()}
    assert ours == {n: s for n, s in (PLAIN | change).items() if n not in without}


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


def test_weights_of_other_heads_are_refused_though_their_shapes_agree(tmp_path):
    encoder, path = ViTEncoder(**TINY), tmp_path / "ours.safetensors"
    metadata = WeightsMetadata(encoder.describe(), (), (), {})
    pretrained.save(path, vits.drawn(encoder), to_header(metadata))
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


GATED = {"mlp": MlpKind.swiglu, "registers": 2, "layer_scale": 0.1}


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (GATED, as_dinov2),
        (GATED | {"positions": PositionKind.rotary}, as_dinov3),
        (GATED | {"positions": PositionKind.rotary}, as_eva),
        ({"layer_scale": 0.1}, as_transformers),
        ({}, as_vit_model),
    ],
)
def test_other_libraries_names_load(tmp_path, options, change):
    encoder = ViTEncoder(**TINY | options)
    params = saved(tmp_path, encoder, change)
    assert load_file(encoder.weights).keys() != PLAIN.keys()
    same(encoder.params()["params"], params)
