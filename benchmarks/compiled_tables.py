"""Tables of what compilers forecast, all chips side by side.

They are made from `results/compiled_CHIP.json`, the reports of `benchmarks.compiled`.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from benchmarks import derive
from benchmarks.chips import CHIPS

RESULTS = pathlib.Path(__file__).parent / "results"
TITLES = {"v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e", "h200": "H200"}


def memory() -> str:
    """Share of the chip's memory, of one device; below it why a program has none."""
    reports = _reports()
    title = lambda chip: f"{TITLES[chip]}, {CHIPS[chip].hbm_bytes / 1e9:.0f} GB"
    cell = lambda row: "no" if "error" in row else f"{row['hbm_share']:.0%}"
    reasons = [
        f"- {TITLES[row['chip']]}, {_name(row)}: {row['error']}"
        for report in reports.values()
        for row in report["rows"]
        if "error" in row
    ]
    return "\n\n".join(
        [_table(reports, title, cell), *(["\n".join(reasons)] if reasons else [])]
        + [f"{TITLES[chip]}: {derive.made(r)}" for chip, r in reports.items()]
    )


def seconds() -> str:
    """The least time of each program, the compiler's own, and the share of the peak."""

    def cell(row):
        if "error" in row:
            return ""
        own = row["cycles_s"] or row["optimal_s"]
        times = [row["roofline_s"], *([own] if own else [])]
        text = " / ".join(_milliseconds(time) for time in times)
        return f"{text} ms, {row['roofline_mfu']:.0%}"

    return _table(_reports(), TITLES.get, cell)


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _reports() -> dict[str, Mapping]:
    """The reports that there are, by chip."""
    files = {chip: RESULTS / f"compiled_{chip}.json" for chip in CHIPS}
    return {
        chip: json.loads(file.read_text("utf-8"))
        for chip, file in files.items()
        if file.exists()
    }


def _table(
    reports: Mapping[str, Mapping],
    title: Callable[[str], str],
    cell: Callable[[Mapping], str],
) -> str:
    """A row for each program, a column for each chip; several devices are a row."""
    cells = {
        (_name(row), chip): cell(row)
        for chip, report in reports.items()
        for row in report["rows"]
    }
    names = dict.fromkeys(name for name, _ in cells)
    lines: list[Sequence[str]] = [("program", *map(title, reports))]
    lines += [["---"] * len(lines[0])]
    lines += [[name, *(cells.get((name, c), "") for c in reports)] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(row: Mapping) -> str:
    method = row["method"].replace("_", " ")
    devices = f", {row['devices']} devices" if row["devices"] > 1 else ""
    return f"{method}: {row['program']}{devices}"
