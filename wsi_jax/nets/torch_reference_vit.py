"""The vision transformers of timm and DINOv3 in PyTorch: what ours are held against."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from wsi_jax.nets.pretrained import read_tensors
from wsi_jax.nets.transformer import Bias, MlpKind
from wsi_jax.nets.vit import PositionKind
from wsi_jax.nets.vit_encoder import Output, ViTEncoder


def torch_features(
    encoder: ViTEncoder, pixels: UInt8[np.ndarray, "b h w 3"]
) -> Float[np.ndarray, "b d"]:
    """Features of tiles by PyTorch, in float32, with the weights of the encoder's file.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
        WeightsError: the file is no safetensors file.
    """
    import torch

    tensors = read_tensors(encoder.weights, encoder.rename)
    weights = {name: torch.from_numpy(a).float() for name, a in tensors.items()}
    x = (pixels / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    x = torch.from_numpy(x.transpose(0, 3, 1, 2)).float().contiguous()
    with torch.inference_mode():
        tokens = _tokens(encoder, weights, x)
        first, mean = tokens[:, 0], tokens[:, 1 + encoder.registers :].mean(1)
        match encoder.output:
            case Output.class_token:
                return first.numpy()
            case Output.class_and_mean:
                return torch.cat([first, mean], 1).numpy()
            case Output.mean:
                return mean.numpy()


def _tokens(c: ViTEncoder, w: dict[str, Any], pixels) -> Any:
    """Tokens [b t d] after the last norm."""
    from torch.nn import functional as F

    norm = lambda x, name: F.layer_norm(
        x, (c.width,), w[f"{name}.weight"], w[f"{name}.bias"], c.eps
    )
    x, turn = _embed(c, w, pixels)
    for i in range(c.depth):
        own = f"blocks.{i}."
        scale = lambda x, k, own=own: x * w[f"{own}ls{k}.gamma"] if c.layer_scale else x
        x = x + scale(_attend(c, w, own, norm(x, f"{own}norm1"), turn), 1)
        x = x + scale(_feed(c, w, own, norm(x, f"{own}norm2")), 2)
    return norm(x, "norm")


def _attend(c, w, own, x, turn):
    import torch
    from torch.nn import functional as F

    bias = None if c.bias is Bias.none else w[f"{own}attn.qkv.bias"]
    if c.bias is Bias.no_key:
        bias = bias * torch.tensor([1, 0, 1]).repeat_interleave(c.width)
    qkv = F.linear(x, w[f"{own}attn.qkv.weight"], bias).chunk(3, -1)
    split = lambda a: a.unflatten(-1, (c.heads, -1)).transpose(1, 2)
    q, k, v = map(split, qkv)
    x = F.scaled_dot_product_attention(turn(q), turn(k), v)
    return _linear(w, f"{own}attn.proj", x.transpose(1, 2).flatten(2))


def _feed(c, w, own, x):
    from torch.nn import functional as F

    x = _linear(w, f"{own}mlp.fc1", x)
    if c.mlp is MlpKind.swiglu:
        gate, value = x.chunk(2, -1)
        x = F.silu(gate) * value
    else:
        x = F.gelu(x)
    return _linear(w, f"{own}mlp.fc2", x)


def _linear(w, name, x):
    from torch.nn import functional as F

    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _embed(c, w, pixels):
    """Tokens with their positions, and how queries and keys turn."""
    import torch
    from torch.nn import functional as F

    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    maps = F.conv2d(pixels, kernel, bias, c.patch)
    (h, width), b = maps.shape[2:], len(pixels)
    x = maps.flatten(2).transpose(1, 2)
    prefix = [w["cls_token"].expand(b, -1, -1)]
    prefix += [w["reg_token"].expand(b, -1, -1)] if c.registers else []
    if c.positions is PositionKind.rotary:
        return torch.cat([*prefix, x], 1), _rotation(c, h, width)
    side, positions = c.native_px // c.patch, w["pos_embed"]
    n = positions.shape[1] - side**2
    before, grid = positions[:, :n], positions[:, n:]
    if (h, width) != (side, side):
        grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (h, width), mode="bicubic", antialias=True)
        grid = grid.flatten(2).transpose(1, 2)
    x = torch.cat([*prefix, x + grid], 1)
    if n:
        x = torch.cat([x[:, :n] + before, x[:, n:]], 1)
    return x, lambda q: q


def _rotation(c, h, w):
    """DINOv3's turn of q [b heads t d], for the last h * w tokens."""
    import torch

    d = c.width // c.heads
    periods = 100 ** (2 * torch.arange(d // 4) / (d // 2))
    at = lambda n: 2 * (torch.arange(n) + 0.5) / n - 1
    coords = torch.stack(torch.meshgrid(at(h), at(w), indexing="ij"), -1).flatten(0, 1)
    angle = (2 * math.pi * coords[:, :, None] / periods).flatten(1, 2).tile(2)

    def turn(q):
        before, q = q[:, :, : -h * w], q[:, :, -h * w :]
        a, b = q.chunk(2, -1)
        q = q * angle.cos() + torch.cat([-b, a], -1) * angle.sin()
        return torch.cat([before, q], 2)

    return turn
