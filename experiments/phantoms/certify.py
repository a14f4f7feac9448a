"""Certifies a practice cohort: where its signal is, and that it is nowhere else.

    python -m experiments.phantoms.certify --cohort cohorts/fine_only

Writes `certificate.json` into the cohort's folder: the AUC, with its 95 % interval,
of linear probes of a slide's fields at each resolution, of a probe that compares
neighbouring pieces of tissue, of the slides' metadata alone, of slides whose foci were
cut out, and of shuffled labels. Probes learn from training and validation slides and
are tested on test slides, whose textures come from other clusters.
"""

import argparse
import concurrent.futures
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float
from sklearn import linear_model, pipeline, preprocessing

from experiments.phantoms.cohort_folder import made_with
from experiments.phantoms.describe_slides import (
    NEIGHBOUR_SCALE,
    CertifyError,
    Description,
    describe_slide,
    pool_fields,
)
from experiments.phantoms.presets import LAWS, SCALES, Preset
from wsi_jax.commands.config_command_line import errors_in_one_line
from wsi_jax.data.cohort import Cohort, read_manifest
from wsi_jax.evals.intervals import delong
from wsi_jax.run.run_folder import write_json

REACHES = 0.85


def main() -> None:
    """Certifies the cohort on the command line; an error is one message."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", required=True, help="folder that make_cohort wrote")
    folder = pathlib.Path(parser.parse_args().cohort)
    with errors_in_one_line(folder):
        rows = certify(folder)["rows"]
    for row in rows:
        logging.info(
            "%-22s %5s um/px  AUC %s [%s, %s]  %s",
            *(row["probe"], row["mpp"] or "", row["auc"], row["lo"], row["hi"]),
            {True: "ok", False: "FAILS", None: ""}[row["ok"]],
        )


def certify(folder: str | os.PathLike) -> dict:
    """Measures a cohort; what `certificate.json`, which it writes, holds.

    Raises:
        ValueError: no cohort there, too few slides, or one that cannot be read.
    """
    folder = pathlib.Path(folder)
    config = made_with(folder)
    try:
        preset, source_mpp = Preset(config["preset"]), float(config["mpp"])
    except (KeyError, ValueError, TypeError) as error:
        raise CertifyError(
            f"{folder}: no cohort of slides that experiments.phantoms.make_cohort of "
            f"this version wrote ({type(error).__name__}: {error}); name another folder"
        ) from error
    cohort = read_manifest(folder / "slides.csv")
    workers = os.cpu_count() or 1
    dominoes = LAWS[preset].dominoes
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        describe = lambda row: describe_slide(row, source_mpp, dominoes)
        slides = list(threads.map(describe, cohort.rows))
    rows = Certificate(cohort, slides, preset, source_mpp).all_rows()
    passed = all(row["ok"] is not False for row in rows)
    certificate = {"preset": preset.value, "passed": passed, "rows": rows}
    write_json(folder / "certificate.json", certificate)
    return certificate


class Certificate:
    """The rows of a certificate: the AUC of each probe, and whether it should."""

    def __init__(
        self,
        cohort: Cohort,
        slides: Sequence[Description],
        preset: Preset,
        source_mpp: float,
    ):
        self.slides, self.preset, self.mpp = slides, preset, source_mpp
        self.label = np.minimum(cohort._replace(classes=_order(cohort)).targets, 1)
        self.test = np.array([row.split == "test" for row in cohort.rows])

    def all_rows(self) -> list[dict]:
        """Every probe of the cohort."""
        slides, law = self.slides, LAWS[self.preset]
        outside = lambda scale: "none" if scale in law.off_band else ""
        rows = []
        for scale in SCALES:
            expected = "signal" if scale in law.in_band else outside(scale)
            focus = [s.focus[scale] for s in slides]
            rows.append(self.row("field in focus", scale, focus, expected))
        for scale in SCALES:
            pooled = [_pool(s.tissue[scale]) for s in slides]
            rows.append(self.row("slide, fields pooled", scale, pooled, outside(scale)))
        pairs = [s.neighbours[None] for s in slides]
        expected = "signal" if law.dominoes else "none" if law.off_band else ""
        rows.append(self.row("slide, neighbours", NEIGHBOUR_SCALE, pairs, expected))
        expected = "" if law.biased_site else "none"
        metadata = [s.metadata[None] for s in slides]
        rows.append(self.row("metadata only", None, metadata, expected))
        if not law.dominoes:
            for scale in (1, NEIGHBOUR_SCALE):
                rest = [_pool(s.tissue[scale][s.clean]) for s in slides]
                rows.append(self.row("slide, foci removed", scale, rest, expected))
        if law.suspects:
            rows.append(self.suspect_row(NEIGHBOUR_SCALE))
        # Within the splits, so that both keep their prevalence.
        rng, shuffled = np.random.default_rng(0), self.label.copy()
        for part in (self.test, ~self.test):
            shuffled[part] = rng.permutation(self.label[part])
        focus = [s.focus[1] for s in slides]
        return [*rows, self.row("labels shuffled", 1, focus, "none", shuffled)]

    def suspect_row(self, scale: int) -> dict:
        """How well mean colour alone tells foci from other tissue."""
        parts = [(s.focus[scale], s.tissue[scale][s.clean]) for s in self.slides]
        counts = [[len(focus), len(rest)] for focus, rest in parts]
        is_focus = np.concatenate([np.repeat([1, 0], count) for count in counts])
        colours = [np.concatenate(pair)[:, :3] for pair in parts]
        return self.row("suspect, by colour", scale, colours, "", is_focus)

    def row(
        self,
        probe: str,
        scale: int | None,
        arrays: Sequence[Float[np.ndarray, "n d"]],
        expected: str,
        truth: np.ndarray | None = None,
    ) -> dict:
        """One probe: it learns from training and validation slides, test slides test.

        Args:
            probe: its name.
            scale: scale of the fields; None where there is none.
            arrays: descriptions of each slide.
            expected: "signal", "none", or "" where neither is.
            truth: class of each slide, or each description; None for the labels.

        Raises:
            CertifyError: too few fields.
        """
        truth = self.label if truth is None else truth
        by_slide = len(truth) == len(self.label)
        slide = np.repeat(np.arange(len(self.label)), [len(array) for array in arrays])
        learn, y = ~self.test[slide], truth[slide] if by_slide else truth
        if len(np.unique(y[learn])) < 2 or learn.all():
            raise CertifyError(
                f"too few fields for probe {probe!r}: it learns from two classes of "
                "training slides and is tested on test slides; have "
                "experiments.phantoms.make_cohort make more or larger ones "
                "(--config.n_train, --config.n_test, --config.side_px)"
            )
        x = np.concatenate([array for array in arrays if len(array)])
        scores = probe_scores(x[learn], y[learn], x[~learn])
        y, slide = y[~learn], slide[~learn]
        if by_slide:  # the mean over a slide's fields
            slide, first, index = np.unique(slide, True, True)
            scores, y = np.bincount(index, scores) / np.bincount(index), y[first]
        auc = delong(y == 1, scores, slide)
        # JSON has no NaN, which is what a class without a single field gives.
        ends = (None if np.isnan(end) else round(float(end), 4) for end in auc)
        return {
            "probe": probe,
            "mpp": None if scale is None else scale * self.mpp,
            **dict(zip(("auc", "lo", "hi"), ends, strict=True)),
            "expected": expected,
            "slides": int(self.test.sum()),
            "ok": _holds(auc, expected),
        }


def probe_scores(
    train: Float[np.ndarray, "n d"],
    labels: np.ndarray,
    test: Float[np.ndarray, "m d"],
) -> Float[np.ndarray, " m"]:
    """Scores of test rows by a ridge-penalised logistic regression."""
    probe = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000),
    )
    return probe.fit(train, labels).decision_function(test)


def _pool(described):
    """One row that describes a slide by its fields; none where it has none."""
    return pool_fields(described)[None] if len(described) else described


def _holds(auc, expected):
    if expected == "signal":
        return bool(auc.value >= REACHES)
    if expected == "none":
        return bool(auc.lo <= 0.5 <= auc.hi)
    return None


def _order(cohort):
    return ("normal", *(name for name in cohort.classes if name != "normal"))


if __name__ == "__main__":
    main()
