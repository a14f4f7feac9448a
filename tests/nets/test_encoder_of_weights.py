"""An encoder of ours is taken as its file of weights describes it."""

import jax
import numpy as np
import pytest
from vits import TINY, drawn
from words import config_from

from wsi_jax.nets import pretrained
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.encoder_of_weights import encoder_of_weights
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.transformer import MlpKind
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header
from wsi_jax.run.config_file import read_config
from wsi_jax.types import Dtype

ENCODERS = {
    "resnet": Encoder(width=4, stages=2, norm=NormKind.group, mean=(0.7, 0.5, 0.7)),
    "convnext": ConvNeXtEncoder(blocks=(1,), width=8, stem=8, scale=0.5),
    "vit": ViTEncoder(**TINY, mlp=MlpKind.swiglu, output=Output.class_and_mean),
}


@pytest.fixture(params=ENCODERS)
def written(request, tmp_path):
    """An encoder, and its file."""
    encoder, path = ENCODERS[request.param], tmp_path / "mine.safetensors"
    metadata = WeightsMetadata(encoder.describe(), (), (), {})
    pretrained.save(path, jax.device_get(drawn(encoder)), to_header(metadata))
    return encoder, str(path)


def test_the_file_alone_tells_its_encoder(written):
    encoder, path = written
    like = Encoder(norm=NormKind.frozen, weights=path, dtype=Dtype.bfloat16, seed=3)
    taken = encoder_of_weights(like)
    assert type(taken) is type(encoder)
    assert (taken.weights, taken.dtype, taken.seed) == (path, Dtype.bfloat16, 3)
    taken.dtype, taken.seed = Dtype.float32, 0
    jax.tree.map(
        np.testing.assert_array_equal, taken.params()["params"], drawn(encoder)
    )
    assert taken.describe() == encoder.describe() | {"weights": taken.provenance()}


def test_the_command_takes_the_weights_alone_and_what_stands_beside_them(written):
    encoder, path = written
    config = f"--config.encoder.weights={path}"
    with config_from(f"--config={ABMIL}", config) as read:
        assert type(read.encoder) is type(encoder)
        read.check_trunks()
        assert read.encoder.make().dim == encoder.make().dim
    with config_from(
        f"--config={ABMIL}", config, "--config.encoder.mean=(0.5,0.5,0.5)"
    ) as read:
        assert read.encoder.mean == (0.5, 0.5, 0.5)
        with pytest.raises(ValueError, match=r"made for an encoder of mean="):
            read.encoder.training_ids()


def test_a_file_of_other_software_and_a_config_of_ours_are_left_alone(
    written, tmp_path
):
    encoder, path = written
    plain = tmp_path / "plain.safetensors"
    pretrained.save(plain, jax.device_get(drawn(encoder)), {})
    for weights in (plain, tmp_path / "gone", ""):
        like = Encoder(weights=str(weights))
        assert encoder_of_weights(like) is like
    config = read_config(ABMIL, "Experiment")
    config.encoder.weights = path
    assert config.encoder.norm is NormKind.frozen


ABMIL = "wsi_jax/configs/abmil.py"
