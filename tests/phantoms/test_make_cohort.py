"""A practice cohort on disk: laid out as CAMELYON16, resumable, its truth certified."""

import csv
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments.phantoms import certify as certifier
from experiments.phantoms import describe_slides
from experiments.phantoms.make_cohort import (
    MakeCohortError,
    make_cohort,
    outlines,
)
from experiments.phantoms.presets import Preset
from experiments.phantoms.synthetic import CELL_PX, LESION
from wsi_jax.data.camelyon16 import read_camelyon16, read_reference
from wsi_jax.data.cohort import read_manifest
from wsi_jax.data.lint import lint
from wsi_jax.slides.annotations import rasterise, read_asap
from wsi_jax.slides.slide import open_slide


def test_the_folder_reads_as_camelyon16_and_as_a_manifest(cohort):
    manifest = read_manifest(cohort / "slides.csv")
    camelyon = read_camelyon16(cohort, val=0.3, seed=0)
    assert manifest.classes == camelyon.classes == ("normal", "tumor")
    ours = {row.slide_id: row for row in manifest.rows}
    theirs = {row.slide_id: row for row in camelyon.rows}
    assert ours.keys() == theirs.keys()
    kinds = {name.split("_")[0] for name in ours}
    assert kinds == {"normal", "tumor", "test"}
    for name, row in ours.items():
        assert row.label == theirs[name].label
        assert pathlib.Path(row.path).samefile(theirs[name].path)
        assert (row.split == "test") == (theirs[name].split == "test")
        assert row.annotation_path == theirs[name].annotation_path
    assert lint(manifest).missing == ()
    reference = read_reference(cohort / "testing/reference.csv")
    for name, truth in reference.items():
        assert truth.lesion == ("Micro" if truth.label == "tumor" else "None")
        assert ours[name].label == truth.label


def test_the_manifest_says_what_slides_and_masks_are(cohort):
    with open(cohort / "slides.csv", newline="") as f:
        for row in csv.DictReader(f):
            truth = np.asarray(Image.open(cohort / row["mask_path"]))
            with open_slide(cohort / row["path"]) as slide:
                assert slide.mpp == pytest.approx(float(row["mpp"]), rel=1e-5)
                cells = np.array(slide.shape) * slide.mpp / CELL_PX
                np.testing.assert_allclose(cells, truth.shape, atol=0.2)
            lesion = (truth == LESION).sum() * CELL_PX**2
            assert float(row["lesion_um2"]) == lesion
            assert float(row["tissue_um2"]) == (truth > 0).sum() * CELL_PX**2


def test_no_patient_is_in_two_cohorts(cohort):
    ids = {row.patient_id for row in read_manifest(cohort / "slides.csv").rows}
    assert len(ids) == 10
    assert all(one.startswith("diffuse_0_patient_") for one in ids)


def test_the_outlines_are_those_of_the_planted_lesions(cohort):
    rows = read_manifest(cohort / "slides.csv").rows
    outlined = 0
    for row in rows:
        truth = np.asarray(Image.open(row.mask_path))
        assert (truth == LESION).any() == (row.label == "tumor")
        if not row.annotation_path:
            continue
        outlined += 1
        polygons = read_asap(row.annotation_path)
        drawn = rasterise(polygons, truth.shape, float(CELL_PX), row.mpp)
        np.testing.assert_array_equal(drawn, truth == LESION)
    assert outlined == sum(row.label == "tumor" for row in rows) > 0


def test_outlines_keep_holes_and_single_cells():
    mask = np.zeros((12, 16), bool)
    mask[1:8, 2:10] = True
    mask[3:5, 4:7] = False
    mask[10, 13] = True
    polygons = outlines(mask, 20.0)
    assert sorted(p.group for p in polygons) == ["_0", "_0", "_2"]
    np.testing.assert_array_equal(rasterise(polygons, mask.shape, 20.0, 1.0), mask)


def test_a_preset_asks_for_enough_kinds(made, tmp_path):
    (tmp_path / "index.csv").write_text("file,class,cluster\n")
    config = made(make_cohort).config(preset=Preset.THREE, tiles=str(tmp_path))
    with pytest.raises(MakeCohortError, match="three needs 3 kinds"):
        make_cohort(config)


def test_the_certificate_lies_in_the_folder_and_names_every_probe(cohort):
    certificate = certifier.certify(cohort)
    assert certificate == json.loads((cohort / "certificate.json").read_text())
    assert certificate["preset"] == "diffuse"
    expected = {row["probe"] for row in certificate["rows"]}
    assert expected >= {"field in focus", "metadata only", "labels shuffled"}
    measured = [row for row in certificate["rows"] if row["auc"] is not None]
    assert measured
    for row in measured:
        lo, auc, hi = (row[name] for name in ("lo", "auc", "hi"))
        assert lo <= auc <= hi
        holds = {"none": lo <= 0.5 <= hi, "signal": auc >= certifier.REACHES}
        assert row["ok"] == holds.get(row["expected"])
    # Where too few slides had such fields nothing holds.
    assert not any(row["ok"] for row in certificate["rows"] if row["auc"] is None)


def test_the_probe_finds_fine_detail_and_not_after_box_means():
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 1, (80, 64, 64, 3))
    label = np.arange(80) % 2
    grain *= (20 + 5 * label)[:, None, None, None]
    grain = grain.reshape(80, 8, 8, 8, 8, 3)
    grain = grain - grain.mean((2, 4), keepdims=True)
    base = rng.normal(170, 15, (80, 8, 1, 8, 1, 3))
    images = (base + grain).reshape(80, 64, 64, 3).clip(0, 255).round().astype(np.uint8)
    coarse = images.reshape(80, 8, 8, 8, 8, 3).mean((2, 4)).round().astype(np.uint8)
    for pixels, low, high in ((images, 0.95, 1), (coarse, 0.2, 0.8)):
        x = describe_slides.describe_fields(pixels)
        scores = certifier.probe_scores(x[:40], label[:40], x[40:])
        pairs = scores[label[40:] == 1][:, None] > scores[label[40:] == 0]
        assert low <= pairs.mean() <= high
