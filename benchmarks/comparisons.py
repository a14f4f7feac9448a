"""Kinds of `benchmarks.runs` that compare learners on the same test slides.

- crops: attention sampling beside crops at random and beside patch-all: test AUC by
  the crops it was trained to choose, that of the other inference, the share of
  attention at each magnification on test slides, and when training began and ended.
  `attentions` are those on what crops themselves show, 0 where crops are weighed by the
  overview alone. `--picture FILE` draws AUC by crops.
- attention_pooling_runs: AUC, F1, and where attention lies, by what weighs the tiles.
  The power of each cohort with the least log loss on validation slides is repeated as
  `tuned`. A row with `seeds` is the mean over cohorts, with the interval of
  independent ones. Runs that differ after the scorer may share one: its folder
  `scorer`, put into another run before it begins, is taken as it is. `--earlier FILE`
  takes over the runs of an earlier record that are not given again.
A row `learnt - uniform` or `joint - two-stage` is the paired difference of AUCs over
all cohorts that have both: the mean of theirs, with the interval of independent
cohorts.
"""

import itertools
import pathlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.run_folder import ENDS, Run, grouped, interval, over_cohorts
from wsi_jax.evals.attention import Localisation
from wsi_jax.evals.intervals import Difference, delong_difference
from wsi_jax.report.figure import COLOURS, INK, new_figure, quiet, save_png

TUNED, JOINT = "power, tuned", ", joint"
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
        cohort: (row) -> key of its cohort.
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


def crops(runs: Sequence[Run]) -> list[dict]:
    """Attention sampling, uniform crops and patch-all; their paired differences."""
    rows = [crops_row(run) for run in runs]
    return rows + crops_differences(list(zip(rows, runs, strict=True)))


def crops_row(run: Run) -> dict:
    """One run: its learner, how many crops it chooses, how well it does."""
    config, sampling = run.config, {}
    learner = config.get("method.sampling.placement", "patch-all")
    if learner != "patch-all":
        inferences = {"top", "sampled"} - {config.get("method.sampling.inference")}
        other = "top" if "top" in inferences else "sampled"
        sampling = {f"auc_{other}": run.test[f"inference.{other}.auc"]}
        sampling |= magnifications(run)
    return run.cohort.about() | {
        "n_train": run.cohort.config["n_train"],
        "learner": learner,
        "crops": config["method.crops"] if sampling else None,
        "attentions": attentions(config),
        "steps": config["train.steps"],
        "batch": config["train.batch"],
        **run.metrics("auc"),
        **sampling,
        "minutes": run.cost["wall_s"] / 60,
        "run_cores": run.made["machine"]["cores"],
        "run_commit": run.commit,
    }


def magnifications(run: Run) -> dict:
    """Each magnification's share of the attention: tested, first and last in the log.

    Nothing of a run that has one magnification.
    """
    mass = _mass(run.test, "mass.")
    if len(mass) < 2:
        return {}
    tiles = [int(slide["tiles"] or 0) for slide in run.lines("slides.csv")]
    logged = [_mass(line, "train.mass.") for line in run.log("train")]
    first, *_, last = filter(None, logged)
    shares = {"mass": mass, "first": first, "last": last}
    columns = {f"{k}_{mpp}": v for k, one in shares.items() for mpp, v in one.items()}
    return columns | {"cells": round(len(mass) * np.mean([n for n in tiles if n]))}


def attentions(config: Mapping) -> int:
    """Attentions on what crops show; 1 where a run's config does not name them."""
    pools = config.get("method.head.attention_width", 0) > 0
    return config.get("method.head.branches", 1) if pools else 0


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
    rows = [row for row in rows if "auc" in row]
    few = [row for row in rows if row["crops"]]
    curves = grouped(few, "attentions", "learner")
    for pools, learner in sorted(curves, reverse=True):
        mine, learnt = curves[pools, learner], learner == "learnt"
        style = {"color": COLOURS[not learnt], "alpha": 1.0 if pools else 0.45}
        budgets = sorted(grouped(mine, "crops").items())
        axes.plot(
            [n for (n,), _ in budgets],
            [np.mean([row["auc"] for row in one]) for _, one in budgets],
            label=learner + ", weighed by the overview" * (not pools),
            **{"ls": "-" if pools else "--", "lw": 1.8, "marker": "_", "ms": 12},
            **style,
        )
        for row in mine:  # side by side
            aside = 1 + 0.6 * (row["seed"] - 1) + 4 * (not pools)
            at = row["crops"] * (0.96 if learnt else 1.04) ** aside
            auc, low, high = (row[f"auc{end}"] for end in ENDS)
            error = [[auc - low], [high - auc]]
            axes.errorbar(at, auc, error, fmt="o", ms=4, lw=1, **style)
    every = grouped([row for row in rows if not row["crops"]], "attentions")
    for row in (whole := every[max(every)] if every else []):
        axes.axhline(row["auc"], lw=0.7, alpha=0.5, color=COLOURS[2])
    if whole:
        mean = np.mean([row["auc"] for row in whole])
        axes.axhline(mean, lw=1.8, label="patch-all, mean", color=COLOURS[2])
    ticks = sorted({row["crops"] for row in few})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n}" for n in ticks])
    axes.set(xlabel="crops of a draw", ylabel="test AUC (95 %)", ylim=(0.4, 1.01))
    axes.set_xlim(ticks[0] / 1.8, ticks[-1] * 1.8)
    quiet(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_png(figure, path)


def attention_pooling_runs(runs: Sequence[Run], most: int | None) -> list[dict]:
    """End-to-end attention pooling by what weighs the tiles; means; tuned; paired."""
    rows = [pooling_row(run, most) for run in runs]
    pairs = list(zip(rows, runs, strict=True))
    rows = rows + tuned(rows)
    return rows + means(rows) + pooling_differences(pairs)


def pooling_row(run: Run, most: int | None) -> dict:
    """One run."""
    head = ("normaliser", "power", "pooling")
    return {
        **run.cohort.about(),
        "weights": weights_name(run.config),
        **{name: run.config[f"method.head.{name}"] for name in head},
        **{name: run.config[f"method.{name}"] for name in ("worst", "joint")},
        **run.metrics("auc", "f1"),
        **run.localisation(most, *Localisation._fields),
        "val_log_loss": validation_loss(run),
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


def validation_loss(run: Run) -> float:
    """The least log loss on validation slides, for which the parameters were kept."""
    lines = run.log("classifier") or run.log("joint")
    return min(line["val.log_loss"] for line in lines if "val.log_loss" in line)


def tuned(rows: Sequence[Mapping]) -> list[dict]:
    """The power of the least validation loss, of each cohort with several powers."""
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
        row |= {"seeds": len(mine), "n": sum(one["n"] for one in mine)}
        for name in MEASURES:
            each = np.array([[one[f"{name}{end}"] for end in ENDS] for one in mine])
            # Each end is as far from its value as independent cohorts have it.
            errors = np.hypot.reduce(each[:, 1:] - each[:, :1]) / len(mine)
            mean = each[:, 0].mean()
            row |= interval(name, (mean, mean - errors[0], mean + errors[1]))
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


def _mass(metrics: Mapping, prefix: str) -> dict[str, float]:
    return {n.removeprefix(prefix): v for n, v in metrics.items() if prefix in n}
