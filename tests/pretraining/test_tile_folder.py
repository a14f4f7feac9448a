import csv

import numpy as np
import pytest
from PIL import Image

from experiments.pretraining.tile_folder import Part, index_tiles, load_tiles
from experiments.tile_clusters import split_of
from wsi_jax.data.cohort import CohortError

OPTIONS = {"part": Part.encoder, "classes": (), "val": 0.25, "seed": 0}


def write_index(folder, rows, header=("file", "class", "cluster")):
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """Two classes, 24 clusters each, two tiles a cluster of 8 px, every one its own."""
    rng, rows = np.random.default_rng(0), []
    for kind in ("stroma", "tumor"):
        (tmp_path / kind).mkdir()
        for i in range(48):
            name = f"{kind}/{i}.png"
            tile = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(tile).save(tmp_path / name)
            rows.append((name, kind, f"{kind}:{i // 2}"))
    write_index(tmp_path, rows)
    return tmp_path


def load(folder, tile_mpp=1.0, mpp=1.0, **change):
    return load_tiles(
        index_tiles(folder, **OPTIONS | change), tile_mpp=tile_mpp, mpp=mpp
    )


def rewrite(folder, change):
    with open(folder / "index.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    write_index(folder, [new for row in rows if (new := change(row))], header)


@pytest.mark.parametrize("part", Part)
def test_no_cluster_is_in_two_sets(folder, part):
    sets = load(folder, part=part)
    train, val, test = (set(tiles.cluster) for tiles in sets[:3])
    assert not train & val
    every = [f"{kind}:{i}" for kind in sets.classes for i in range(24)]
    assert test == {c for c in every if split_of(c) == "test"}
    assert train | val == {c for c in every if split_of(c) in part.value}
    assert set(sets.training_ids) == train | val
    assert all(set(tiles.label) == {0, 1} for tiles in sets[:3])


def test_tiles_are_those_of_the_files_with_their_classes(folder):
    sets = load(folder)
    for tiles in sets[:3]:
        for pixels, label, name, cluster in zip(
            *tiles[:2], *tiles[3:1:-1], strict=True
        ):
            with Image.open(folder / name) as image:
                np.testing.assert_array_equal(pixels, np.asarray(image))
            assert name.split("/")[0] == sets.classes[label] == cluster.split(":")[0]


def test_the_seed_draws_other_validation_clusters_and_the_same_test(folder):
    one, two = load(folder, seed=0), load(folder, seed=1)
    assert set(one.val.cluster) != set(two.val.cluster)
    assert one.test.name == two.test.name
    assert one.training_ids == two.training_ids


def test_coarser_tiles_are_box_means_not_decimated(folder):
    """Noise loses most of its variance: a decimated tile would keep it."""
    fine, coarse = load(folder), load(folder, mpp=2.0)
    assert coarse.train.pixels.shape[1:] == (4, 4, 3)
    assert coarse.train.pixels.std() < 0.7 * fine.train.pixels.std()
    with pytest.raises(CohortError, match=r"no detail of 0\.5; raise --config\.mpp"):
        load(folder, mpp=0.5)


def test_classes_come_in_the_order_asked_for_and_others_are_left_out(folder):
    with open(folder / "index.csv", "a") as file:
        file.write("stroma/0.png,fat,fat:1\n")
    sets = load(folder, classes=("tumor", "stroma"))
    assert sets.classes == ("tumor", "stroma")
    labels = [sets.classes.index(name.split("/")[0]) for name in sets.test.name]
    assert labels == sets.test.label.tolist()


@pytest.mark.parametrize(
    ("lose", "change", "message"),
    [
        ("test", {}, r"'test' is empty: .* falls to test; add tiles of other clusters"),
        (
            "encoder",
            {},
            r"'train' is empty: .* encoder; .* --config\.part=train_and_enc",
        ),
        ("", {"val": 0.0}, r"'val' is empty: --config\.val=0 leaves .*; raise it"),
        ("", {"val": 1.0}, r"'train' is empty: --config\.val=1 leaves .*; lower it"),
    ],
)
def test_an_empty_split_is_named_with_its_mend(folder, lose, change, message):
    rewrite(folder, lambda row: row if split_of(row[2]) != lose else None)
    with pytest.raises(CohortError, match=rf"index\.csv: split {message}"):
        load(folder, **change)


def test_an_index_that_cannot_serve_is_refused(folder, tmp_path):
    with pytest.raises(CohortError, match=r"nowhere.*index\.csv"):
        index_tiles(tmp_path / "nowhere", **OPTIONS)
    rewrite(folder, lambda r: (*r[:2], "" if r[0] == "tumor/3.png" else r[2]))
    with pytest.raises(CohortError, match="no cluster; fill"):
        index_tiles(folder, **OPTIONS)
    rewrite(folder, lambda r: r if r[1] == "tumor" and r[2] else None)
    with pytest.raises(CohortError, match="a classifier needs two"):
        index_tiles(folder, **OPTIONS)
    write_index(folder, [("a.png", "tumor")], ("file", "class"))
    with pytest.raises(CohortError, match=r"index\.csv: no column 'cluster'"):
        index_tiles(folder, **OPTIONS)


def test_tiles_that_cannot_be_used_are_all_named(folder):
    sets = load(folder)
    broken, small, gone = sets.train.name[:3]
    (folder / broken).write_bytes(b"no picture")
    Image.new("RGB", (8, 6)).save(folder / small)
    (folder / gone).unlink()
    with pytest.raises(CohortError, match="3 tiles cannot be used") as caught:
        load(folder)
    for name in (broken, f"{small}: 8x6 px; tiles are square and alike (8x8 px)", gone):
        assert name in str(caught.value)


def test_weights_that_have_seen_a_test_tile_are_no_start(folder):
    cluster = load(folder).test.cluster[0]
    with pytest.raises(CohortError, match=f"has learnt from .*{cluster}"):
        index_tiles(folder, **OPTIONS, training_ids=[cluster])
    index_tiles(folder, **OPTIONS, training_ids=load(folder).training_ids)
