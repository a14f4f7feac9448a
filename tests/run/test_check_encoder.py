"""An encoder against its PyTorch original: on its own weights, and on others."""

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image
from vits import drawn

from wsi_jax.nets import pretrained
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.nets.torch_reference_vit import torch_features
from wsi_jax.run.check_encoder import (
    AT_ONCE,
    _in_batches,
    check_encoder,
    cosines,
    is_alike,
    read_pixels,
    report,
)

NAME = "lunit_s16"


def test_without_pytorch_it_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="not installed: pip install torch"):
        check_encoder(NAME, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"no encoder 'lunit'.*mean lunit_s"):
        check_encoder("lunit", "w.safetensors")
    with pytest.raises(ValueError, match=r"--weights gone\.safetensors: no such file"):
        check_encoder(NAME, "gone.safetensors")


def test_tiles_are_the_middle_of_images_or_lie_on_tissue(tmp_path):
    model = foundation_model(NAME)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (230, 300, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    (tile,) = read_pixels(model, str(tmp_path), None)
    np.testing.assert_array_equal(tile, image[3:227, 38:262])
    Image.fromarray(image[:200]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: 300 x 200 px.* have 224"):
        read_pixels(model, str(tmp_path), None)
    slide = np.full((900, 900, 3), 245, np.uint8)
    slide[224:672, 224:672] = (150, 60, 120)
    path = tmp_path / "slide.png"
    Image.fromarray(slide).save(path)
    pixels = read_pixels(model, str(path), 0.5)
    assert pixels.shape == (4, 224, 224, 3)
    assert pixels.mean() < 120
    assert read_pixels(model, "", None).shape == (32, 224, 224, 3)


def test_one_tile_below_the_limit_is_enough():
    good = np.full(5, 0.9995)
    assert is_alike(good)
    assert "5 tiles: cosine 0.999500 at worst" in report(good)
    for bad in (0.998, np.nan):
        other = np.append(good, bad)
        assert not is_alike(other)
        assert "NOT as the original" in report(other)


def test_batches_have_one_size_and_keep_the_order():
    pixels = np.arange(2 * AT_ONCE + 3, dtype=np.uint8).reshape(-1, 1, 1, 1)
    sizes = []

    def features(tiles):
        sizes.append(len(tiles))
        return tiles[:, 0, 0]

    np.testing.assert_array_equal(_in_batches(features, pixels), pixels[:, 0, 0])
    assert sizes == [AT_ONCE] * 3


@pytest.mark.parity
def test_random_weights_are_alike_and_others_are_not(tmp_path):
    pytest.importorskip("torch")
    encoder = foundation_model(NAME).encoder
    path = tmp_path / "w.safetensors"
    params = drawn(encoder)
    pretrained.save(path, params, {})
    rng = np.random.default_rng(0)
    for i in range(3):
        tile = rng.integers(0, 256, (224, 224, 3), np.uint8)
        Image.fromarray(tile).save(tmp_path / f"{i}.png")
    alike = check_encoder(NAME, str(path), str(tmp_path))
    assert len(alike) == 3
    assert is_alike(alike)
    encoder.weights = str(path)
    pixels = read_pixels(foundation_model(NAME), str(tmp_path), None)
    theirs = torch_features(encoder, pixels)
    wrong = torch_features(dataclasses.replace(encoder, mean=(0.3, 0.3, 0.3)), pixels)
    assert not is_alike(cosines(wrong, theirs))
