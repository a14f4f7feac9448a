"""Feature files: what is written is read; what is damaged is named."""

import h5py
import numpy as np
import pytest
from data.feature_files import metadata

from wsi_jax.data.features import (
    FeatureError,
    feature_shape,
    is_whole,
    lost_tiles,
    read_features,
    write_features,
)

METADATA = metadata(
    **{"shape": (3000, 2000), "mpp": 0.25, "size_px": 256, "overlap_px": 32},
    **{"config_hash": "0123456789abcdef", "bad_tiles": 3, "bad_reason": "torn"},
)


def bag(n=5, d=4):
    rng = np.random.default_rng(0)
    yx = rng.integers(0, 2000, (n, 2)).astype(np.int64)
    return rng.normal(size=(n, d)).astype(np.float32), yx


def refused(path, message):
    for read in (read_features, feature_shape):
        with pytest.raises(FeatureError, match=message):
            read(path)
    assert not is_whole(path, METADATA.config_hash)


@pytest.mark.parametrize("n", [5, 0])
def test_what_is_written_is_read(tmp_path, n):
    x, yx = bag(n)
    path = tmp_path / "features_resnet50" / "s.1.h5"
    write_features(path, x, yx, METADATA)
    features = read_features(path)
    np.testing.assert_array_equal(features.x, x.astype(np.float16))
    np.testing.assert_array_equal(features.yx, yx)
    assert feature_shape(path) == (n, 4)
    assert [p.name for p in path.parent.iterdir()] == ["s.1.h5"]


def test_the_file_is_the_ecosystems(tmp_path):
    x, yx = bag()
    write_features(tmp_path / "s.h5", x, yx, METADATA)
    with h5py.File(tmp_path / "s.h5") as f:
        features, coords = f["features"], f["coords"]
        assert features.chunks is None
        assert features.dtype == np.float16
        assert coords.dtype == np.int32
        np.testing.assert_array_equal(coords[:, 0], yx[:, 1])  # (x, y)
        assert set(features.attrs) == {"name", "savetodir", "encoder", "crc32"}
        attrs = dict(coords.attrs)
    trident = "patch_size patch_size_level0 level0_magnification target_magnification "
    trident += "overlap name savetodir level0_width level0_height"
    ours = "mpp target_mpp wsi_jax_version config_hash bad_coords bad_reason crc32"
    assert set(attrs) == {*trident.split(), *ours.split()}
    assert attrs["patch_size"] == 256
    assert attrs["patch_size_level0"] == 512
    assert (attrs["level0_width"], attrs["level0_height"]) == (2000, 3000)
    assert (attrs["level0_magnification"], attrs["target_magnification"]) == (40, 20)


@pytest.mark.parametrize("chunks", [None, (1, 4)])
@pytest.mark.parametrize("lead", [(), (1,)])
def test_clam_and_trident_variants(tmp_path, chunks, lead):
    x, yx = bag()
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as f:
        chunks = (*lead, *chunks) if chunks else None
        f.create_dataset("features", data=x.reshape(*lead, 5, 4), chunks=chunks)
        f.create_dataset("coords", data=yx[:, ::-1].reshape(*lead, 5, 2))
    features = read_features(path)
    np.testing.assert_array_equal(features.x, x.astype(np.float16))
    np.testing.assert_array_equal(features.yx, yx)
    assert feature_shape(path) == (5, 4)


def test_a_real_clam_file(shared):
    path = shared / "data/features/TCGA-AD-6964-01Z-00-DX1.h5"
    assert feature_shape(path) == (777, 512)
    features = read_features(path)
    assert features.x.shape == (777, 512)
    assert np.isfinite(features.x).all()
    np.testing.assert_array_equal(features.yx[:2], [[21504, 10240], [22016, 10240]])


def test_a_file_is_whole_or_it_is_not(tmp_path):
    x, yx = bag(100, 64)
    path = tmp_path / "s.h5"
    assert not is_whole(path, METADATA.config_hash)
    write_features(path, x, yx, METADATA)
    assert is_whole(path, METADATA.config_hash)
    assert lost_tiles(path) == (3, "torn")
    assert not is_whole(path, "other settings")
    data = path.read_bytes()
    for size in (0, 10, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, r"s\.h5: truncated or not HDF5")


def test_a_crash_leaves_the_old_file(tmp_path):
    x, yx = bag()
    path = tmp_path / "s.h5"
    write_features(path, x, yx, METADATA)
    before, torn = path.read_bytes(), x.copy()
    torn[2] = np.nan
    for bad, n in ((torn, 1), (x * 1e30, 5)):
        with pytest.raises(FeatureError, match=f"{n} of 5 tiles"):
            write_features(path, bad, yx, METADATA)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such feature file"),
        ({"features": np.zeros((3, 4))}, "datasets .'features'."),
        ({"features": np.zeros((3, 4)), "coords": np.zeros((2, 2), int)}, "disagree"),
        ({"features": np.zeros(3), "coords": np.zeros((3, 2), int)}, "must be .n, d."),
        ({"features": np.dtype("f4"), "coords": np.zeros((2, 2))}, "is no dataset"),
        ({"features": [[b"a"], [b"b"]], "coords": np.zeros((2, 2))}, "delete it and"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, data, message):
    path = tmp_path / "s.h5"
    if data is not None:
        with h5py.File(path, "w") as f:
            for name, values in data.items():
                f[name] = values
    with pytest.raises(FeatureError, match=message):
        read_features(path)
    assert not is_whole(path, "")


@pytest.mark.parametrize("where", ["SNOD", "features", "coords"])
def test_a_damaged_file_is_no_error_of_h5pys(tmp_path, where):
    """The length is right: h5py raises RuntimeError or KeyError, by the byte."""
    path = tmp_path / "s.h5"
    write_features(path, *bag(), METADATA)
    data = bytearray(path.read_bytes())
    with h5py.File(path) as f:
        at = h5py.h5o.get_info(f[where].id).addr if where in f else data.find(b"SNOD")
    data[at : at + 4] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises((RuntimeError, KeyError)), h5py.File(path) as f:
        [f[name] for name in ("features", "coords") if name in f]
    refused(path, r"s\.h5: truncated .*; delete it and")
