"""Practice slides: the signal is where the preset has it, and the mask is right."""

import numpy as np
import openslide
import pytest

from experiments.phantoms import (
    band_composite,
    presets,
    synthetic,
    synthetic_masks,
    texture_sources,
)
from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.presets import Preset
from experiments.phantoms.synthetic import CELL_PX, LESION, SHAM, Planned, Practice
from experiments.tile_clusters import split_of
from wsi_jax.slides import pyramid_writer

CALM = Artefacts(blur_px=0.0, fold=0.0, pen=0.0)


@pytest.fixture(scope="module")
def source():
    return texture_sources.Textures(1.0, styles=12, size_px=128, variants=1)


def draw(source, preset, label, number=3, split="train", artefacts=CALM, side_px=640):
    config = Practice(preset=preset, side_px=side_px, artefacts=artefacts)
    planned = Planned(number, "some_slide", label, split, "A")
    return synthetic.draw_slide(planned, config, source)


def means(image):
    return band_composite.box_means(image.astype(np.float32), CELL_PX)


def test_the_part_of_a_cluster_is_fixed():
    """It must never change: published cohorts and encoders depend on it."""
    names = "colon_n:158", "lung_aca:158", "normal:0", "normal:1", "tumor:0"
    parts = "train", "train", "test", "encoder", "train"
    assert tuple(map(split_of, names)) == parts
    parts = [split_of(f"some:{i}") for i in range(4000)]
    for part, share in (("train", 0.5), ("test", 0.25), ("encoder", 0.25)):
        assert abs(parts.count(part) / 4000 - share) < 0.03


@pytest.mark.parametrize("k", [4, 16])
def test_joining_keeps_every_box_mean(k):
    rng = np.random.default_rng(0)
    low, fine = rng.uniform(0, 255, (2, 64, 96, 3)).astype(np.float32)
    # Detail three times too strong: clipping would move the means.
    joined = band_composite.join(
        band_composite.low_band(low, k), 3 * band_composite.detail(fine, k), k
    )
    assert joined.min() > -1e-3
    assert joined.max() < 255 + 1e-3
    error = np.abs(
        band_composite.box_means(joined, k) - band_composite.box_means(low, k)
    )
    assert error.max() < 1e-3


def test_detail_has_no_low_band_and_the_two_sum_to_the_image():
    x = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    assert np.abs(band_composite.box_means(band_composite.detail(x, 8), 8)).max() < 1e-3
    np.testing.assert_allclose(
        band_composite.detail(x, 8) + band_composite.low_band(x, 8), x, atol=1e-3
    )


@pytest.mark.parametrize("mpp", [0.226, 0.5])
def test_openslide_reads_the_true_mpp_of_every_level(tmp_path, mpp):
    # Two marks 512 um apart, which must stay so whatever the pixel size.
    image = np.full((704, 640, 3), 255, np.uint8)
    image[100:104, 60:64] = image[612:616, 60:64] = 0
    path = tmp_path / "slide.tif"
    scanned = pyramid_writer.rescale(image, 1.0, mpp)
    pyramid_writer.write_pyramid(path, scanned, mpp, quality=90)
    with openslide.OpenSlide(path) as slide:
        for axis in "xy":
            read = float(slide.properties[f"openslide.mpp-{axis}"])
            assert read == pytest.approx(mpp, rel=1e-5)
        assert slide.dimensions == (int(640 / mpp), int(704 / mpp))
        assert slide.level_count >= 2
        for level, down in enumerate(slide.level_downsamples):
            size = slide.level_dimensions[level]
            pixels = np.asarray(slide.read_region((0, 0), level, size).convert("L"))
            dark = ((255.0 - pixels) * (pixels < 200)).sum(1)
            y, half = np.arange(len(dark)) + 0.5, len(dark) // 2
            first, second = (
                np.average(y[part], weights=dark[part])
                for part in (slice(0, half), slice(half, None))
            )
            assert (second - first) * mpp * down == pytest.approx(512, abs=0.02 * 512)
    assert [p.name for p in tmp_path.iterdir()] == ["slide.tif"]


def test_nothing_is_left_under_the_name_of_a_slide_that_failed(tmp_path):
    path = tmp_path / "slide.tif"
    with pytest.raises(ValueError, match="invalid tile shape"):
        pyramid_writer.write_pyramid(
            path, np.zeros((300, 300, 3), np.uint8), 0.5, 80, 100
        )
    assert not list(tmp_path.iterdir())


def test_a_plan_has_its_prevalence_and_no_slide_depends_on_how_many_there_are():
    names = ("normal", "tumor")
    few = synthetic.plan(Practice(n_train=4, n_val=2, n_test=2), names)
    more = synthetic.plan(Practice(n_train=4, n_val=2, n_test=9), names)
    assert few[:6] == more[:6]
    assert len({one.slide_id for one in more}) == len(more)
    planned = synthetic.plan(Practice(n_train=50, n_test=30), names)
    for split, tumors in (("train", 20), ("val", 3), ("test", 12)):
        assert sum(p.label for p in planned if p.split == split) == tumors


@pytest.mark.parametrize("preset", [Preset.FINE_ONLY, Preset.NEEDLE])
def test_only_foci_differ_between_the_labels_and_only_in_detail(source, preset):
    normal, tumor = (draw(source, preset, label) for label in (0, 1))
    lesion = tumor.truth == LESION
    assert lesion.any()
    # The same foci, shams on the normal slide.
    np.testing.assert_array_equal(tumor.truth >= LESION, normal.truth == SHAM)
    inside = lesion.repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    np.testing.assert_array_equal(normal.image[~inside], tumor.image[~inside])
    apart = np.abs(normal.image.astype(int) - tumor.image)[inside]
    assert apart.mean() > 5
    # What an overview sees: equal to rounding, 64 pixels to a box.
    assert np.abs(means(normal.image) - means(tumor.image)).max() < 0.5


def test_an_overview_shows_plain_lesions_and_a_decimated_one_leaks_fine_ones(source):
    normal, tumor = (draw(source, Preset.FINE_ONLY, label) for label in (0, 1))
    inside = tumor.truth == LESION
    decimate = lambda image: image[::CELL_PX, ::CELL_PX].astype(int)
    leak = np.abs(decimate(normal.image) - decimate(tumor.image))[inside].mean()
    boxes = np.abs(means(normal.image) - means(tumor.image))[inside].mean()
    assert leak > 50 * boxes
    normal, tumor = (draw(source, Preset.PLAIN, label) for label in (0, 1))
    inside = tumor.truth == LESION
    assert np.abs(means(normal.image) - means(tumor.image))[inside].mean() > 10


def test_mid_hides_its_signal_from_coarser_and_finer_eyes(source):
    normal, tumor = (draw(source, Preset.MID, label) for label in (0, 1))
    pair = [d.image.astype(np.float32) for d in (normal, tumor)]
    inside = (tumor.truth == LESION).repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    coarse = [band_composite.box_means(x, 16) for x in pair]
    middle = [band_composite.low_band(x, 4) for x in pair]
    finest = [band_composite.detail(x, 4) for x in pair]
    # Foci are made of 8 px cells: a box of 16 px may hold half a lesion.
    whole = (
        band_composite.box_means(inside[..., None].astype(np.float32), 16)[..., 0] == 1
    )
    assert np.abs(coarse[0] - coarse[1])[whole].max() < 0.5
    assert np.abs(middle[0] - middle[1])[inside].mean() > 3
    assert (
        np.abs(finest[0] - finest[1])[inside].mean()
        < np.abs(middle[0] - middle[1])[inside].mean() / 4
    )


def test_null_slides_are_normal_whatever_their_label(source):
    tumor = draw(source, Preset.NULL, 1)
    assert (tumor.truth == LESION).any()
    assert {name.split(":")[0] for name in tumor.clusters} == {"normal"}


def test_three_classes_have_lesions_of_three_kinds(source):
    names = synthetic.labels(source.kinds, Preset.THREE)
    assert names == ("normal", "tumor", "small_cell")
    for label, kinds in enumerate(({"normal"}, {"normal", "tumor"})):
        drawn = draw(source, Preset.THREE, label, side_px=512)
        assert {name.split(":")[0] for name in drawn.clusters} == kinds
    planned = synthetic.plan(Practice(preset=Preset.THREE, n_train=30), names)
    train = [p.label for p in planned if p.split == "train"]
    assert [train.count(c) for c in range(3)] == [10, 10, 10]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_slides_are_made_of_their_splits_clusters_only(source, split):
    drawn = draw(source, Preset.FINE_ONLY, 1, split=split, side_px=512)
    part = "test" if split == "test" else "train"
    assert {split_of(cluster) for cluster in drawn.clusters} == {part}


def test_coarse_blocks_are_the_same_multiset_and_never_in_one_fine_crop(source):
    shape, block, gutter = (200, 230), 26, 18
    rng = np.random.default_rng(0)
    pairs, _ = synthetic_masks.dominoes(rng, shape, block, gutter)
    assert len(pairs) % 2 == 0
    blocks = [np.argwhere(mask) for pair in pairs for mask in pair]
    for i, one in enumerate(blocks):
        for other in blocks[:i]:
            gap = np.maximum(other.min(0) - one.max(0), one.min(0) - other.max(0)) - 1
            assert gap.max() >= gutter
    for number in range(3):
        counts = []
        for label in (0, 1):
            config = Practice(preset=Preset.COARSE_ONLY, side_px=1600)
            planned = Planned(number, "some_slide", label, "train", "A")
            canvas = synthetic._Canvas(planned, config, source)
            tissue, regions, spots = canvas.dominoes()
            counts.append((len(regions), 2 * len(spots), tissue.sum()))
        assert counts[0] == counts[1]
        assert 2 * counts[0][0] == counts[0][1]


def test_sparse_lesions_are_as_small_as_camelyon16s():
    rng = np.random.default_rng(0)
    share = []
    for _ in range(4000):
        areas, lesions = presets.micrometastases(rng, 1e6)
        share.append(sum(areas[:lesions]) / 1e6)
    assert np.mean(np.array(share) < 1e-3) == pytest.approx(0.27, abs=0.03)
    assert np.mean(np.array(share) < 3e-2) == pytest.approx(0.68, abs=0.03)


def test_needle_slides_have_as_many_suspects_in_either_class(source):
    normal, tumor = (draw(source, Preset.NEEDLE, label).spots for label in (0, 1))
    assert [spot[:2] for spot in normal] == [spot[:2] for spot in tumor]
    assert {spot[2] for spot in normal} == {SHAM}
    assert {spot[2] for spot in tumor} == {SHAM, LESION}


@pytest.mark.parametrize("preset", [Preset.SHIFT, Preset.FINE_ONLY])
def test_the_site_tells_the_label_in_training_of_shift_only(preset):
    config = Practice(preset=preset, n_train=400, n_test=400)
    planned = synthetic.plan(config, ("normal", "tumor"))
    for split in ("train", "test"):
        agree = [("AB"[p.label] == p.site) for p in planned if p.split == split]
        telling = preset is Preset.SHIFT and split == "train"
        assert abs(np.mean(agree) - (0.9 if telling else 0.5)) < 0.1


def test_drawn_tiles_of_one_style_join_without_a_seam():
    tiles = texture_sources.Textures(1.0, styles=8, size_px=128, variants=2)
    for kind in tiles.kinds:
        rng = np.random.default_rng(0)
        a, b = tiles.draw(kind, "train", 2, rng).pixels.astype(float)
        across = np.abs(a[:, -1] - b[:, 0]).mean()
        within = np.abs(np.diff(a, axis=1)).mean()
        assert across < 1.5 * within
        assert np.abs(a - b).mean() > within / 2


def test_real_tiles_come_from_their_part_and_all_presets_take_them(shared):
    folder = texture_sources.Folder(shared / "data/lc25000", ("colon_n", "colon_aca"))
    tiles = folder.draw("colon_aca", "encoder", 40, np.random.default_rng(0))
    assert tiles.pixels.shape == (40, 224, 224, 3)
    assert {split_of(cluster) for cluster in tiles.clusters} == {"encoder"}
    drawn = draw(folder, Preset.FINE_ONLY, 1, split="test", side_px=512)
    assert {split_of(cluster) for cluster in drawn.clusters} == {"test"}
    assert {c.split(":")[0] for c in drawn.clusters} == {"colon_n", "colon_aca"}
