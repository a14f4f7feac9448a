"""Weight for weight the network of torchvision, written here in PyTorch."""

import jax
import jax.numpy as jnp
import pytest

from wsi_jax.nets import pretrained
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind

torch = pytest.importorskip("torch")
from parity import error, pixels, standardised  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.parity

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def conv(d_in, d, size, stride):
    return nn.Conv2d(d_in, d, size, stride, size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, d_in, d, stride, bottleneck):
        super().__init__()
        plan = [(d_in, d, 3, stride), (d, d, 3, 1)]
        if bottleneck:
            inner = d // 4
            plan = [(d_in, inner, 1, 1), (inner, inner, 3, stride), (inner, d, 1, 1)]
        self.n = len(plan)
        for i, shape in enumerate(plan, start=1):
            setattr(self, f"conv{i}", conv(*shape))
            setattr(self, f"bn{i}", nn.BatchNorm2d(shape[1]))
        self.downsample = None
        if stride != 1 or d_in != d:
            self.downsample = nn.Sequential(conv(d_in, d, 1, stride), nn.BatchNorm2d(d))

    def forward(self, x):
        y = x
        for i in range(1, self.n + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.n else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        wide = 4 if depth == 50 else 1
        d_in, d, stride = 64, 64 * wide, 1
        for stage, n in enumerate(BLOCKS[depth], start=1):
            blocks = [Block(d_in, d, stride, depth == 50)]
            blocks += [Block(d, d, 1, depth == 50) for _ in range(n - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            d_in, d, stride = d, 2 * d, 2
        self.fc = nn.Linear(d_in, 1000)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@pytest.fixture(scope="module", params=[18, 34, 50])
def theirs(request, tmp_path_factory):
    """A torch network in float64 with nothing at its initial value, and its file."""
    torch.manual_seed(0)
    net = ResNet(request.param).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for a in (module.weight, module.bias, module.running_mean):
                a.data = a.data + 0.3 * torch.randn_like(a)
            module.running_var = 0.5 + torch.rand_like(module.running_var)
    path = tmp_path_factory.mktemp("torch") / f"resnet{request.param}.safetensors"
    save_file(net.state_dict(), path)
    return Depth(request.param), net, path


def ours(depth, path, dtype):
    """Our trunk and its parameters, both in `dtype`."""
    encoder = Encoder(depth=depth, norm=NormKind.frozen)
    net = encoder.trunk().clone(dtype=dtype)
    like = jax.eval_shape(encoder.make().init, jax.random.key(0))["params"]
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), like)
    params = {"params": pretrained.load(path, like, ("fc.",))}
    return encoder, net, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_features_are_torchs(x64, theirs, dtype, bound):
    depth, net, path = theirs
    encoder, trunk, params = ours(depth, path, dtype)
    for size in (64, 97):
        x = pixels(size)
        there = net(standardised(x, encoder)).permute(0, 2, 3, 1)
        here = jax.jit(trunk.apply)(params, jnp.asarray(x))
        assert here.shape == there.shape
        assert here.dtype == dtype
        assert error(here, there) <= bound


def test_gradients_are_torchs(x64, theirs):
    depth, net, path = theirs
    encoder, trunk, params = ours(depth, path, "float64")
    x = pixels(64)
    net.zero_grad()
    net(standardised(x, encoder)).square().mean().backward()
    energy = lambda p: (trunk.apply(p, jnp.asarray(x)) ** 2).mean()
    grads = jax.jit(jax.grad(energy))(params)["params"]
    for name in ("0", "1"):
        here, there = grads["layer2"][name], net.layer2[int(name)]
        assert error(here["bn2"]["scale"], there.bn2.weight.grad) <= 1e-10
        kernel = there.conv2.weight.grad.permute(2, 3, 1, 0)
        assert error(here["conv2"]["kernel"], kernel) <= 1e-10
    kernel = net.conv1.weight.grad.permute(2, 3, 1, 0)
    assert error(grads["conv1"]["kernel"], kernel) <= 1e-10
    assert error(grads["bn1"]["bias"], net.bn1.bias.grad) <= 1e-10
