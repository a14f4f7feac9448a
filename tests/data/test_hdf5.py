"""What a file may not do: reach outside itself, declare more than it holds, change."""

import os

import h5py
import numpy as np
import pytest
from data.feature_files import metadata

from wsi_jax.data.features import (
    FeatureError,
    check_feature_file,
    feature_shape,
    is_whole,
    read_coords,
    read_features,
    write_features,
)
from wsi_jax.data.hdf5 import BLOCK_BYTES, blocks

N, D = 5, 4
METADATA = metadata(config_hash="c")


def zeros(f, n, d, chunk, written, **form):
    """A dataset of which the first chunks are written, all alike: zeros, packed."""
    form = {"chunks": (chunk, d), "dtype": "f2"} | form
    features = f.create_dataset("features", (n, d), **form)
    if written:
        features[:chunk] = 0
        _, packed = features.id.read_direct_chunk((0, 0))
        for i in range(chunk, written, chunk):
            features.id.write_direct_chunk((i, 0), packed)


def external_link(f, other):
    f["features"] = h5py.ExternalLink(other, "features")


def soft_link_through_an_external_one(f, other):
    f["elsewhere"] = h5py.ExternalLink(other, "/")
    f["features"] = h5py.SoftLink("/elsewhere/features")


def external_storage(f, other):
    f.create_dataset("features", (N, D), "f2", external=[(other, 0, N * D * 2)])


def virtual(f, other):
    layout = h5py.VirtualLayout((N, D), "f2")
    layout[:] = h5py.VirtualSource(other, "features", (N, D), dtype="f2")
    f.create_virtual_dataset("features", layout)


def virtual_of_nothing(f, other):
    virtual(f, "gone.h5")


def many_rows(f, other):
    f.create_dataset("features", (10**12, D), "f2", chunks=(1024, D))


def wide_rows(f, other):
    f.create_dataset("features", (N, 10**9), "f2", chunks=(1, 1024))


def a_bomb(f, other):
    zeros(f, 40 << 14, 64, 1 << 14, 40 << 14, compression="gzip")


def a_bomb_in_one_chunk(f, other):
    chunk = (1 << 28, D)
    form = {"maxshape": (None, D), "compression": "gzip"}
    f.create_dataset("features", (N, D), "f2", chunks=chunk, **form)


def nothing_stored(f, other):
    f.create_dataset("features", (N, D), "f2")


def text(f, other):
    f["features"] = np.full((N, D), b"a")


def no_shape(f, other):
    f["features"] = h5py.Empty("f2")


HOSTILE = {
    external_link: "features is a link",
    soft_link_through_an_external_one: "features is a link",
    external_storage: "the numbers of features are stored in other files",
    virtual: "the numbers of features are stored in other files",
    virtual_of_nothing: "the numbers of features are stored in other files",
    many_rows: "declares 1,000,000,000,000 tiles of 4 numbers, .* at most 10,000,000",
    wide_rows: "declares 5 tiles of 1,000,000,000 numbers",
    a_bomb: "declares 83,886,080 bytes and stores .* more than 100 times",
    a_bomb_in_one_chunk: "declares 2,147,483,648 bytes and stores 0; numbers are not",
    nothing_stored: "declares 40 bytes and stores 0",
    text: "features holds no numbers",
    no_shape: "features holds no numbers",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_file_that_reaches_out_or_declares_what_it_does_not_hold(tmp_path, make):
    """It is refused by every reader, and by none of h5py's errors."""
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as f:
        f["features"] = np.ones((N, D), np.float16)
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as f:
        make(f, str(other))
        shape = f["features"].shape or (N, D)
        n = shape[0] if shape[0] < 10**9 else N
        f["coords"] = np.zeros((n, 2), np.int32)
    assert path.stat().st_size < 1 << 20 or make is a_bomb
    for read in (read_features, read_coords, feature_shape, check_feature_file):
        with pytest.raises(FeatureError, match=rf"s\.h5: .*({HOSTILE[make]})"):
            read(path)
    assert not is_whole(path, "c")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e300, 2.0**31])
def test_coords_that_are_no_pixel(tmp_path, bad):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as f:
        f["features"] = np.ones((N, D), np.float32)
        f["coords"] = np.array([[0, 0]] * (N - 1) + [[8, bad]])
    for read in (read_features, read_coords, check_feature_file):
        with pytest.raises(FeatureError, match="1 of 5 tiles have coords that are no"):
            read(path)


def test_chunks_that_were_never_written_are_no_zeros(tmp_path):
    path = tmp_path / "s.h5"
    for written in (8, 6):
        with h5py.File(path, "w") as f:
            zeros(f, 8, D, 2, written)
            f["coords"] = np.zeros((8, 2), int)
        if written == 8:
            assert check_feature_file(path) == (8, D)
    with pytest.raises(FeatureError, match="1 of 4 chunks of features were never"):
        check_feature_file(path)


@pytest.mark.parametrize("name", ["features", "coords"])
def test_one_changed_byte_is_seen_by_the_checksum_where_there_is_one(tmp_path, name):
    path = tmp_path / "s.h5"
    write_features(path, np.ones((N, D)), np.full((N, 2), 7), METADATA)
    assert is_whole(path, "c")
    assert check_feature_file(path) == (N, D)
    attrs = read_coords(path).attrs
    with h5py.File(path) as f:
        at = f[name].id.get_offset()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert not is_whole(path, "c")
    for read in (read_features, check_feature_file):
        with pytest.raises(FeatureError, match=rf"s\.h5: {name} is damaged: its check"):
            read(path)
    with h5py.File(path, "a") as f:
        for dataset in f.values():
            del dataset.attrs["crc32"]
    assert read_features(path).attrs == attrs
    assert is_whole(path, "c")
    os.remove(path)
    os.mkfifo(path)  # nobody waits for it
    with pytest.raises(FeatureError, match=r"s\.h5: no regular file"):
        read_features(path)


@pytest.mark.parametrize("chunks", [None, (1, 1024), (3000, 512), (5000, 1024)])
@pytest.mark.parametrize("lead", [(), (1,)])
def test_blocks_are_the_rows_in_order_and_few_at_a_time(tmp_path, chunks, lead):
    n, d = 5000, 1024
    rows = np.arange(n * d, dtype=np.float32).reshape(n, d)
    with h5py.File(tmp_path / "s.h5", "w") as f:
        form = {"chunks": chunks and (*lead, *chunks)}
        data = f.create_dataset("x", data=rows.reshape(*lead, n, d), **form)
        parts = list(blocks(data))
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    most = max(BLOCK_BYTES, chunks[0] * d * 4 if chunks else 0)
    assert max(part.nbytes for part in parts) <= most
