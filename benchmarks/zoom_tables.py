"""README's tables of zooming: learning it, slides judged by it, its opponents."""

from benchmarks.record import auc, made


def zoom(report: dict) -> str:
    """CPU seconds and memory of one update on a slide."""
    header = (
        "| tiles | steps | slides together | CPU s a slide | memory | steps a second |"
    )
    lines = [f"{header} stacked states |", "|---" * 7 + "|"]
    for r in report["rows"]:
        plain = ""
        if "plain_cpu_s" in r:
            plain = f"{r['plain_cpu_s']:.1f} s, {r['plain_mb']:,.0f} MB"
        cells = (
            f"{r['n']:,}",
            f"{r['t']:,}",
            str(r["slides_together"]),
            f"{r['cpu_s_per_slide_update']:.2f}",
            f"{r['extra_mb']:,.0f} MB",
            f"{r['env_steps_per_s']:,.0f}",
            plain,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def zoom_slides(report: dict) -> str:
    """Seconds from file to verdict by the share of the tiles zoomed into."""
    header = (
        "| zoomed into | tiles read | s a slide | speed-up | by tiles encoded | peak |"
    )
    lines = [header, "|---" * 6 + "|"]
    for r in report["rows"]:
        cells = (
            f"{r['t']} of {r['n']}",
            f"{r['tiles_read']:,.0f}",
            f"{r['s_per_slide']:.2f}",
            f"{r['speedup']:.2f}x",
            f"{r['bound']:.2f}x",
            f"{r['peak_rss_mb']:,.0f} MB",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def zoom_runs(report: dict) -> str:
    """AUC of each way to spend as many tiles, and what the policy gains."""
    runs = [r for r in report["rows"] if "auc" in r]
    gaps = [r for r in report["rows"] if "auc_diff" in r]
    seeds = sorted({r["seed"] for r in runs})
    columns = (
        "preset",
        "share",
        "way",
        *(f"seed {s}: AUC (95 %)" for s in seeds),
        "mean",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    key = lambda r: (r["preset"], r["share"], r["way"])
    for preset, share, way in dict.fromkeys(map(key, runs)):
        mine = {r["seed"]: r for r in runs if key(r) == (preset, share, way)}
        mean = sum(r["auc"] for r in mine.values()) / len(mine)
        cells = [auc(mine[s]) if s in mine else "" for s in seeds]
        cells = f"`{preset}`", f"{share:.0%}", way.replace("_", " "), *cells
        lines.append("| " + " | ".join(cells) + f" | {mean:.3f} |")
    said = "; ".join(
        f"`{r['preset']}`, {r['share']:.0%}, {r['way'].replace('_', ' ')} "
        f"{r['auc_diff']:+.3f} ({r['auc_diff_lo']:+.3f} to {r['auc_diff_hi']:+.3f})"
        for r in gaps
    )
    n = " to ".join(str(n) for n in sorted({r["n"] for r in runs}))
    commits = ", ".join(sorted({r["run_commit"][:12] for r in runs}))
    held = {
        f"`{r['preset']}`, seed {r['seed']}: {r['signal_held']} of {r['signal']} rows "
        f"that ask for a signal hold, {r['none_held']} of {r['none']} that allow none"
        for r in runs
        if "signal" in r
    }
    said = f"Paired differences: {said}. {n} test slides. Runs at commit {commits}."
    if held:
        said += f" Certificates: {'; '.join(sorted(held))}."
    return "\n".join([*lines, "", said, "", made(report)])


def _head(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
