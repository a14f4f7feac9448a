"""Weight for weight the vision transformers of timm, written here in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.nets.transformer import Bias, MlpKind
from wsi_jax.nets.vit import PositionKind
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.ops.position_embedding import resize_positions

torch = pytest.importorskip("torch")
from parity import error, pixels, standardised  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.parity

SMALL = {"width": 32, "depth": 2, "heads": 2, "hidden": 128, "native_px": 64}
VARIANTS = {
    "plain": {},
    "swiglu": {
        "patch": 14, "native_px": 56, "registers": 4, "layer_scale": 0.1,
        "mlp": MlpKind.swiglu, "hidden": 84, "positions": PositionKind.patches,
    },
    "registers with positions": {"registers": 2, "layer_scale": 0.1},
    "rotary": {
        "registers": 4, "layer_scale": 0.1, "positions": PositionKind.rotary,
        "bias": Bias.no_key, "eps": 1e-5,
    },
    "rotary without bias": {"positions": PositionKind.rotary, "bias": Bias.none},
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.no_key = c.heads, c.bias is Bias.no_key
        self.qkv = nn.Linear(c.width, 3 * c.width, bias=c.bias is not Bias.none)
        self.proj = nn.Linear(c.width, c.width)

    def forward(self, x, turn):
        bias = self.qkv.bias
        if self.no_key:
            bias = bias * torch.tensor([1, 0, 1]).repeat_interleave(x.shape[-1])
        qkv = F.linear(x, self.qkv.weight, bias)
        split = lambda a: a.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = map(split, qkv.chunk(3, -1))
        x = F.scaled_dot_product_attention(turn(q), turn(k), v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Feedforward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gated = c.mlp is MlpKind.swiglu
        self.fc1 = nn.Linear(c.width, c.hidden)
        self.fc2 = nn.Linear(c.hidden // (2 if self.gated else 1), c.width)

    def forward(self, x):
        x = self.fc1(x)
        if not self.gated:
            return self.fc2(F.gelu(x))
        gate, value = x.chunk(2, -1)
        return self.fc2(F.silu(gate) * value)


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        norm = lambda: nn.LayerNorm(c.width, c.eps)
        scale = lambda: Scale(c.width) if c.layer_scale else nn.Identity()
        self.norm1, self.attn, self.ls1 = norm(), Attention(c), scale()
        self.norm2, self.mlp, self.ls2 = norm(), Feedforward(c), scale()

    def forward(self, x, turn):
        x = x + self.ls1(self.attn(self.norm1(x), turn))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv2d(3, c.width, c.patch, c.patch)


class Transformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, side = c, c.native_px // c.patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.width))
        if c.registers:
            self.reg_token = nn.Parameter(torch.empty(1, c.registers, c.width))
        if c.positions is not PositionKind.rotary:
            n = 1 + c.registers if c.positions is PositionKind.tokens else 0
            self.pos_embed = nn.Parameter(torch.empty(1, n + side**2, c.width))
        self.patch_embed = Patches(c)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.depth)])
        self.norm = nn.LayerNorm(c.width, c.eps)

    def embed(self, pixels):
        """Tokens, and how queries and keys turn."""
        c, maps = self.c, self.patch_embed.proj(pixels)
        (h, w), b = maps.shape[2:], len(pixels)
        x = maps.flatten(2).transpose(1, 2)
        prefix = [self.cls_token.expand(b, -1, -1)]
        prefix += [self.reg_token.expand(b, -1, -1)] if c.registers else []
        if c.positions is PositionKind.rotary:
            return torch.cat([*prefix, x], 1), rotation(c, h, w)
        side = c.native_px // c.patch
        n = self.pos_embed.shape[1] - side**2
        before, grid = self.pos_embed[:, :n], self.pos_embed[:, n:]
        if (h, w) != (side, side):
            grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, (h, w), mode="bicubic", antialias=True)
            grid = grid.flatten(2).transpose(1, 2)
        x = torch.cat([*prefix, x + grid], 1)
        if n:
            x = torch.cat([x[:, :n] + before, x[:, n:]], 1)
        return x, lambda q: q

    def layers(self, pixels):
        x, turn = self.embed(pixels)
        yield x
        for block in self.blocks:
            x = block(x, turn)
            yield x
        yield self.norm(x)


def rotation(c, h, w):
    """DINOv3's: of q [b heads t d], for the last h * w tokens."""
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


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def theirs(request, tmp_path):
    """A torch network with nothing at its initial value, and an encoder of its file."""
    torch.manual_seed(0)
    encoder = ViTEncoder(**SMALL | request.param)
    net = Transformer(encoder).eval()
    for name, a in net.named_parameters():
        small = a.ndim == 1 or "token" in name or "pos" in name
        a.data = torch.randn_like(a) * (0.3 if small else a[0].numel() ** -0.5)
        a.data += "norm" in name and name.endswith("weight")
    path = tmp_path / "vit.safetensors"
    save_file(net.state_dict(), path)
    encoder.weights = str(path)
    return encoder, net


def ours(encoder):
    return jax.tree.map(jnp.asarray, encoder.params())


def layers(encoder, params, x):
    """What goes into the first block, comes out of each, and out of the last norm."""
    net = encoder.trunk()
    tokens, state = net.apply(
        params, x, method="tokens", capture_intermediates=True, mutable="intermediates"
    )
    blocks_out = state["intermediates"]["blocks"]
    blocks = [blocks_out[str(i)]["__call__"][0] for i in range(encoder.depth)]
    return [*blocks, tokens]


@pytest.mark.parametrize("grid", [4, 6, 3])
def test_layers_are_timms(theirs, grid):
    """On the grid of the positions, on a finer and on a coarser one."""
    encoder, net = theirs
    x = pixels(grid * encoder.patch)
    _, *there = net.layers(standardised(x, encoder).float())
    here = layers(encoder, ours(encoder), jnp.asarray(x))
    assert len(here) == len(there) == encoder.depth + 1
    for mine, other in zip(here, there, strict=True):
        assert error(mine, other) <= 1e-5


@pytest.mark.parametrize("output", Output)
def test_features_are_timms(theirs, output):
    encoder, net = theirs
    encoder.output = output
    x = pixels(encoder.native_px)
    *_, tokens = net.layers(standardised(x, encoder).float())
    first, mean = tokens[:, 0], tokens[:, 1 + encoder.registers :].mean(1)
    there = {
        Output.class_token: first,
        Output.class_and_mean: torch.cat([first, mean], 1),
        Output.mean: mean,
    }[output]
    made = encoder.make()
    here = jax.jit(made.apply)(ours(encoder), jnp.asarray(x))
    assert here.shape == there.shape == (2, made.dim)
    assert error(here, there) <= 1e-5


def test_gradients_are_timms(theirs):
    encoder, net = theirs
    x = pixels(encoder.native_px)
    *_, tokens = net.layers(standardised(x, encoder).float())
    tokens[:, 0].square().mean().backward()
    apply = encoder.make().apply
    energy = lambda p: (apply(p, jnp.asarray(x)) ** 2).mean()
    grads = jax.jit(jax.grad(energy))(ours(encoder))["params"]
    block = net.blocks[0]
    here = grads["blocks"]["0"]
    assert error(here["attn"]["qkv"]["kernel"].T, block.attn.qkv.weight.grad) <= 1e-4
    assert error(here["mlp"]["fc2"]["bias"], block.mlp.fc2.bias.grad) <= 1e-4
    assert error(grads["cls_token"], net.cls_token.grad) <= 1e-4
    if encoder.bias is not Bias.none:
        assert error(here["attn"]["qkv"]["bias"], block.attn.qkv.bias.grad) <= 1e-4


@pytest.mark.parametrize(("y", "x"), [(16, 16), (24, 18), (9, 14), (37, 5)])
def test_positions_are_interpolated_as_torch_does(y, x):
    grid = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
    there = F.interpolate(
        torch.from_numpy(grid).permute(2, 0, 1)[None], (y, x), mode="bicubic",
        antialias=True,
    )[0].permute(1, 2, 0)  # fmt: skip
    assert error(resize_positions(jnp.asarray(grid), y, x), there) <= 1e-5
