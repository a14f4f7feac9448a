"""What tests against PyTorch share."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def pixels(side, n=2):
    return np.random.default_rng(side).integers(0, 256, (n, side, side, 3), np.uint8)


def standardised(x, encoder):
    """Pixels as torchvision's transforms leave them: [b 3 h w]."""
    x = (x / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous()


def error(a, b):
    """Largest difference, relative to the largest value."""
    b = b.detach().numpy()
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
