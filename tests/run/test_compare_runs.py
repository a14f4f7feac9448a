"""Runs compared on the slides that they share, in pairs and by patients."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from wsi_jax.cli import app
from wsi_jax.evals import metrics
from wsi_jax.evals.intervals import delong_difference
from wsi_jax.run.compare_runs import compare_runs

N = 60


@pytest.fixture
def write(tmp_path):
    """write(name, probabilities [n c], change) -> folder of a run with these."""

    def run(name, p, change=lambda line: line):
        classes = ("normal", "tumor", "worse")[: p.shape[1]]
        lines = []
        for i, row in enumerate(p):
            line = {
                "slide_id": f"slide_{i:02}",
                "patient_id": f"patient_{i // 2:02}",
                "site": "",
                "label": classes[i // 2 % len(classes)],
                "prediction": classes[row.argmax()],
            }
            pairs = zip(classes, row, strict=True)
            line |= {f"p_{one}": f"{value:.6f}" for one, value in pairs}
            lines.append(change(line))
        lines = [line for line in lines if line]
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "predictions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        return tmp_path / name

    return run


def probabilities(c, seed, skill):
    """Softmax of noise, the label's class raised by `skill`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, c)) + skill * np.eye(c)[np.arange(N) // 2 % c]
    p = np.exp(logits)
    return np.round(p / p.sum(1, keepdims=True), 6)


def row(text, name):
    """(first, second, difference, lo, hi) of a row."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}")]
    for mark in ("(", ")", "to", ",", "p", "="):
        line = line.replace(mark, " ")
    return [float(word) for word in line.removeprefix(f"  {name}").split()[:5]]


def test_the_difference_is_delongs_by_patients(write):
    a, b = probabilities(2, 0, 2.0), probabilities(2, 1, 0.5)
    text = compare_runs([write("a", a), write("b", b)])
    labels, patients = np.arange(N) // 2 % 2, np.arange(N) // 2
    gap = delong_difference(labels == 1, a[:, 1], b[:, 1], patients)
    np.testing.assert_allclose(row(text, "AUC")[2:], gap[:3], atol=6e-4)
    assert "60 test slides of 30 patients" in text
    by_slide = delong_difference(labels == 1, a[:, 1], b[:, 1])
    assert abs(gap.lo - by_slide.lo) > 2e-3  # else the patients were not asked


def test_more_classes_are_compared_by_the_mean_of_their_aucs(write):
    a, b = probabilities(3, 0, 2.0), probabilities(3, 1, 0.5)
    first, second, gap, lo, hi = row(
        compare_runs([write("a", a), write("b", b)]), "AUC"
    )
    labels = np.arange(N) // 2 % 3
    mean = lambda p: np.mean([metrics.auc(labels == k, p[:, k]) for k in range(3)])
    np.testing.assert_allclose([first, second], [mean(a), mean(b)], atol=6e-4)
    assert lo < gap < hi
    assert lo > 0


def test_a_run_does_not_differ_from_itself(write):
    a = probabilities(2, 0, 1.0)
    text = compare_runs([write("a", a), write("b", a), write("c", a)])
    assert text.count("+0.000 (+0.000 to +0.000)") == 4


def test_slides_of_one_run_only_are_left_out_and_counted(write):
    a = probabilities(2, 0, 1.0)
    few = lambda line: line if line["slide_id"] < "slide_40" else None
    text = compare_runs([write("a", a), write("b", a, few)])
    assert "40 test slides of 20 patients" in text
    assert "20 slides only in" in text


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", "tumor", "disagree about slide slide_00: its label is normal and tu"),
        ("patient_id", "patient_7", "its patient is patient_00 and patient_7; they we"),
        ("fold", "1", "its fold is none and 1; they were not tested alike"),
        (
            "p_tumour",
            "0.5",
            "have different classes: normal, tumor and normal, tumor, ",
        ),
    ],
)
def test_runs_that_were_not_tested_alike_are_refused(write, column, value, message):
    a = probabilities(2, 0, 1.0)
    other = write("b", a, lambda line: line | {column: value})
    with pytest.raises(ValueError, match=message):
        compare_runs([write("a", a), other])


def test_what_has_nothing_to_compare_is_refused(write, tmp_path):
    a = probabilities(2, 0, 1.0)
    one = write("a", a)
    with pytest.raises(ValueError, match="one run has nothing to be compared with"):
        compare_runs([one])
    with pytest.raises(ValueError, match=r"has no predictions\.csv; name a folder of"):
        compare_runs([one, tmp_path / "gone"])
    renamed = write("b", a, lambda line: line | {"slide_id": line["slide_id"] + "x"})
    with pytest.raises(ValueError, match="share no test slide"):
        compare_runs([one, renamed])
    without = write("c", a, lambda line: {k: line[k] for k in line if k != "label"})
    with pytest.raises(ValueError, match="has no labels to compare by"):
        compare_runs([one, without])


def test_the_command_prints_it(write, capsys):
    runs = [str(write(name, probabilities(2, 0, 1.0))) for name in "ab"]
    app(["compare", *runs], standalone_mode=False)
    assert "AUC" in capsys.readouterr().out
    command = "from wsi_jax.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", command, "compare", runs[0], "gone"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("RunError: gone has no predictions.csv; name a fold")
    assert len(done.stderr.splitlines()) == 1
