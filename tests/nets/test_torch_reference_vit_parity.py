"""What `check-encoder` holds encoders against is timm's, by two other originals."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402
from test_vit_parity import error, pixels, standardised, theirs  # noqa: E402
from torch import nn  # noqa: E402

from wsi_jax.nets.foundation_models import foundation_model  # noqa: E402
from wsi_jax.nets.torch_reference_vit import torch_features  # noqa: E402
from wsi_jax.nets.transformer import MlpKind  # noqa: E402
from wsi_jax.nets.vit import PositionKind  # noqa: E402

pytestmark = pytest.mark.parity
__all__ = ["theirs"]  # a fixture


def test_what_encoders_are_checked_against_is_timms(theirs):
    """With no line in common with the modules here."""
    encoder, net = theirs
    x = pixels(6 * encoder.patch)
    *_, tokens = net.layers(standardised(x, encoder).float())
    assert error(torch_features(encoder, x), tokens[:, 0]) <= 1e-5


def timm_net(encoder):
    """A net of timm's own class."""
    timm = pytest.importorskip("timm", exc_type=ImportError)
    if encoder.positions is PositionKind.rotary:
        pytest.skip("DINOv3 is of another class: the test below")
    gated = encoder.mlp is MlpKind.swiglu
    kinds = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    net = timm.models.VisionTransformer(
        img_size=encoder.native_px,
        patch_size=encoder.patch,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=encoder.hidden / encoder.width,
        init_values=encoder.layer_scale or None,
        reg_tokens=encoder.registers,
        no_embed_class=encoder.positions is PositionKind.patches,
        num_classes=0,
        dynamic_img_size=True,
        **kinds if gated else {},
    )
    return net.eval()


def test_the_original_is_timms_own_class(theirs):
    encoder, net = theirs
    timms = timm_net(encoder)
    timms.load_state_dict(net.state_dict())
    x = pixels(encoder.native_px)
    with torch.no_grad():
        tokens = timms.forward_features(standardised(x, encoder).float())
    assert error(torch_features(encoder, x), tokens[:, 0]) <= 1e-5


def test_dinov3_is_timms_own_class(tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    net = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **small).eval()
    torch.manual_seed(0)
    for a in net.parameters():
        a.data += 0.3 * torch.randn_like(a)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    encoder = dataclasses.replace(
        foundation_model("dinov3_s").encoder,
        width=32, depth=2, heads=2, hidden=128, weights=str(tmp_path / "w.safetensors"),
    )  # fmt: skip
    x = pixels(64)
    with torch.no_grad():
        tokens = net.forward_features(standardised(x, encoder).float())
    assert error(torch_features(encoder, x), tokens[:, 0]) <= 1e-5
    apply = encoder.make().apply
    assert error(jax.jit(apply)(encoder.params(), jnp.asarray(x)), tokens[:, 0]) <= 1e-5
