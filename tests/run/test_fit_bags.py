"""Bags as arrays: training without a file is training with files."""

import csv

import h5py
import numpy as np
import pytest

import wsi_jax
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.fit_bags import _cohort
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

METHOD = wsi_jax.ABMIL(width=16, attention=8, dropout=0.0)
PLAN = {"steps": 80, "validate_every": 20, "optimiser": {"learning_rate": 2e-2}}


def cohort(n=30, d=6, seed=0):
    """Bags of noise, float16; of every other one the first three vectors stand out."""
    rng = np.random.default_rng(seed)
    labels = ["normal", "tumor"] * (n // 2)
    bags = [rng.normal(size=(rng.integers(8, 20), d)) for _ in labels]
    for bag in bags[1::2]:
        bag[:3, 0] += 4
    return [bag.astype(np.float16) for bag in bags], labels


@pytest.fixture(scope="module")
def model():
    return wsi_jax.fit_bags(*cohort(), METHOD, seed=1, **PLAN)


def test_attention_is_on_what_sets_a_bag_apart(model):
    bags, labels = cohort(seed=9)
    for bag, label in zip(bags[:6], labels[:6], strict=True):
        predicted, probabilities, attention = model.predict(bag)
        assert predicted == label == max(probabilities, key=probabilities.get)
        assert attention.sum() == pytest.approx(1, abs=1e-5)
        if label == "tumor":
            assert attention[:3].sum() > 2 * 3 / len(bag)
    assert repr(model).startswith("BagModel(ABMIL, normal, tumor; on 6 bags of valid")


def test_the_seed_decides(model):
    bags, labels = cohort()
    again = wsi_jax.fit_bags(bags, labels, METHOD, seed=1, **PLAN)
    other = wsi_jax.fit_bags(bags, labels, METHOD, seed=2, **PLAN | {"steps": 1})
    predict = lambda model: model.predict(bags[0]).probabilities["tumor"]
    assert predict(again) == predict(model)
    assert again.history == model.history
    assert other.validation != model.validation


def test_patients_are_on_one_side():
    bags, _ = cohort()
    patients, labels = np.arange(30) // 3, np.arange(30) // 3 % 2
    model = wsi_jax.fit_bags(bags, labels, METHOD, patients=patients, val=0.3, steps=1)
    inside = np.isin(np.arange(30), model.validation)
    assert 0 < inside.sum() < 30
    for patient in set(patients):
        assert len(set(inside[patients == patient])) == 1
    assert model.predict(bags[0]).label in (0, 1)


def test_arrays_learn_what_files_do(tmp_path):
    """The same draw, the same order, the same steps as a run on the features."""
    bags, labels = cohort(20)
    tests, truth = cohort(4, seed=5)
    lines = []
    for i, (bag, label) in enumerate(zip(bags + tests, labels + truth, strict=True)):
        with h5py.File(tmp_path / f"{i}.h5", "w") as f:
            f["features"], f["coords"] = bag, np.zeros((len(bag), 2), np.int32)
        split = "test" if i >= len(bags) else ""
        lines.append({"slide_id": str(i), "label": label, "split": split})
    with open(tmp_path / "slides.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    data = Manifest(manifest=str(tmp_path / "slides.csv"))
    data.split.train, data.split.val, data.split.seed = 0.8, 0.2, 3
    plan = Train(
        batch=8, seed=3, steps=6, validate_every=3,
        optimiser=Optimiser(learning_rate=2e-2),
    )  # fmt: skip
    config = Experiment(data=data, precomputed=str(tmp_path), method=METHOD, train=plan)
    run = wsi_jax.train(config, run_dir=tmp_path / "run", heatmaps=0)
    model = wsi_jax.fit_bags(
        bags, labels, METHOD, seed=3, batch=8, steps=6, validate_every=3,
        optimiser={"learning_rate": 2e-2},
    )  # fmt: skip
    assert model.threshold == pytest.approx(run.metrics["test.threshold"], abs=1e-3)
    for bag, line in zip(tests, run.predictions, strict=True):
        prediction = model.predict(bag)
        p = prediction.probabilities["tumor"]
        assert p == pytest.approx(float(line["p_tumor"]), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bags, labels: (bags, labels[1:]), "30 bags, 29 labels and 30 patients"),
        (lambda bags, labels: (bags, ["a"] * 30), r"labels are all \['a'\]: two"),
        (lambda bags, labels: (bags, ["a"] * 29 + ["b"]), "class 'b' are of one pat"),
        (lambda bags, labels: ([*bags[1:], bags[0][:, :2]], labels), r"bags\[29\] "),
        (
            lambda bags, labels: ([bags[0] * np.nan, *bags[1:]], labels),
            r"bags\[0\] ",
        ),
        (lambda bags, labels: (bags, np.eye(2)[[0, 1] * 15]), "labels: one number or"),
        (lambda bags, labels: (bags, [None, "a"] * 15), "none of them missing"),
        (lambda bags, labels: (bags, [np.nan, 1] * 15), "none of them missing"),
    ],
)
def test_bags_and_labels_that_disagree(change, message):
    with pytest.raises(ValueError, match=message):
        wsi_jax.fit_bags(*change(*cohort()))


def test_labels_of_single_precision_are_classes():
    bags, labels = cohort()
    numbers = np.where(np.array(labels) == labels[0], 0.1, 0.3).astype(np.float32)
    classes = wsi_jax.fit_bags(bags, numbers, steps=1).classes
    assert np.float32(classes).tolist() == np.unique(numbers).tolist()


def test_fields_that_are_none(model):
    bags, labels = cohort()
    with pytest.raises(ValueError, match=r"^stepz: no such field; did you mean ste"):
        wsi_jax.fit_bags(bags, labels, stepz=3)
    with pytest.raises(ValueError, match=r"^steps=0: 1 or more"):
        wsi_jax.fit_bags(bags, labels, steps=0)
    with pytest.raises(ValueError, match=r"val=1\.0: a share of the bags"):
        wsi_jax.fit_bags(bags, labels, val=1.0)
    with pytest.raises(ValueError, match=r"^val='x': a share of the bags"):
        _cohort(bags, labels, None, "x", 0)  # whose types are not checked in tests
    with pytest.raises(ValueError, match=r"bag has shape \(0, 6\), and \[n 6\] is wa"):
        model.predict(np.zeros((0, 6)))
