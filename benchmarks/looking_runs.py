"""Collects runs that look, beside those that look nowhere or everywhere.

    python -m benchmarks.looking_runs --out benchmarks/results/needle.json \
        --picture benchmarks/results/needle.png runs/needle_*/

A row is one run: test AUC with its 95 % interval by the crops it was trained to choose,
that of the other way to choose them, and the share of attention at each magnification
on test slides. `attentions` are those on what crops themselves show, 0 where they are
weighed by the overview alone. A row `learnt - uniform`, or `learnt - patch-all`, is the
paired difference of AUCs at one budget of crops and with as many attentions, over all
cohorts that both have judged: the mean of theirs, with the interval of independent
cohorts.
"""

import csv
import itertools
import json
import pathlib

import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.runs import about_cohort, cohort, cohort_folder, over_cohorts, scores
from wsi_jax.config_io import flatten
from wsi_jax.evals.intervals import delong_difference
from wsi_jax.report.figure import COLOURS, INK, new_figure, quiet, save_png

# How crops weigh where there is no attention on what they show.
WEIGHED = {
    "learnt": "learnt, weighed by the overview alone",
    "uniform": "uniform, all weighed alike",
}


def row(run: pathlib.Path) -> dict:
    """What a finished run found."""
    read = lambda name: json.loads((run / name).read_text())
    made, metrics, cost = read("config.json"), read("metrics.json"), read("cost.json")
    config = flatten(made["config"])
    folder = cohort_folder(made["config"]["data"])
    looks = "method.look" in config
    look = config["method.look"] if looks else "patch-all"
    other = "top" if config.get("method.inference") == "sampled" else "sampled"
    found = about_cohort(folder) | {
        "n_train": cohort(made["config"]["data"])["n_train"],
        "learner": look,
        "crops": config["method.crops"] if looks else None,
        "attentions": attentions(config),
        "steps": config["train.steps"],
        "batch": config["train.batch"],
        "n": metrics["test.n"],
        **{name: metrics[f"test.{name}"] for name in ("auc", "auc_lo", "auc_hi")},
    }
    if looks:
        found |= {f"auc_{other}": metrics[f"test.inference.{other}.auc"]}
        prefix = "test.mass."
        mass = {n.removeprefix(prefix): v for n, v in metrics.items() if prefix in n}
        if len(mass) > 1:
            found |= {f"mass_{mpp}": share for mpp, share in mass.items()}
            found["cells"] = round(len(mass) * mean_tiles(run))
            first, last = ends(run)
            found |= {f"first_{mpp}": share for mpp, share in first.items()}
            found |= {f"last_{mpp}": share for mpp, share in last.items()}
    return found | {
        "minutes": cost["wall_s"] / 60,
        "run_cores": made["machine"]["cores"],
        "run_commit": made["commit"],
    }


def attentions(config: dict) -> int:
    """On what crops show, of a run's config; older runs do not tell how many."""
    pools = "method.look" not in config or config.get("method.gated", 0) > 0
    return config.get("method.branches", 1) if pools else 0


def mean_tiles(run: pathlib.Path) -> float:
    """Cells with tissue of a slide's overview, of all that could be read."""
    with open(run / "slides.csv", newline="", encoding="utf-8") as file:
        tiles = [int(line["tiles"] or 0) for line in csv.DictReader(file)]
    return float(np.mean([n for n in tiles if n]))


def ends(run: pathlib.Path) -> list[dict[str, float]]:
    """Share of attention at each magnification when training began, and when it ended.

    A verdict is that of the step which validation liked best, which may lie before
    attention was learnt at all.
    """
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    prefix = "train.mass."
    told = [
        {n.removeprefix(prefix): v for n, v in json.loads(line).items() if prefix in n}
        for line in lines
    ]
    told = [shares for shares in told if shares]
    return [told[0], told[-1]]


def differences(runs: dict[pathlib.Path, dict]) -> list[dict]:
    """Learnt less uniform, and less patch-all, at each budget that it was tried at."""
    found = []
    names = "preset", "seed", "attentions", "learner", "crops"
    by = {tuple(r[name] for name in names): run for run, r in runs.items()}
    learnt = sorted(
        {(r["attentions"], r["crops"]) for r in runs.values() if r["crops"]}
    )
    for (pools, crops), other in itertools.product(learnt, ("uniform", "patch-all")):
        gaps = []
        for (*slides, m, learner, n), run in by.items():
            budget = crops if other == "uniform" else None
            against = by.get((*slides, m, other, budget))
            if (m, learner, n) == (pools, "learnt", crops) and against:
                positive, ours = scores(run)
                gaps.append(delong_difference(positive, ours, scores(against)[1]))
        if gaps:
            said = {"learner": f"learnt - {other}", "crops": crops, "attentions": pools}
            found.append(said | over_cohorts(gaps))
    return found


def picture(rows: list[dict]) -> Figure:
    """AUC against the budget of crops: every run, and the mean of each learner.

    Dashed where no attention is on what crops show.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.axhline(0.5, color=INK, lw=0.8, ls=":", alpha=0.6)
    few = [r for r in rows if r["crops"]]
    places = {"learnt": 0.96, "uniform": 1.04}
    for pools in sorted({r["attentions"] for r in few}, reverse=True):
        for colour, (learner, shift) in zip(COLOURS, places.items(), strict=False):
            mine = [
                r for r in few if (r["attentions"], r["learner"]) == (pools, learner)
            ]
            if not mine:
                continue
            budgets = sorted({r["crops"] for r in mine})
            means = [
                np.mean([r["auc"] for r in mine if r["crops"] == n]) for n in budgets
            ]
            look = {"color": colour, "alpha": 1.0 if pools else 0.45}
            line = {"ls": "-" if pools else "--", "lw": 1.8, "marker": "_", "ms": 12}
            name = learner if pools else WEIGHED[learner]
            axes.plot(budgets, means, label=name, **line, **look)
            for r in mine:
                ends = [[r["auc"] - r["auc_lo"]], [r["auc_hi"] - r["auc"]]]
                at = r["crops"] * shift ** (1 + 0.6 * (r["seed"] - 1) + 4 * (not pools))
                axes.errorbar(at, r["auc"], ends, fmt="o", ms=4, lw=1, **look)
    every = [r for r in rows if not r["crops"]]
    every = [r for r in every if r["attentions"] == max(r["attentions"] for r in every)]
    if every:
        mean = np.mean([r["auc"] for r in every])
        axes.axhline(mean, color=COLOURS[2], lw=1.8, label="patch-all, mean")
        for r in every:
            axes.axhline(r["auc"], color=COLOURS[2], lw=0.7, alpha=0.5)
    axes.set_xscale("log", base=2)
    budgets = sorted({r["crops"] for r in few})
    axes.set_xticks(budgets, [f"{n}" for n in budgets])
    axes.set(xlabel="crops of a draw", ylabel="test AUC (95 %)", ylim=(0.4, 1.01))
    axes.set_xlim(budgets[0] / 1.8, budgets[-1] * 1.8)
    quiet(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("--picture", type=pathlib.Path, help="PNG of AUC by budget")
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    runs = {run: row(run) for run in chosen.runs}
    rows = [*runs.values(), *differences(runs)]
    record.write(chosen.out, rows)
    if chosen.picture:
        save_png(picture(list(runs.values())), chosen.picture)
    print(record.table(rows))


if __name__ == "__main__":
    main()
