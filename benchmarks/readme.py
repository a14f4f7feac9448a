"""Writes the tables of README.md from the JSON files of benchmarks/results.

    python -m benchmarks.readme

Between `<!-- NAME -->` and `<!-- end -->` stands what is made from results/NAME.json.
"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def practice(report: dict) -> str:
    """Runs on practice cohorts: how well, on how many slides, from how many tiles."""
    header = "| slides made of | preset | method | encoder | test slides | AUC (95 %) "
    header += "| balanced accuracy | tiles |"
    lines = [header, "|---" * 8 + "|"]
    for row in report["rows"]:
        auc = f"{row['auc']:.3f} ({row['auc_lo']:.3f} to {row['auc_hi']:.3f})"
        cells = (
            f"{row['source']} textures" if row["source"] == "drawn" else row["source"],
            row["preset"],
            row["method"],
            row["encoder"],
            row["n"],
            auc,
            f"{row['balanced_accuracy']:.3f}",
            f"{row['tiles']:,}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", _made(report)])


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
    return "\n".join([*lines, "", _made(report)])


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
    return "\n".join([*lines, "", _made(report)])


def filled(readme: str) -> str:
    """The README with every block made anew."""

    def block(match):
        opening, name, end = match.groups()
        report = json.loads((RESULTS / f"{name}.json").read_text())
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


def _made(report: dict) -> str:
    machine, versions = report["machine"], report["versions"]
    return (
        f"{report['date'][:10]}, commit `{report['commit'][:12]}`, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['device']}, JAX {versions['jax']}."
    )


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
