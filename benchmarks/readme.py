"""Writes the tables of README.md from the JSON files of benchmarks/results.

    python -m benchmarks.readme

Between `<!-- NAME -->` and `<!-- end -->` stands what is made from results/NAME.json,
or of NAME in `FACTS` from what the package knows.
"""

import json
import pathlib
import re

from benchmarks.coverage import worst
from benchmarks.looking_tables import (
    attention_pooling_runs,
    attention_sampling,
    magnification,
    needle,
)
from benchmarks.record import auc, made
from benchmarks.tile_tables import extract, tile_loader
from benchmarks.zoom_tables import zoom, zoom_runs, zoom_slides
from wsi_jax.nets import foundation_models

# By name, as all tables.
LOOKING = attention_pooling_runs, attention_sampling, magnification, needle
ZOOMING = zoom, zoom_runs, zoom_slides
TILES = extract, tile_loader
FACTS = {"encoders": foundation_models.table}
ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def practice(report: dict) -> str:
    """Runs on practice cohorts: how well, on how many slides, from how many tiles."""
    header = "| slides made of | preset | method | encoder | test slides | AUC (95 %) "
    header += "| balanced accuracy | tiles |"
    lines = [header, "|---" * 8 + "|"]
    for row in report["rows"]:
        cells = (
            f"{row['source']} textures" if row["source"] == "drawn" else row["source"],
            row["preset"],
            row["method"],
            row["encoder"],
            row["n"],
            auc(row),
            f"{row['balanced_accuracy']:.3f}",
            "" if row["tiles"] is None else f"{row['tiles']:,}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", made(report)])


def certificates(report: dict) -> str:
    """Of each practice cohort: probe AUCs in its band, off it and of metadata alone."""
    header = "| preset | slides | signal | no signal | metadata only | rows that hold |"
    lines = [header, "|---" * 6 + "|"]
    cohorts = dict.fromkeys((row["preset"], row["seed"]) for row in report["rows"])
    for cohort in cohorts:
        mine = [r for r in report["rows"] if (r["preset"], r["seed"]) == cohort]
        within = [r for r in mine if r["expected"] == "signal"]
        outside = [r for r in mine if r["expected"] == "none" and "field" in r["probe"]]
        metadata = next(r for r in mine if r["probe"] == "metadata only")
        ends = f"{metadata['lo']:.2f} to {metadata['hi']:.2f}"
        cells = (
            f"`{cohort[0]}`, seed {cohort[1]}, {mine[0]['styles']:,} textures",
            mine[0]["slides"],
            _scales(within),
            _range(outside),
            f"{metadata['auc']:.2f} ({ends})",
            f"{sum(r['ok'] for r in mine)} of {len(mine)}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", made(report)])


def pooling(report: dict) -> str:
    """Memory of one training step on long bags."""
    header = "| method | tiles | chunk | temporaries | work, against one chunk |"
    lines = [header, "|---" * 5 + "|"]
    whole = {
        (r["method"], r["tiles"]): r["flops"]
        for r in report["rows"]
        if r["chunk"] == r["tiles"]
    }
    for r in report["rows"]:
        times = r["flops"] / whole[r["method"], r["tiles"]]
        size = f"{r['temp_bytes'] / 1e6:,.0f} MB"
        cells = (r["method"], f"{r['tiles']:,}", f"{r['chunk']:,}", size)
        lines.append("| " + " | ".join(cells) + f" | {times:.2f}x |")
    return "\n".join([*lines, "", made(report)])


def phantoms(report: dict) -> str:
    """Of each preset and learner: AUC on each cohort drawn, and their mean."""
    rows = report["rows"]
    seeds = sorted({row["seed"] for row in rows})
    columns = ["preset", "learner", *(f"seed {s}: AUC (95 %)" for s in seeds), "mean"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    learners = dict.fromkeys(
        (r["preset"], r["learner"]) for r in rows if r["learner"] != "majority"
    )
    for preset, learner in learners:
        mine = {
            r["seed"]: r
            for r in rows
            if (r["preset"], r["learner"]) == (preset, learner)
        }
        cells = [auc(mine[s]) if s in mine else "" for s in seeds]
        mean = sum(r["auc"] for r in mine.values()) / len(mine)
        lines.append(
            f"| `{preset}` | {learner} | " + " | ".join(cells) + f" | {mean:.3f} |"
        )
    cohorts = {(r["preset"], r["seed"]): r for r in rows}.values()
    total = lambda name: sum(r[name] for r in cohorts)
    runs = [r for r in rows if "slides" in r]
    spread = lambda values: " to ".join(f"{v:,}" for v in sorted(set(values)))
    sides = [min(r["least_side_px"] for r in runs)]
    sides += [max(r["largest_side_px"] for r in runs)]
    said = (
        f"{spread(r['slides'] for r in runs)} slides of {spread(sides)} px a side, "
        f"{spread(r['n'] for r in rows)} of them test slides. In {len(cohorts)} "
        f"certificates {total('signal_held')} of {total('signal')} rows hold that ask "
        f"for a signal, and {total('none_held')} of {total('none')} that allow none. "
        f"Runs at commit {', '.join(sorted({r['run_commit'][:12] for r in runs}))}."
    )
    return "\n".join([*lines, "", said, "", made(report)])


def ucsb_breast(report: dict) -> str:
    """Both learners, and their difference."""
    lines = ["| learner | images | AUC (95 %) | difference (95 %) |", "|---" * 4 + "|"]
    for r in report["rows"]:
        gap = "difference" in r and (
            f"{r['difference']:+.3f} ({r['lo']:+.3f} to {r['hi']:+.3f})"
        )
        lines.append(f"| {r['learner']} | {r['n']} | {auc(r)} | {gap or ''} |")
    return "\n".join([*lines, "", made(report)])


def coverage(report: dict) -> str:
    """Of each metric's interval: the least coverage and the greatest width."""
    header = "| metric | cases | least coverage | below .93 | widest, against the "
    lines = [header + "estimates' spread | above 1.3 |", "|---" * 6 + "|"]
    for r in worst(report["rows"]):
        cells = (
            r["metric"].replace("_", " "),
            r["cases"],
            f"{r['least coverage']:.3f}",
            r["below 0.93"],
            f"{r['widest']:.2f}",
            r["above 1.3"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", made(report)])


def tile_encoders(report: dict) -> str:
    """Of each encoder and group of classes: accuracy, and a simple opponent's."""
    header = (
        "| encoder of | um/px | tiles (clusters) | encoder | colours and gradients "
    )
    lines = [header + "| difference |", "|---" * 6 + "|"]
    for r in report["rows"]:
        three = [
            f"{r[name]:.3f} ({r[f'{name}_lo']:.3f} to {r[f'{name}_hi']:.3f})"
            for name in ("accuracy", "baseline_accuracy", "difference")
        ]
        test = f"{r['n']} ({r['n_clusters']})"
        cells = [f"`{r['run']}`, {r['group']}", f"{r['mpp']:g}", test, *three]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def streaming(report: dict) -> str:
    """Work, memory and seconds of each way over an image, against all at once."""
    header = "| trunk | way | image | tile | work | temporaries | CPU seconds |"
    lines = [header, "|---" * 7 + "|"]
    for r in report["rows"]:
        sides = f"{r['image_px']:,} px", f"{r['tile_px']:,} px"
        seconds = r["seconds_ratio"] and f"{r['seconds_ratio']:.2f}x"
        size = f"{r['temp_bytes'] / 1e6:,.0f} MB"
        cells = r["trunk"], r["driver"], *sides, f"{r['flops_ratio']:.2f}x", size
        lines.append("| " + " | ".join(cells) + f" | {seconds or ''} |")
    return "\n".join([*lines, "", made(report)])


def streaming_memory(report: dict) -> str:
    """Seams and what else a streamed slide takes, by its size."""
    header = "| slide | tile | seams, computed | seams, counted | peak | the rest |"
    lines = [header, "|---" * 6 + "|"]
    for r in report["rows"]:
        named = ("seam_bytes", "seam_bytes_counted", "peak_rss_bytes", "rest_bytes")
        sizes = [f"{r[n] / 1e6:,.0f} MB" if r[n] else "" for n in named]
        cells = f"{r['image_px']:,} px", f"{r['tile_px']:,} px", *sizes
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def attention_pooling_memory(report: dict) -> str:
    """Temporaries of a training step, by the tiles of a slide that are judged."""
    header = "| judged tiles | microbatch | temporaries | against one microbatch, "
    lines = [header + "gradients and rows |", "|---" * 4 + "|"]
    for r in report["rows"]:
        size = f"{r['temp_bytes'] / 1e6:,.0f} MB"
        cells = r["tiles"], r["chunk"], size, f"{r['ratio']:.2f}x"
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", made(report)])


def streaming_runs(report: dict) -> str:
    """Test AUC of each run, and where its attention lies."""
    columns = "preset", "seed", "trunk", "AUC (95 %)", "attention (95 %)", "by chance"
    lines = ["| " + " | ".join((*columns, "minutes")) + " |", "|---" * 7 + "|"]
    means = {}
    for r in report["rows"]:
        trunk = f"{r['trunk']}, {r['learner']}"
        looked, chance = "", ""
        if "auprc" in r:
            looked = f"{r['auprc']:.3f} ({r['auprc_lo']:.3f} to {r['auprc_hi']:.3f})"
            chance = f"{r['auprc_chance']:.3f}"
        cells = f"`{r['preset']}`", r["seed"], trunk, auc(r), looked, chance
        lines.append("| " + " | ".join(map(str, cells)) + f" | {60 * r['hours']:.0f} |")
        means.setdefault((r["preset"], trunk), []).append(r["auc"])
    said = "; ".join(
        f"`{preset}`, {trunk} {sum(aucs) / len(aucs):.3f}"
        for (preset, trunk), aucs in means.items()
        if len(aucs) > 1
    )
    spread = lambda name: " to ".join(
        str(n) for n in sorted({r[name] for r in report["rows"]})
    )
    commits = ", ".join(sorted({r["run_commit"][:12] for r in report["rows"]}))
    said = (
        f"Mean AUC: {said}. {spread('n')} test slides, {spread('n_train')} training "
        f"slides. Runs at commit {commits}, "
        "on a machine that did other work."
    )
    return "\n".join([*lines, "", said, "", made(report)])


def filled(readme: str) -> str:
    """The README with every block made anew."""

    def block(match):
        opening, name, end = match.groups()
        if name in FACTS:
            return f"{opening}{FACTS[name]()}\n{end}"
        report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        return f"{opening}{globals()[name](report)}\n{end}"

    return BLOCK.sub(block, readme)


def _scales(rows: list[dict]) -> str:
    if not rows:
        return "nowhere"
    return ", ".join(
        f"{r['auc']:.2f} at {r['mpp']:g} um/px"
        + (" (neighbours)" if "neighbours" in r["probe"] else "")
        for r in rows
    )


def _range(rows: list[dict]) -> str:
    scales = sorted({r["mpp"] for r in rows})
    aucs = [r["auc"] for r in rows]
    named = ", ".join(f"{s:g}" for s in scales)
    return f"{min(aucs):.2f} to {max(aucs):.2f} at {named} um/px"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
