"""Certifies a practice cohort: where its signal is, and that it is nowhere else.

    python -m experiments.phantoms.certify --cohort cohorts/fine_only

Writes `certificate.json` into the cohort's folder: the AUC, with its 95 % interval,
of probes that judge a slide by its fields at each resolution, of a probe that compares
neighbouring pieces of tissue, of the slides' metadata alone, of slides whose foci were
cut out, and of shuffled labels. Probes learn from training and validation slides and
are judged on test slides, whose textures come from other clusters.
"""

import concurrent.futures
import json
import os
import pathlib

import numpy as np
from absl import app, flags, logging
from PIL import Image
from scipy import ndimage

from experiments.phantoms import probe
from experiments.phantoms.making import made_with
from experiments.phantoms.presets import LAWS, Preset
from experiments.phantoms.synthetic import CELL_PX, GLASS, LESION, SHAM, TISSUE
from wsi_jax.cli import errors_in_one_line
from wsi_jax.data.cohort import Cohort, label_ids, read_manifest
from wsi_jax.evals.intervals import delong
from wsi_jax.files import write_text
from wsi_jax.slides.slide import open_slide

# In pixels of the source's tiles: a box of the composite is 8 of them.
SCALES = (1, 2, 4, 8, 16, 32)
IN_FOCUS, ON_TISSUE = 0.75, 0.6
FOCUS_FIELDS, TISSUE_FIELDS = 10, 48
NEIGHBOUR_SCALE = 8
REACHES = 0.85
# Where each preset's signal is: scales at which fields of lesions and shams differ.
IN_BAND = {
    Preset.PLAIN: (1, 2, 4, 8, 16),
    Preset.FINE_ONLY: (1, 2, 4),
    Preset.COARSE_ONLY: (),
    Preset.MID: (1, 2, 4),
    Preset.NEEDLE: (1, 2, 4),
    Preset.SPARSE: (1, 2, 4),
    Preset.DIFFUSE: (1, 2, 4),
    Preset.THREE: (1, 2, 4),
    Preset.NULL: (),
    Preset.SHIFT: (1, 2, 4),
}
# Where there must be none. What is in neither, nothing is said about.
OFF_BAND = dict.fromkeys(Preset, (8, 16, 32)) | {
    Preset.PLAIN: (),
    Preset.MID: (16, 32),
    Preset.COARSE_ONLY: (1, 2, 4),
    Preset.NULL: SCALES,
}
COHORT = flags.DEFINE_string("cohort", None, "folder that make_cohort wrote")


class CertifyError(ValueError):
    """A cohort that cannot be certified; the message names the file and the mend."""


def main(argv) -> None:
    """Certifies the cohort on the command line; an error is one message."""
    del argv
    folder = pathlib.Path(COHORT.value)
    with errors_in_one_line(folder):
        rows = certify(folder)["rows"]
    for row in rows:
        logging.info(
            "%-22s %5s um/px  AUC %s [%s, %s]  %s",
            *(row["probe"], row["mpp"] or "", row["auc"], row["lo"], row["hi"]),
            {True: "ok", False: "FAILS", None: ""}[row["ok"]],
        )


def certify(folder: str | os.PathLike) -> dict:
    """Measures a cohort and writes its certificate.

    Args:
        folder: that `make_cohort` wrote.

    Returns:
        What `certificate.json` holds: `rows` of probe, mpp, auc, lo, hi, what was
        expected and whether it holds; `passed` when all do.

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
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        looks = threads.map(
            lambda row: look(row, source_mpp, LAWS[preset].dominoes), cohort.rows
        )
        looks = list(looks)
    rows = judge_all(cohort, looks, preset, source_mpp)
    passed = all(row["ok"] is not False for row in rows)
    certificate = {"preset": preset.value, "passed": passed, "rows": rows}
    path = folder / "certificate.json"
    write_text(path, json.dumps(certificate, indent=1) + "\n")
    return certificate


def look(row, source_mpp, dominoes) -> dict:
    """Describes one slide at every scale: its foci, its tissue, the rest of it."""
    truth = _read_mask(row)
    cell_um = CELL_PX * source_mpp
    rng = np.random.default_rng(sum(row.slide_id.encode()))
    focus = truth == (LESION if (truth == LESION).any() else SHAM)
    focus = focus if not dominoes else truth == TISSUE
    in_focus = _corners(rng, focus, cell_um, IN_FOCUS, FOCUS_FIELDS, 1)
    grid = _corners(rng, truth != GLASS, cell_um, ON_TISSUE, TISSUE_FIELDS, None)
    away = ndimage.binary_dilation((truth == LESION) | (truth == SHAM), iterations=2)
    clean = [not _window(away, corner, cell_um).any() for corner in grid]
    found = {"focus": {}, "tissue": {}, "clean": np.array(clean, bool)}
    with open_slide(row.path) as slide:
        for scale in SCALES:
            mpp = scale * source_mpp
            image = slide.overview(mpp)
            for name, corners in (("focus", in_focus), ("tissue", grid)):
                fields = probe.fields(image, mpp, corners)
                found[name][scale] = probe.describe(fields)
            if scale == NEIGHBOUR_SCALE:
                found["neighbours"] = probe.neighbours(image, mpp)
                found["metadata"] = _metadata(row, slide, image)
    return found


def judge_all(cohort: Cohort, looks: list, preset: Preset, source_mpp: float) -> list:
    """All rows of the certificate."""
    label = np.minimum(label_ids(cohort._replace(classes=_order(cohort))), 1)
    test = np.array([row.split == "test" for row in cohort.rows])
    rows = []

    def add(name, scale, arrays, expected, truth=label):
        counts = [len(array) for array in arrays]
        slide = np.repeat(np.arange(len(label)), counts)
        learn = ~test[slide]
        y = truth[slide] if len(truth) == len(label) else truth
        if len(np.unique(y[learn])) < 2 or learn.all():
            raise CertifyError(
                f"too few fields for probe {name!r}: it learns from two classes of "
                "training slides and is judged on test slides; have "
                "experiments.phantoms.make_cohort make more or larger ones "
                "(--config.n_train, --config.n_test, --config.side_px)"
            )
        x = np.concatenate([a for a in arrays if len(a)])
        scores = probe.judge(x[learn], y[learn], x[~learn])
        y, slide = y[~learn], slide[~learn]
        if len(truth) == len(label):  # a slide's fields speak with one voice
            slide, first, index = np.unique(slide, True, True)
            scores, y = np.bincount(index, scores) / np.bincount(index), y[first]
        found = delong(y == 1, scores, slide)
        row = {
            "probe": name,
            "mpp": None if scale is None else scale * source_mpp,
            "auc": found.value,
            "lo": found.lo,
            "hi": found.hi,
            "expected": expected,
            "slides": int(test.sum()),
            "ok": _holds(found, expected),
        }
        # JSON has no NaN, which is what a class without a single field gives.
        for name in ("auc", "lo", "hi"):
            row[name] = None if np.isnan(row[name]) else round(float(row[name]), 4)
        rows.append(row)

    for scale in SCALES:
        inside, outside = scale in IN_BAND[preset], scale in OFF_BAND[preset]
        expected = "signal" if inside else "none" if outside else ""
        add("field in focus", scale, [s["focus"][scale] for s in looks], expected)
    for scale in SCALES:
        pooled = [_pool(s["tissue"][scale]) for s in looks]
        expected = "none" if scale in OFF_BAND[preset] else ""
        add("slide, fields pooled", scale, pooled, expected)
    pairs = [np.array([s["neighbours"]]) for s in looks]
    expected = "signal" if preset is Preset.COARSE_ONLY else "none"
    expected = "" if preset is Preset.PLAIN else expected
    add("slide, neighbours", NEIGHBOUR_SCALE, pairs, expected)
    expected = "" if preset is Preset.SHIFT else "none"
    add("metadata only", None, [s["metadata"][None] for s in looks], expected)
    if not LAWS[preset].dominoes:
        for scale in (1, NEIGHBOUR_SCALE):
            kept = [s["tissue"][scale][s["clean"]] for s in looks]
            add("slide, foci removed", scale, [_pool(k) for k in kept], expected)
    if LAWS[preset].suspects:
        scale = NEIGHBOUR_SCALE
        # Their mean colour only: what one cell of an overview shows.
        described = [(s["focus"][scale], s["tissue"][scale][s["clean"]]) for s in looks]
        parts = [(focus[:, :3], rest[:, :3]) for focus, rest in described]
        suspect = np.concatenate(
            [np.repeat([1, 0], [len(f), len(t)]) for f, t in parts]
        )
        add(
            "suspect, by colour", scale, [np.concatenate(p) for p in parts], "", suspect
        )
    # Within the splits, so that both keep their prevalence.
    rng, shuffled = np.random.default_rng(0), label.copy()
    for part in (test, ~test):
        shuffled[part] = rng.permutation(label[part])
    in_focus = [s["focus"][1] for s in looks]
    add("labels shuffled", 1, in_focus, "none", shuffled)
    return rows


def _pool(described):
    """One row that describes a slide by its fields; none where it has none."""
    return probe.pool(described)[None] if len(described) else described


def _read_mask(row):
    try:
        with Image.open(row.mask_path) as image:
            return np.asarray(image)
    except Exception as error:  # decoders raise whatever they like on junk
        raise CertifyError(
            f"{row.mask_path}: cannot be read ({error}); delete {row.path} and run "
            "experiments.phantoms.make_cohort again, which draws both anew"
        ) from error


def _holds(found, expected):
    if expected == "signal":
        return bool(found.value >= REACHES)
    if expected == "none":
        return bool(found.lo <= 0.5 <= found.hi)
    return None


def _order(cohort):
    return ("normal", *(name for name in cohort.classes if name != "normal"))


def _metadata(row, slide, overview):
    """What a cheat could know: bytes, sizes, tissue, colour."""
    tissue = overview.max(-1).astype(int) - overview.min(-1) > 20
    colour = overview[tissue].mean(0) if tissue.any() else np.zeros(3)
    size = os.path.getsize(row.path)
    area = tissue.sum() + 1
    facts = [np.log(size), np.log(size / area), slide.mpp, *slide.shape, area]
    return np.array([*facts, *colour, tissue.mean()])


def _corners(rng, mask, cell_um, least, most, step):
    """Corners (y, x), um, of at most so many fields that a mask covers well enough."""
    side = round(probe.FIELD_UM / cell_um)
    cover = ndimage.uniform_filter(mask.astype(np.float32), side, mode="constant")
    middle = cover >= least
    if step is None:  # a grid of fields side by side, from a random origin
        grid = np.zeros_like(middle)
        y, x = rng.integers(0, side, 2)
        grid[y::side, x::side] = True
        middle &= grid
    at = np.argwhere(middle)
    at = at[rng.permutation(len(at))[:most]]
    return (at - side // 2).clip(0) * cell_um


def _window(mask, corner, cell_um):
    side = round(probe.FIELD_UM / cell_um)
    y, x = (corner / cell_um).astype(int)
    return mask[y : y + side, x : x + side]


if __name__ == "__main__":
    flags.mark_flag_as_required("cohort")
    app.run(main)
