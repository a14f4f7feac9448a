import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from wsi_jax.nets import pretrained
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.pretrained import WeightsError

SMALL = {"width": 4, "stages": 2, "norm": NormKind.frozen}


def random_like(encoder, seed=0):
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(encoder.make().init, jax.random.key(0))
    draw = lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return jax.tree.map(draw, like)


@pytest.fixture
def weights(tmp_path):
    """A file of a small ResNet-18 as torchvision would have saved it, and its tree."""
    path, params = tmp_path / "small.safetensors", random_like(Encoder(**SMALL))
    pretrained.save(path, params["params"], {"made by": "a test"})
    tensors = load_file(path) | {
        "fc.weight": np.zeros((10, 8), np.float32),
        "fc.bias": np.zeros(10, np.float32),
        "bn1.num_batches_tracked": np.array(3),
        "layer3.0.conv1.weight": np.zeros((16, 8, 3, 3), np.float32),
        "layer4.0.bn2.running_var": np.zeros(32, np.float32),
    }
    save_file(tensors, path)
    return path, params


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_round_trip_changes_no_bit(tmp_path):
    params = random_like(Encoder(**SMALL, depth=Depth.resnet50))["params"]
    params["head"] = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path = tmp_path / "net.safetensors"
    pretrained.save(path, params, {"commit": "abc", "data": "none"})
    same(pretrained.load(path, params), params)
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"commit": "abc", "data": "none"}


def test_files_are_in_pytorchs_names_and_layout(weights):
    path, params = weights
    tensors, ours = load_file(path), params["params"]
    kernel, block = ours["conv1"]["kernel"], ours["layer2"]["0"]
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7)
    assert tensors["conv1.weight"][3, 2, 1, 0] == kernel[1, 0, 2, 3]
    same(tensors["bn1.weight"], ours["bn1"]["scale"])
    same(tensors["bn1.bias"], ours["bn1"]["bias"])
    same(tensors["bn1.running_mean"], ours["bn1"]["mean"])
    same(tensors["layer2.0.downsample.1.running_var"], block["downsample"]["1"]["var"])


def test_an_encoder_takes_what_it_has_and_no_classifier(weights):
    path, params = weights
    encoder = Encoder(**SMALL, weights=str(path))
    same(encoder.params(), params)
    provenance = encoder.provenance()
    assert provenance.startswith("sha256:")
    edit(path, lambda tensors: tensors.update({"fc.bias": np.ones(10, np.float32)}))
    assert encoder.provenance() != provenance
    assert encoder.describe()["weights"] == encoder.provenance()


def test_half_precision_files_become_float32(weights):
    path, params = weights
    half = {name: a.astype(jnp.bfloat16) for name, a in load_file(path).items()}
    save_file(half, path)
    loaded = Encoder(**SMALL, weights=str(path)).params()
    same(loaded, jax.tree.map(lambda a: np.float32(a.astype(jnp.bfloat16)), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}


def test_all_that_does_not_fit_is_named(weights):
    path, _ = weights

    def spoil(tensors):
        del tensors["layer1.0.conv1.weight"]
        tensors["layer1.0.conv3.weight"] = np.zeros((4, 4, 3, 3), np.float32)
        tensors["conv1.weight"] = np.zeros((4, 3, 3, 3), np.float32)

    edit(path, spoil)
    with pytest.raises(WeightsError) as caught:
        Encoder(**SMALL, weights=str(path)).params()
    message = str(caught.value)
    assert f"{path} does not fit" in message
    assert "missing from the file: layer1.0.conv1.weight;" in message
    assert "unexpected in the file: layer1.0.conv3.weight;" in message
    assert "of another shape: conv1.weight (4, 3, 3, 3) for (4, 3, 7, 7);" in message
    assert "depth=resnet18, stages=2, width=4, norm=frozen" in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stages": 3}, "missing from the file: layer3.0.bn1.bias"),
        ({"stages": 1}, None),
        ({"norm": NormKind.layer}, "unexpected in the file: bn1.running_mean"),
        ({"width": 8}, r"bn1.bias \(4,\) for \(8,\)"),
        ({"depth": Depth.resnet34}, "layer1.2.bn1.bias"),
    ],
)
def test_another_net_is_refused(weights, change, complaint):
    path, params = weights
    encoder = Encoder(**SMALL | change, weights=str(path))
    if complaint:
        with pytest.raises(WeightsError, match=complaint):
            encoder.params()
    else:
        loaded = encoder.params()["params"]
        same(loaded, {name: params["params"][name] for name in loaded})


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="net"):
        Encoder(weights=str(path)).params()
    path.write_bytes(b"PK\x03\x04 a pickle, as likely as not" + bytes(100))
    with pytest.raises(WeightsError, match=r"net\.safetensors is not a safetensors"):
        Encoder(weights=str(path)).params()
