import jax
import numpy as np
import pytest

from wsi_jax.nets import pretrained
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.pretrained import WeightsError
from wsi_jax.nets.weights_metadata import (
    WeightsMetadata,
    read_weights_metadata,
    to_header,
)

SMALL = {"width": 4, "stages": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small encoder and its classifier that say what made them."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    encoder = Encoder(**SMALL)
    fc = {"kernel": np.zeros((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    ids = ("tumor:1", "Gewebe:ü")
    made = {"commit": "abc", "config": {"val": 0.1}}
    metadata = WeightsMetadata(encoder.describe(), ("normal", "tumor"), ids, made)
    net = jax.device_get(encoder.params()["params"]) | {"fc": fc}
    pretrained.save(path, net, to_header(metadata))
    return str(path), metadata


def test_an_origin_comes_back_as_it_was(weights):
    path, metadata = weights
    assert read_weights_metadata(path) == metadata


def test_an_encoder_of_the_same_kind_takes_them_and_knows_what_they_saw(weights):
    path, metadata = weights
    encoder = Encoder(**SMALL, weights=path)
    assert encoder.training_ids() == metadata.training_ids
    fresh = Encoder(**SMALL).params()
    jax.tree.map(np.testing.assert_array_equal, encoder.params(), fresh)
    assert (
        Encoder(**SMALL | {"stages": 1}, weights=path).training_ids()
        == metadata.training_ids
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": NormKind.group}, "of norm=layer; this one has norm=group"),
        ({"depth": Depth.resnet34}, "of depth=resnet18; this one has depth=resnet34"),
        ({"width": 8}, "of width=4; this one has width=8"),
        ({"mean": (0.5, 0.5, 0.5)}, r"mean=\(0\.485, .*this one has mean=\(0\.5"),
    ],
)
def test_another_encoder_is_refused_even_where_all_shapes_agree(
    weights, change, message
):
    encoder = Encoder(**SMALL | change, weights=weights[0])
    for use in (encoder.training_ids, encoder.params):
        with pytest.raises(WeightsError, match=message):
            use()


def test_weights_made_elsewhere_say_nothing(tmp_path):
    path = tmp_path / "foreign.safetensors"
    net = jax.device_get(Encoder(**SMALL).params()["params"])
    pretrained.save(path, net, {"format": "pt"})
    assert read_weights_metadata(path) is None
    assert Encoder(**SMALL, weights=str(path)).training_ids() == ()
    assert Encoder(**SMALL).training_ids() == ()
