"""Attention sampling beside patch-all: seconds and AUC, from slide files on disk.

    python -m benchmarks.attention_sampling --out FILE --cohorts cohorts/needle_* \
        --fields cohorts/bach --weights encoder.safetensors --runs runs/benchmark

Both read with the same threads, encode with the same trunk, held if it has weights, and
read the next batch while one is learnt from. They are timed in batches of as many
slides, and trained as the variants `needle` and `every_tile` say; how many crops
are sampled is fixed. `finest`: patch-all at the finest magnification. `every`:
patch-all at each of three, their seconds summed; sampling then chooses among the three,
with the losses of `phantom/attention_sampling.py` and more steps, and is judged beside
the finest, for which the trunk was made. `fields`: photographs of 2,048 x 1,536 px in
four classes, and trunks that learn, where only time is measured. Seconds are medians
over batches of the first cohort; those of a verdict do not hold the search for tissue,
which stands beside: one for sampling, one for each magnification of patch-all. AUCs are
means over cohorts, with the interval of independent ones.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from benchmarks import record
from benchmarks.look_costs import cost, speed
from benchmarks.run_folder import Cohort, Run, over_cohorts
from experiments.bach import Bach
from experiments.configs.phantom import attention_sampling as configs
from experiments.configs.pretrain import tiles
from wsi_jax.data.bach import MPP
from wsi_jax.evals.intervals import Interval, delong, delong_difference
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.config import Experiment, Manifest

MPPS, CROPS, DRAWS = (1.0, 2.0, 4.0), 64, 2
EVERY_STEPS = 480  # for a magnification is to be learnt, too
FIELD_PX, FIELD_STEM, FIELD_CROPS, FIELD_DRAWS = 224, 16, 16, 1
BATCHES = 6


def sampled(weights: str, mpps: Sequence[float]) -> Experiment:
    """`CROPS` crops of each slide; a verdict rests on `DRAWS` draws of as many."""
    config = configs.needle()
    config.method = dataclasses.replace(
        config.method, mpps=tuple(mpps), crops=CROPS, draws=DRAWS, **trunk(weights)
    )
    if len(mpps) > 1:  # as the config in which one of several is learnt
        chosen = configs.magnifications().method
        names = ("alone", "spread", "tells")
        held = {name: getattr(chosen, name) for name in names}
        config.method = dataclasses.replace(config.method, **held)
        config.train.steps = EVERY_STEPS
    return config


def patch_all(weights: str, mpp: float) -> Experiment:
    """Every tile at one magnification, side by side."""
    config = configs.every_tile()
    config.method = dataclasses.replace(config.method, mpp=mpp, **trunk(weights))
    return abutting(config)


def trunk(weights: str) -> dict:
    """Of below a millisecond a tile: held where it knows something, or else trained."""
    made = dataclasses.replace(tiles.tile_encoder().method.encoder, weights=weights)
    return {"trunk": made} | ({} if weights else {"trunk_rate": 1.0})


def abutting(config: Experiment) -> Experiment:
    """With cells of the overview as wide as a tile."""
    um = config.method.tile_px * config.method.mpp
    config.grid.size_px = round(um / config.grid.mpp)
    return config


def on_fields(config: Experiment, mpp: float | None = None) -> Experiment:
    """For photographs: tiles of 224 px, fewer crops, a trunk of as little work."""
    config.grid = dataclasses.replace(
        config.grid, mpp=8 * MPP, size_px=FIELD_PX // 8, min_tissue=0.0
    )
    trunk = dataclasses.replace(config.method.trunk, stem=FIELD_STEM, weights="")
    if mpp is None:
        mpps = tuple(MPP * m / MPPS[0] for m in config.method.mpps)
        config.method = dataclasses.replace(
            config.method, trunk=trunk, mpps=mpps, crop_px=FIELD_PX, crops=FIELD_CROPS,
            draws=FIELD_DRAWS,
        )  # fmt: skip
        return config
    config.method = dataclasses.replace(
        config.method, trunk=trunk, mpp=mpp, tile_px=FIELD_PX
    )
    return abutting(config)


def on(config: Experiment, folder: pathlib.Path) -> Experiment:
    """Of a practice cohort, begun with its seed."""
    data = Manifest(manifest=str(folder / "slides.csv"), classes=("normal", "tumor"))
    train = dataclasses.replace(config.train, seed=Cohort(folder).config["seed"])
    return dataclasses.replace(config, data=data, train=train)


def judged(
    name: str,
    ours: Experiment,
    theirs: Experiment,
    cohorts: Sequence[pathlib.Path],
    runs: pathlib.Path,
) -> dict:
    """AUCs of both, and their difference, over cohorts; trains where none has yet."""
    gaps, aucs, n = [], {"auc": [], "auc_patch_all": []}, 0
    for folder in cohorts:
        mine, other = (
            runs / folder.name / of for of in (f"sampled_{name}", "patch_all")
        )
        experiment.run(on(ours, folder), mine)
        experiment.run(on(theirs, folder), other)
        positive, a = Run(mine).scores()
        _, b = Run(other).scores()
        gaps.append(delong_difference(positive, a[""], b[""]))
        for name, p in zip(aucs, (a[""], b[""]), strict=True):
            aucs[name].append(delong(positive, p))
        n += len(positive)
    row = {"n_test": n} | over_cohorts(gaps)
    for name, intervals in aucs.items():
        row |= over_cohorts(intervals, name)
    return row


def overview_only(folder: pathlib.Path) -> Interval:
    """AUC of an overview alone, from the cohort's certificate.

    Raises:
        ValueError: it has none, or it does not tell; nothing said of its AUCs would
            mean anything.
    """
    path = folder / "certificate.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no certificate: run experiments.phantoms.certify first"
        )
    for row in json.loads(path.read_text())["rows"]:
        if (row["probe"], row["mpp"]) == ("slide, fields pooled", 8):
            return Interval(row["auc"], row["lo"], row["hi"])
    raise ValueError(
        f"{path} does not say what fields of 8 um/px tell: is it a needle?"
    )


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument(
        "--cohorts", required=True, nargs="+", type=pathlib.Path,
        help="seconds are of the first, AUCs of all",
    )  # fmt: skip
    parser.add_argument("--fields", type=pathlib.Path, help="photographs, as BACH's")
    parser.add_argument("--weights", default="", help="of the trunk")
    parser.add_argument("--runs", type=pathlib.Path, help="trains there, for AUCs")
    parser.add_argument(
        "--every", nargs="*", default=[], type=pathlib.Path,
        help="of the cohorts, on which it trains to choose a magnification, too",
    )  # fmt: skip
    chosen = parser.parse_args()
    if chosen.every and not chosen.runs:
        parser.error("--every needs --runs: it trains there")
    cohorts = {"finest": chosen.cohorts, "every": chosen.every} if chosen.runs else {}
    certified = {
        name: [overview_only(folder) for folder in folders]
        for name, folders in cohorts.items()
    }
    batches, rows = (3 if chosen.quick else BATCHES), []

    ours = {
        "finest": sampled(chosen.weights, MPPS[:1]),
        "every": sampled(chosen.weights, MPPS),
    }
    theirs = {mpp: patch_all(chosen.weights, mpp) for mpp in MPPS}
    against = {"finest": MPPS[:1], "every": MPPS}
    passes = 1 if chosen.weights else 3
    cohort = on(ours["finest"], chosen.cohorts[0]).data.cohort()
    test = cohort._replace(rows=tuple(r for r in cohort.rows if r.split == "test"))
    costs = {mpp: cost(config, test, batches) for mpp, config in theirs.items()}
    for name, config in ours.items():
        those = [costs[mpp] for mpp in against[name]]
        rows.append(speed(name, cost(config, test, batches), those, passes))
    # Timed before anything is trained, which may share the machine.
    if chosen.fields:
        fields = Bach(root=str(chosen.fields), folds=0, complete=False).cohort()
        mpps = [MPP * mpp / MPPS[0] for mpp in MPPS]
        costs = [cost(on_fields(patch_all("", m), m), fields, batches) for m in mpps]
        for name, count in (("finest", 1), ("every", 3)):
            config = on_fields(sampled("", MPPS[:count]))
            seconds = cost(config, fields, batches)
            rows.append(speed(f"fields, {name}", seconds, costs[:count], 3))
    for row, (name, folders) in zip(rows, cohorts.items(), strict=False):
        if folders:
            row |= judged(name, ours[name], theirs[MPPS[0]], folders, chosen.runs)
            row |= over_cohorts(certified[name], "auc_overview_only")
    record.write(chosen.out, rows)
    print(record.table(rows))


if __name__ == "__main__":
    main()
