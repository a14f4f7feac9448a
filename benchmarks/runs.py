"""Collects finished runs, or certificates of cohorts, into one JSON of flat rows.

    python -m benchmarks.runs KIND --out benchmarks/results/KIND.json FOLDER ...

Every row has the preset and seed of its practice cohort, and how many rows of the
cohort's certificate hold: `signal_held` of the `signal` rows that ask for a signal and
`none_held` of the `none` rows that allow none. Kinds:

- practice: what was learnt, on what, at what cost.
- phantoms: methods beside opponents that see no detail, from the cohort's certificate:
  an overview (statistics of fields at 8 times the tiles' um/px, pooled over the slide),
  metadata (bytes, sizes, mean colour) and the majority, which ranks nothing.
- certificates: each probe of each cohort (the folders are cohorts), its AUC, what was
  expected ("signal": at least .85; "none": the interval covers .5), whether that holds.
- streaming_runs: trunks trained or frozen; hours; where attention lies (below).
- tile_encoders: accuracy of pre-trained encoders on each group of classes, on test
  tiles of other clusters than they learnt from (95 % by cluster), beside a logistic
  regression on colours and gradients of the same tiles.
- crops, attention_pooling_runs: see `benchmarks.comparisons`.
- zoom_runs: see `benchmarks.zoom_runs`.

Where attention lies: average precision with which it finds cells that are lesion by
half or more, on tumour test slides (mean over slides, 95 % by resampling them), beside
the share of such cells, which is what chance gives.
"""

import pathlib
from collections.abc import Iterator, Sequence

from benchmarks import record
from benchmarks.comparisons import attention_pooling_runs, crops, picture
from benchmarks.run_folder import ENDS, Cohort, Run, interval
from benchmarks.zoom_runs import zoom_runs
from wsi_jax.nets.weights_metadata import read_weights_metadata

OVERVIEW = 8
COSTS = ("slides", "tiles", "bytes_decoded", "wall_s", "peak_host_bytes")


def practice(run: Run) -> dict:
    """What was learnt, on what, at what cost.

    Of features that an earlier run made no cost is known.
    """
    weights, machine = run.config["encoder.weights"], run.made["machine"]
    weights = pathlib.Path(weights).stem if weights else "random"
    seed = "" if run.config["encoder.weights"] else f" {run.config['encoder.seed']}"
    encoded = sum(s["status"] == "encoded" for s in run.lines("slides.csv"))
    own = run.cost["slides"] >= encoded
    return {
        "run": run.folder.name,
        "method": run.method,
        "encoder": f"{run.config['encoder.depth']}, {weights}{seed}",
        "preset": run.cohort.config["preset"],
        "source": run.cohort.source,
        "mpp": run.config["grid.mpp"],
        "size_px": run.config["grid.size_px"],
        **run.metrics("auc"),
        **{name: run.test[name] for name in ("balanced_accuracy", "f1")},
        **{name: run.cost[name] if own else None for name in COSTS},
        "run_commit": run.commit,
        **{f"run_{name}": machine[name] for name in ("device", "cpu")},
        "run_jax": run.made["versions"]["jax"],
    }


def phantoms(runs: Sequence[Run]) -> list[dict]:
    """Methods, and of each cohort the opponents that see no detail."""
    rows, cohorts = [], {}
    for run in runs:
        cohorts.setdefault(run.cohort.folder, []).append(run)
    for mine in cohorts.values():
        about = mine[0].cohort.about()
        rows += [about | row for row in (*map(phantom_row, mine), *opponents(mine[0]))]
    return rows


def phantom_row(run: Run) -> dict:
    """One method on one cohort."""
    weights = run.config["encoder.weights"]
    origin = read_weights_metadata(weights) if weights else None
    again = origin and origin.made["config"]["method"]["encoder"]["weights"]
    slides = run.lines("slides.csv")
    sides = [int(slide[name]) for slide in slides for name in ("height", "width")]
    return {
        "learner": run.method + ", encoder trained again" * bool(again),
        **run.metrics("auc"),
        "slides": len(slides),
        "least_side_px": min(sides),
        "largest_side_px": max(sides),
        "run_commit": run.commit,
    }


def opponents(run: Run) -> list[dict]:
    """The probes of the cohort's certificate that see no detail."""
    probes = {
        "overview": ("slide, fields pooled", OVERVIEW * run.cohort.config["mpp"]),
        "metadata": ("metadata only", None),
    }
    rows = {(r["probe"], r["mpp"]): r for r in run.cohort.certificate()}
    aucs = {
        name: [rows[probe][end] for end in ("auc", "lo", "hi")]
        for name, probe in probes.items()
    }
    n = {"n": rows[probes["overview"]]["slides"]}
    return [
        {"learner": learner} | interval("auc", auc) | n
        for learner, auc in (aucs | {"majority": (0.5, 0.5, 0.5)}).items()
    ]


def streaming(run: Run, most: int | None) -> dict:
    """A trunk trained or frozen; where attention lies if it is the method's own."""
    config, steps = run.config, run.config["train.steps"]
    streams = "method.trunk.weights" in config
    weights = config["method.trunk.weights" if streams else "encoder.weights"]
    frozen = not streams or config["method.thaw.frozen"] >= steps
    n_train = sum(one["split"] == "train" for one in run.lines("manifest.csv"))
    row = run.cohort.about() | {
        "learner": "frozen" if frozen else "end to end",
        "trunk": "pre-trained" if weights else "random",
        "mpp": config["grid.mpp"],
        "seed_of_weights": config["train.seed"],
        "n_train": n_train,
        "epochs": steps * config["train.batch"] / n_train,
        **run.metrics("auc"),
        "hours": run.cost["wall_s"] / 3600,
        "run_commit": run.commit,
    }
    if not streams:
        return row
    where = run.localisation(most, "auprc", "chance")
    chance = {"auprc_chance": where["chance"]}
    return row | {n: v for n, v in where.items() if "chance" not in n} | chance


def tile_encoder(run: Run) -> Iterator[dict]:
    """A row for each group of classes."""
    config = run.config
    about = {
        "run": run.folder.name,
        "encoder": config["method.encoder.depth"],
        "width": config["method.encoder.width"],
        "mpp": config["mpp"],
        "steps": config["train.steps"],
        "run_commit": run.commit,
    }
    measures = ("accuracy", "baseline_accuracy", "difference")
    ends = [f"{name}{end}" for name in measures for end in ENDS]
    for group in [name.removesuffix(".n") for name in run.test if name.endswith(".n")]:
        values = {n: run.test[f"{group}.{n}"] for n in ("n", "n_clusters", *ends)}
        yield about | {"group": group} | values


def certificates(cohorts: Sequence[pathlib.Path]) -> list[dict]:
    """The rows of each certificate that something was expected of."""
    rows = []
    for cohort in map(Cohort, cohorts):
        about = {name: cohort.config[name] for name in ("preset", "seed", "styles")}
        about["source"] = cohort.source
        rows += [about | row for row in cohort.certificate() if row["expected"]]
    return rows


# (runs, most slides of each whose attention is drawn upon) -> rows
KINDS = {
    "practice": lambda runs, most: [practice(run) for run in runs],
    "phantoms": lambda runs, most: phantoms(runs),
    "crops": lambda runs, most: crops(runs),
    "streaming_runs": lambda runs, most: [streaming(run, most) for run in runs],
    "zoom_runs": lambda runs, most: zoom_runs(runs),
    "attention_pooling_runs": attention_pooling_runs,
    "tile_encoders": lambda runs, most: [r for run in runs for r in tile_encoder(run)],
}
OPTIONS = {
    "kind": {"choices": [*KINDS, "certificates"]},
    "folders": {"nargs": "+", "type": pathlib.Path},
    "--picture": {"type": pathlib.Path, "help": "PNG of AUC by crops"},
}


def rows(args: record.Arguments) -> list[dict]:
    """Rows of a kind; quick ones take attention of eight slides of each run."""
    if args.kind == "certificates":
        return certificates(args.folders)
    runs = [Run(folder) for folder in args.folders]
    table = KINDS[args.kind](runs, 8 if args.quick else None)
    if args.picture:
        picture(table, args.picture)
    return table


if __name__ == "__main__":
    record.main(__doc__, rows, OPTIONS)
