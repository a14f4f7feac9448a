"""Attention sampling beside patch-all: seconds and AUC, from slide files on disk.

    python -m benchmarks.attention_sampling --out FILE --cohorts cohorts/needle_* \
        --fields cohorts/bach --weights encoder.safetensors --runs runs/benchmark

Both have the same threads, trunk (frozen if it has weights) and batches, read the next
batch while one is learnt from, and are trained as the variants `needle` and
`every_tile` of `phantom/attention_sampling.py`, sampling with a fixed number of crops.
`finest`: patch-all at the finest magnification. `every`: patch-all at each of three,
their seconds summed; sampling learns to choose among them, in more steps, and its AUC
stands beside that of the finest, for which the trunk was made. `fields`: photographs of
2,048 x 1,536 px in four classes, with trunks that learn; seconds alone. Seconds are
medians over batches of the first cohort, without the search for tissue, which has a
column: once for sampling, once for each magnification of patch-all. AUCs are means over
cohorts, with the interval of independent ones.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from benchmarks import record
from benchmarks.look_costs import cost, speed
from benchmarks.run_folder import Cohort, Run, over_cohorts
from experiments.bach import Bach
from experiments.configs.phantom import attention_sampling as configs
from wsi_jax.data.bach import MPP
from wsi_jax.evals.intervals import Interval, delong, delong_difference
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.config import Experiment, Manifest

MPPS, CROPS, DRAWS = (1.0, 2.0, 4.0), 64, 2
EVERY_STEPS = 480  # for a magnification is to be learnt, too
FIELD_PX, FIELD_STEM, FIELD_CROPS, FIELD_DRAWS = 224, 16, 16, 1
BATCHES = 6


def sampled(weights: str, mpps: Sequence[float]) -> Experiment:
    """`CROPS` crops of each slide; a prediction rests on `DRAWS` draws of as many."""
    config = configs.needle()
    method = with_trunk(config, weights)
    method.mpps, method.crops, method.sampling.draws = tuple(mpps), CROPS, DRAWS
    if len(mpps) > 1:  # as the config in which one of several is learnt
        learnt = configs.magnifications().method
        method.head.by_magnification = learnt.head.by_magnification
        method.loss = dataclasses.replace(learnt.loss, entropy=method.loss.entropy)
        config.train.steps = EVERY_STEPS
    return config


def patch_all(weights: str, mpp: float) -> Experiment:
    """Every tile at one magnification, side by side."""
    config = configs.every_tile()
    with_trunk(config, weights).mpp = mpp
    return abutting(config)


def with_trunk(config: Experiment, weights: str):
    """The config's method, its trunk held if it has weights, and else trained."""
    method = config.method
    method.trunk.weights, method.trunk_rate = weights, 0.0 if weights else 1.0
    return method


def abutting(config: Experiment) -> Experiment:
    """With cells of the overview as wide as a tile."""
    um = config.method.tile_px * config.method.mpp
    config.grid.size_px = round(um / config.grid.mpp)
    return config


def on_fields(config: Experiment) -> Experiment:
    """For photographs: tiles of 224 px, fewer crops, a trunk of as little work."""
    method, finest = config.method, MPP / MPPS[0]
    config.grid = dataclasses.replace(
        config.grid, mpp=8 * MPP, size_px=FIELD_PX // 8, min_tissue=0.0
    )
    method.trunk.stem = FIELD_STEM
    if hasattr(method, "crops"):
        method.mpps = tuple(finest * mpp for mpp in method.mpps)
        method.crop_px, method.crops = FIELD_PX, FIELD_CROPS
        method.sampling.draws = FIELD_DRAWS
        return config
    method.mpp, method.tile_px = finest * method.mpp, FIELD_PX
    return abutting(config)


def on(config: Experiment, folder: pathlib.Path) -> Experiment:
    """On a practice cohort, begun with its seed."""
    data = Manifest(manifest=str(folder / "slides.csv"), classes=("normal", "tumor"))
    train = dataclasses.replace(config.train, seed=Cohort(folder).config["seed"])
    return dataclasses.replace(config, data=data, train=train)


def aucs_of(
    name: str, cohorts: Sequence[pathlib.Path], weights: str, runs: pathlib.Path
) -> dict:
    """AUCs of both, and their difference, over cohorts; trains where none has yet."""
    mpps = MPPS[:1] if name == "finest" else MPPS
    methods = {
        f"sampled_{name}": sampled(weights, mpps),
        "patch_all": patch_all(weights, MPPS[0]),
    }
    gaps, aucs, n = [], {"auc": [], "auc_patch_all": []}, 0
    for folder in cohorts:
        each = []
        for learner, config in methods.items():
            run = runs / folder.name / learner
            experiment.run(on(config, folder), run)
            positive, scores = Run(run).scores()
            each.append(scores[""])
        gaps.append(delong_difference(positive, *each))
        for values, p in zip(aucs.values(), each, strict=True):
            values.append(delong(positive, p))
        n += len(positive)
    row = {"n_test": n} | over_cohorts(gaps)
    for column, intervals in aucs.items():
        row |= over_cohorts(intervals, column)
    return row


def overview_only(folder: pathlib.Path) -> Interval:
    """AUC of an overview alone, from the cohort's certificate.

    Raises:
        ValueError: it has none, or not of 8 um/px; AUCs would mean nothing.
    """
    path = folder / "certificate.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no certificate: run experiments.phantoms.certify first"
        )
    for row in Cohort(folder).certificate():
        if (row["probe"], row["mpp"]) == ("slide, fields pooled", 8):
            return Interval(row["auc"], row["lo"], row["hi"])
    raise ValueError(
        f"{path} does not say what fields of 8 um/px tell: is it a needle?"
    )


def speeds(args: record.Arguments) -> Iterator[dict]:
    """Rows of what is timed: sampling beside patch-all, on slides and photographs."""
    batches, weights = 3 if args.quick else BATCHES, args.weights
    regimes = {"finest": MPPS[:1], "every": MPPS}
    cohort = on(sampled(weights, MPPS), args.cohorts[0]).data.cohort()
    test = cohort._replace(rows=tuple(r for r in cohort.rows if r.split == "test"))
    theirs = [cost(patch_all(weights, mpp), test, batches) for mpp in MPPS]
    for name, mpps in regimes.items():
        ours = cost(sampled(weights, mpps), test, batches)
        yield speed(name, ours, theirs[: len(mpps)], 1 if weights else 3)
    if not args.fields:
        return
    fields = Bach(root=str(args.fields), folds=0, complete=False).cohort()
    theirs = [cost(on_fields(patch_all("", m)), fields, batches) for m in MPPS]
    for name, mpps in regimes.items():
        ours = cost(on_fields(sampled("", mpps)), fields, batches)
        yield speed(f"fields, {name}", ours, theirs[: len(mpps)], 3)


def rows(args: record.Arguments) -> list[dict]:
    """Seconds, and then AUCs: what is trained may share the machine."""
    if args.every and not args.runs:
        raise SystemExit("--every needs --runs: it trains there")
    cohorts = {"finest": args.cohorts, "every": args.every} if args.runs else {}
    certified = {
        name: [overview_only(folder) for folder in folders]
        for name, folders in cohorts.items()
    }
    rows = list(speeds(args))
    for row, (name, folders) in zip(rows, cohorts.items(), strict=False):
        if folders:
            row |= aucs_of(name, folders, args.weights, args.runs)
            row |= over_cohorts(certified[name], "auc_overview_only")
    return rows


FOLDERS = {"nargs": "+", "type": pathlib.Path}
OPTIONS = {
    "--cohorts": FOLDERS
    | {"required": True, "help": "seconds are of the first, AUCs of all"},
    "--fields": {"type": pathlib.Path, "help": "photographs, as BACH's"},
    "--weights": {"default": "", "help": "of the trunk"},
    "--runs": {"type": pathlib.Path, "help": "trains there, for AUCs"},
    "--every": FOLDERS
    | {"default": [], "help": "cohorts on which a magnification is learnt, too"},
}

if __name__ == "__main__":
    record.main(__doc__, rows, OPTIONS)
