"""README's tables of zooming: learning it, slides judged by it, its opponents."""

import math
import statistics
from collections.abc import Callable, Iterable

from benchmarks.record import made


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

    The largest program is what the compiler counts; the device's own peak is told by
    those that have memory of their own.
    """
    told = any(r.get("peak_device_mb") for r in report["rows"])
    columns = ("zoomed into", "tiles read", "s a slide", "speed-up")
    columns += ("by tiles encoded", "peak of the process", "largest program")
    columns += ("peak on the device",) * told
    lines = _head(*columns)
    for r in report["rows"]:
        cells = (
            f"{r['t']} of {r['n']}",
            f"{r['tiles_read']:,.0f}",
            f"{r['s_per_slide']:.2f}",
            f"{r['speedup']:.2f}x",
            f"{r['bound']:.2f}x",
            f"{r['peak_rss_mb']:,.0f} MB",
            f"{r['program_mb']:,.0f} MB",
            *(f"{r['peak_device_mb']:,.0f} MB" for _ in range(told)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def zoom_runs(report: dict) -> str:
    """AUC and calibration of each way to spend as many tiles; the policy's gains."""
    runs = [r for r in report["rows"] if "auc" in r]
    gaps = [r for r in report["rows"] if "auc_diff" in r]
    shares = sorted({r["share"] for r in runs})
    titles = ("tiles needed", "AUC (95 %): seeds", "calibration error")
    lines = _by_share(runs, shares, titles, _judged)
    lines += ["", *_by_share(gaps, shares, ("AUC (95 %)", "gap closed"), _gained)]
    n = " to ".join(str(n) for n in sorted({r["n"] for r in runs}))
    commits = ", ".join(sorted({r["run_commit"][:12] for r in runs}))
    said = f"Means over cohorts, each of {n} test slides. Runs at commit {commits}."
    held = {
        f"`{r['preset']}`, seed {r['seed']}: {r['signal_held']} of {r['signal']} rows "
        f"that ask for a signal hold, {r['none_held']} of {r['none']} that allow none"
        for r in runs
        if "signal" in r
    }
    small = {
        preset: statistics.mean(
            r["lesions_within_a_child"] for r in runs if r["preset"] == preset
        )
        for preset in dict.fromkeys(r["preset"] for r in runs)
    }
    told = [f"{share:.0%} in `{preset}`" for preset, share in small.items()]
    said += f" Tumour slides with less lesion than a child covers: {', '.join(told)}."
    if held:
        said += f" Certificates: {'; '.join(sorted(held))}."
    return "\n".join([*lines, "", said, "", made(report)])


def _by_share(
    rows: list[dict], shares: list[float], titles: Iterable[str], cells: Callable
) -> list[str]:
    """Of each preset, settings and way: (rows of a share) -> its cells."""
    titles = [f"{share:.0%}: {title}" for share in shares for title in titles]
    lines = _head("preset", "settings", "way", *titles)
    of = lambda r: (r["preset"], r["settings"], r["way"])
    for preset, whose, way in dict.fromkeys(map(of, rows)):
        mine = [r for r in rows if of(r) == (preset, whose, way)]
        told = [cells([r for r in mine if r["share"] == share]) for share in shares]
        told = (cell for several in told for cell in several)
        named = f"`{preset}`", whose, way.replace("_", " ")
        lines.append("| " + " | ".join((*named, *told)) + " |")
    return lines


def _judged(rows: list[dict]) -> tuple[str, ...]:
    """One way on several cohorts, at one share."""
    if not rows:
        return "", "", ""
    mean = lambda name: sum(r[name] for r in rows) / len(rows)
    # Of independent cohorts, each with an interval of its own.
    halves = [(r["auc_hi"] - r["auc_lo"]) / 2 for r in rows]
    half = math.hypot(*halves) / len(rows)
    each = ", ".join(
        f"{r['auc']:.2f}" for r in sorted(rows, key=lambda row: row["seed"])
    )
    ends = f"({mean('auc') - half:.3f} to {mean('auc') + half:.3f})"
    return (
        f"{mean('tiles_read'):,.0f}",
        f"{mean('auc'):.3f} {ends}: {each}",
        f"{mean('calibration_error'):.3f}",
    )


def _gained(rows: list[dict]) -> tuple[str, ...]:
    """The policy less one other way, at one share."""
    if not rows:
        return "", ""
    (r,) = rows
    ends = f"({r['auc_diff_lo']:+.3f} to {r['auc_diff_hi']:+.3f})"
    closed = r["gap_closed"]
    random = r["way"] == "policy - random" and closed is not None
    return f"{r['auc_diff']:+.3f} {ends}", f"{closed:.2f}" if random else ""


def _head(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
