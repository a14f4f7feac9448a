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


def streaming() -> str:
    """Streamed tiles against the dense net on as many images, and a whole step."""
    titles = (
        "chip", "tiles", "bytes, forward", "bytes, back", "time of a step",
        "65,536 px, roofline / own", "device memory", "seams",
    )  # fmt: skip
    lines = [titles, ["---"] * len(titles)]
    for chip, report in _reports().items():
        by_name = {r["program"]: r for r in report["rows"] if "error" not in r}
        for name, row in by_name.items():
            kind, _, rest = name.partition(", ")
            tiles, _, part = rest.rpartition(", ")
            if kind != "streamed" or part != "forward":
                continue
            others = (
                f"streamed, {tiles}, backward",
                f"dense, {tiles}, forward",
                f"dense, {tiles}, gradient",
            )
            if all(other in by_name for other in others):
                numbers = _against_dense(row, *(by_name[other] for other in others))
                lines.append([TITLES[chip], tiles, *numbers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _against_dense(forward, backward, dense, gradient):
    """Ratios and sizes of a streamed step, as cells."""
    count = "bytes_accessed" if forward["bytes_accessed"] else "hbm_bytes"
    rows = forward, backward, gradient
    names = "optimal_s", "cycles_s", "roofline_s"
    own = next(name for name in names if all(row[name] for row in rows))
    step = lambda name: forward[name] + backward[name]
    whole = lambda name: forward["step_calls"] * step(name)
    held = max(row["temp_bytes"] + row["argument_bytes"] for row in (forward, backward))
    return [
        f"{forward[count] / dense[count]:.2f}x",
        f"{backward[count] / gradient[count]:.2f}x",
        f"{step(own) / gradient[own]:.2f}x",
        f"{whole('roofline_s'):.1f} / {whole(own):.1f} s",
        f"{held / 1e9:.1f} GB",
        f"{forward['seam_bytes'] / 1e9:.1f} GB",
    ]


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
