"""Weights in CLAM's names load into a PyTorch model of those names: equal logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.nets.attention import AttentionHead
from wsi_jax.nets.export_clam_weights import save_clam

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.parity


class Gated(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(512, 256), nn.Tanh())
        self.attention_b = nn.Sequential(nn.Linear(512, 256), nn.Sigmoid())
        self.attention_c = nn.Linear(256, branches)

    def forward(self, h):
        return self.attention_c(self.attention_a(h) * self.attention_b(h)), h


class Model(nn.Module):
    def __init__(self, dim, classes, branches):
        super().__init__()
        layers = nn.Linear(dim, 512), nn.ReLU(), nn.Dropout(0.25), Gated(branches)
        self.attention_net = nn.Sequential(*layers)
        several = [nn.Linear(512, 1) for _ in range(classes)]
        one = branches == 1
        self.classifiers = nn.Linear(512, classes) if one else nn.ModuleList(several)
        two = [nn.Linear(512, 2) for _ in range(classes)]
        self.instance_classifiers = nn.ModuleList(two)

    def forward(self, x):
        logits, h = self.attention_net(x)
        pooled = logits.T.softmax(-1) @ h
        if isinstance(self.classifiers, nn.Linear):
            return self.classifiers(pooled)[0]
        pairs = zip(self.classifiers, pooled, strict=True)
        return torch.cat([layer(row) for layer, row in pairs])


@pytest.mark.parametrize("branches", [1, 3])
def test_a_model_of_these_names_gives_our_logits(tmp_path, key, branches):
    head = AttentionHead(3, branches)
    x = np.random.default_rng(0).normal(size=(11, 40)).astype(np.float32)
    params = jax.device_get(head.init(key, jnp.asarray(x)[None])["params"])
    save_clam(tmp_path / "model.safetensors", params)
    model = Model(40, 3, branches).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        theirs = model(torch.from_numpy(x))
    ours, _ = head.apply({"params": params}, jnp.asarray(x)[None])
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-6)
