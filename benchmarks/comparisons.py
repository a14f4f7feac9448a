"""Kinds of `benchmarks.runs` that compare learners on the same test slides.

- crops: attention sampling beside crops at random and beside patch-all: test AUC by
  the crops it was trained to choose, that of the other inference, the share of
  attention at each magnification on test slides, and when training began and ended.
  `attentions` are those on what crops themselves show, 0 where crops are weighed by the
  overview alone. `--picture FILE` draws AUC by crops.
- attention_pooling_runs: AUC, F1, and where attention lies, by what weighs the tiles.
  Of each cohort the power that validation likes best (least log loss) stands once more,
  as `tuned`. A row with `seeds` is the mean over cohorts, with the interval of
  independent ones. Runs that differ after the scorer may share one: its folder
  `scorer`, put into another run before it begins, is taken as it is. `--earlier FILE`
  takes over the runs of an earlier record that are not given again.
A row `learnt - uniform` or `joint - two-stage` is the paired difference of AUCs over
all cohorts that have both: the mean of theirs, with the interval of independent
cohorts.
"""

import argparse
import itertools
import json
import pathlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.derive import grouped
from benchmarks.run_folder import Run, over_cohorts
from wsi_jax.evals.attention import Localisation
from wsi_jax.evals.intervals import Difference, delong_difference
from wsi_jax.report.figure import COLOURS, INK, new_figure, quiet, save_png

TUNED, JOINT = "power, tuned", ", joint"
HELD = "signal", "signal_held", "none", "none_held"
MEASURES = "auc", "f1", *Localisation._fields


def paired(
    runs: Iterable[tuple[Mapping, Run]],
    cohort: Callable[[Mapping], Hashable],
    ours: Callable[[Mapping], bool],
    other: Callable[[Mapping], bool],
) -> list[Difference]:
    """Differences of AUC on the test slides of every cohort that has both learners.

    Args:
        runs: rows and the runs that they are of.
        cohort: (row) -> what tells its cohort from others.
        ours: (row) -> whether it is of the one learner.
        other: (row) -> whether it is of the other.
    """
    runs = list(runs)
    against = {cohort(row): run for row, run in runs if other(row)}
    gaps = []
    for row, run in runs:
        if ours(row) and cohort(row) in against:
            positive, scores = run.scores()
            _, others = against[cohort(row)].scores()
            gaps.append(delong_difference(positive, scores[""], others[""]))
    return gaps


def crops(runs: Sequence[Run], args: argparse.Namespace) -> list[dict]:
    """Attention sampling, uniform crops and patch-all; their paired differences."""
    rows = [crops_row(run) for run in runs]
    return rows + crops_differences(list(zip(rows, runs, strict=True)))


def crops_row(run: Run) -> dict:
    """One run: its learner, how many crops it chooses, how well it does."""
    config = run.config
    samples = "method.sampling.placement" in config
    inference = (
        "top" if config.get("method.sampling.inference") == "sampled" else "sampled"
    )
    row = run.cohort.about() | {
        "n_train": run.cohort.config["n_train"],
        "learner": config["method.sampling.placement"] if samples else "patch-all",
        "crops": config["method.crops"] if samples else None,
        "attentions": attentions(config),
        "steps": config["train.steps"],
        "batch": config["train.batch"],
        **run.judged("auc"),
    }
    if samples:
        row[f"auc_{inference}"] = run.test[f"inference.{inference}.auc"]
        mass = _mass(run.test, "mass.")
        if len(mass) > 1:
            row |= {f"mass_{mpp}": share for mpp, share in mass.items()}
            tiles = [int(s["tiles"] or 0) for s in run.lines("slides.csv")]
            row["cells"] = round(len(mass) * np.mean([n for n in tiles if n]))
            for when, shares in zip(("first", "last"), ends(run), strict=True):
                row |= {f"{when}_{mpp}": share for mpp, share in shares.items()}
    return row | {
        "minutes": run.cost["wall_s"] / 60,
        "run_cores": run.made["machine"]["cores"],
        "run_commit": run.commit,
    }


def attentions(config: Mapping) -> int:
    """Attentions on what crops show; 1 where a run's config does not name them."""
    pools = config.get("method.head.attention_width", 0) > 0
    return config.get("method.head.branches", 1) if pools else 0


def ends(run: Run) -> list[dict[str, float]]:
    """Share of attention at each magnification, first and last in the log."""
    log = (run.folder / "train" / "metrics.jsonl").read_text().splitlines()
    shares = [_mass(json.loads(line), "train.mass.") for line in log]
    shares = [one for one in shares if one]
    return [shares[0], shares[-1]]


def crops_differences(runs: Sequence[tuple[Mapping, Run]]) -> list[dict]:
    """Learnt less uniform, and less patch-all, at each budget of crops."""
    rows, budgets = [], {(r["attentions"], r["crops"]) for r, _ in runs if r["crops"]}
    cohort = lambda row: (row["preset"], row["seed"])
    of = lambda row: (row["attentions"], row["learner"], row["crops"])
    for (pools, n), name in itertools.product(
        sorted(budgets), ("uniform", "patch-all")
    ):
        budget = n if name == "uniform" else None
        ours = lambda row, pools=pools, n=n: of(row) == (pools, "learnt", n)
        other = lambda row, key=(pools, name, budget): of(row) == key
        if gaps := paired(runs, cohort, ours, other):
            about = {"learner": f"learnt - {name}", "crops": n, "attentions": pools}
            rows.append(about | over_cohorts(gaps))
    return rows


def picture(rows: Sequence[Mapping], path: pathlib.Path) -> None:
    """Draws AUC by crops: every run, and the mean of each learner.

    Dashed where no attention is on what crops show.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.axhline(0.5, color=INK, lw=0.8, ls=":", alpha=0.6)
    rows = [r for r in rows if "auc" in r]
    few = [r for r in rows if r["crops"]]
    for (pools, learner), mine in sorted(
        grouped(few, "attentions", "learner").items(), reverse=True
    ):
        learnt = learner == "learnt"
        style = {"color": COLOURS[not learnt], "alpha": 1.0 if pools else 0.45}
        weighed = "" if pools else ", weighed by the overview"
        budgets = {n: one for (n,), one in sorted(grouped(mine, "crops").items())}
        means = [np.mean([r["auc"] for r in one]) for one in budgets.values()]
        line = {"ls": "-" if pools else "--", "lw": 1.8, "marker": "_", "ms": 12}
        axes.plot(list(budgets), means, label=learner + weighed, **line, **style)
        for r in mine:  # side by side
            side = 0.96 if learnt else 1.04
            at = r["crops"] * side ** (1 + 0.6 * (r["seed"] - 1) + 4 * (not pools))
            low, high = r["auc"] - r["auc_lo"], r["auc_hi"] - r["auc"]
            axes.errorbar(at, r["auc"], [[low], [high]], fmt="o", ms=4, lw=1, **style)
    every = [r for r in rows if not r["crops"]]
    most = max((r["attentions"] for r in every), default=0)
    if aucs := [r["auc"] for r in every if r["attentions"] == most]:
        style = {"color": COLOURS[2]}
        axes.axhline(np.mean(aucs), lw=1.8, label="patch-all, mean", **style)
        for auc in aucs:
            axes.axhline(auc, lw=0.7, alpha=0.5, **style)
    ticks = sorted({r["crops"] for r in few})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n}" for n in ticks])
    axes.set(xlabel="crops of a draw", ylabel="test AUC (95 %)", ylim=(0.4, 1.01))
    axes.set_xlim(ticks[0] / 1.8, ticks[-1] * 1.8)
    quiet(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_png(figure, path)


def attention_pooling_runs(runs: Sequence[Run], args: argparse.Namespace) -> list[dict]:
    """End-to-end attention pooling by what weighs the tiles; means; tuned; paired."""
    rows = [pooling_row(run, 8 if args.quick else None) for run in runs]
    both = list(zip(rows, runs, strict=True))
    if args.earlier:
        rows = rows + missing(json.loads(args.earlier.read_text())["rows"], rows)
    rows = rows + tuned(rows)
    return rows + means(rows) + pooling_differences(both)


def pooling_row(run: Run, most: int | None) -> dict:
    """One run."""
    fields = ("normaliser", "power", "pooling", "worst", "joint")
    return {
        **run.cohort.about(),
        "weights": weights_name(run.config),
        **{name: run.config.get(f"method.{name}") for name in fields},
        **run.judged("auc", "f1"),
        **run.localisation(most, *Localisation._fields),
        "val_log_loss": validation_loss(run.folder),
        "minutes": run.cost["wall_s"] / 60,
        "run_commit": run.commit,
    }


def weights_name(config: Mapping) -> str:
    """What becomes of the tiles' scores, in a few words."""
    if config["method.head.pooling"] == "max":
        return "max"
    name = config["method.head.normaliser"].replace("_", " ")
    power = config["method.head.power"]
    name = f"power {power:g}" if name == "squared average" and power != 2 else name
    return name + JOINT * bool(config["method.joint"])


def validation_loss(run: pathlib.Path) -> float:
    """The least log loss on validation slides, for which the parameters were kept."""
    stages = (run / name / "metrics.jsonl" for name in ("classifier", "joint"))
    (log,) = (path for path in stages if path.is_file())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return min(line["val.log_loss"] for line in lines if "val.log_loss" in line)


def tuned(rows: Sequence[Mapping]) -> list[dict]:
    """Of each cohort on which powers were tried, that which validation likes best."""
    powers = [r for r in rows if r["weights"].startswith(("squared", "power"))]
    powers = [r for r in powers if not r["joint"]]
    return [
        min(mine, key=lambda r: r["val_log_loss"]) | {"weights": TUNED}
        for mine in grouped(powers, "preset", "seed").values()
        if len(mine) > 1
    ]


def means(rows: Sequence[Mapping]) -> list[dict]:
    """Means over the cohorts of a preset, of whatever weighs the tiles."""
    table = []
    for (preset, weights), mine in grouped(rows, "preset", "weights").items():
        row = {"preset": preset, "weights": weights}
        row |= {"seeds": len(mine), "n": sum(r["n"] for r in mine)}
        for name in MEASURES:
            low, mean, high = (
                np.array([r[f"{name}{end}"] for r in mine])
                for end in ("_lo", "", "_hi")
            )
            error = lambda gaps: float(np.sqrt((gaps**2).sum())) / len(gaps)
            value = float(mean.mean())
            row |= {name: value, f"{name}_lo": value - error(mean - low)}
            row[f"{name}_hi"] = value + error(high - mean)
        table.append(row)
    return table


def pooling_differences(runs: Sequence[tuple[Mapping, Run]]) -> list[dict]:
    """Joint training less scorer and pool in turn, on each preset."""
    rows = []
    for preset in dict.fromkeys(row["preset"] for row, _ in runs):
        gaps = paired(
            [(row, run) for row, run in runs if row["preset"] == preset],
            lambda row: (row["seed"], row["weights"].removesuffix(JOINT)),
            lambda row: row["weights"].endswith(JOINT),
            lambda row: not row["weights"].endswith(JOINT),
        )
        if gaps:
            about = {"preset": preset, "weights": "joint - two-stage"}
            rows.append(about | over_cohorts(gaps))
    return rows


def missing(earlier: Sequence[Mapping], rows: Sequence[Mapping]) -> list[dict]:
    """Runs of an earlier record that are not among `rows`, certified as those are."""
    key = lambda r: (r["preset"], r["seed"], r["weights"])
    held = {key(r)[:2]: {k: r[k] for k in HELD if k in r} for r in rows}
    old = [r for r in earlier if "run_commit" in r and r["weights"] != TUNED]
    new = set(map(key, rows))
    return [r | held.get(key(r)[:2], {}) for r in old if key(r) not in new]


def _mass(metrics: Mapping, prefix: str) -> dict[str, float]:
    return {n.removeprefix(prefix): v for n, v in metrics.items() if prefix in n}
