"""README's tables of zooming: learning it, slides judged by it, its opponents."""

from collections.abc import Iterable

from benchmarks.record import auc, made


def zoom(report: dict) -> str:
    """CPU seconds and memory of one update on a slide."""
    columns = ("tiles", "steps", "slides together", "CPU s a slide", "memory")
    lines = _head(*columns, "steps a second", "stacked states")
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
    """Seconds from file to verdict, and memory, by the share that is zoomed into.

    The device's memory is told by those that have one of their own.
    """
    told = any(r.get("peak_device_mb") for r in report["rows"])
    columns = ("zoomed into", "tiles read", "s a slide", "speed-up")
    columns += ("by tiles encoded", "peak", *("on the device",) * told)
    lines = _head(*columns)
    for r in report["rows"]:
        cells = (
            f"{r['t']} of {r['n']}",
            f"{r['tiles_read']:,.0f}",
            f"{r['s_per_slide']:.2f}",
            f"{r['speedup']:.2f}x",
            f"{r['bound']:.2f}x",
            f"{r['peak_rss_mb']:,.0f} MB",
            *(f"{r['peak_device_mb']:,.0f} MB" for _ in range(told)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def zoom_runs(report: dict) -> str:
    """AUC and calibration of each way to spend as many tiles; the policy's gains."""
    runs = [r for r in report["rows"] if "auc" in r]
    gaps = [r for r in report["rows"] if "auc_diff" in r]
    seeds = sorted({r["seed"] for r in runs})
    measures = {"auc": "mean", "calibration_error": "calibration error"}
    measures = {n: title for n, title in measures.items() if any(n in r for r in runs)}
    each = (f"seed {s}: AUC (95 %)" for s in seeds)
    counted = any("tiles_read" in r for r in runs)
    first = ("preset", "settings", "share", "way", *("tiles read",) * counted)
    lines = _head(*first, *each, *measures.values())
    for what in dict.fromkeys((*_group(r), r["way"]) for r in runs):
        mine = {r["seed"]: r for r in runs if (*_group(r), r["way"]) == what}
        each = (auc(mine[s]) if s in mine else "" for s in seeds)
        means = (_mean(mine.values(), name) for name in measures)
        read = (_mean(mine.values(), "tiles_read", "{:,.0f}") for _ in range(counted))
        cells = (*_named(*what), *read, *each, *means)
        lines.append("| " + " | ".join(cells) + " |")
    said = "; ".join(
        ", ".join(_named(*_group(r), r["way"])) + f" {r['auc_diff']:+.3f} "
        f"({r['auc_diff_lo']:+.3f} to {r['auc_diff_hi']:+.3f})"
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


def _group(row: dict) -> tuple:
    """Of a run; one that does not say whose settings it has, has ours."""
    return row["preset"], row.get("settings", "ours"), row["share"]


def _named(preset: str, whose: str, share: float, way: str) -> tuple[str, ...]:
    return f"`{preset}`", whose, f"{share:.0%}", way.replace("_", " ")


def _mean(rows: Iterable[dict], name: str, form: str = "{:.3f}") -> str:
    """Over the rows that tell it."""
    told = [row[name] for row in rows if name in row]
    return form.format(sum(told) / len(told)) if told else ""


def _head(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
