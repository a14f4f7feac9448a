"""Tables of a report, made from the flat dicts of `evals`."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

DASH = "\N{EN DASH}"  # stands where there is no number


@dataclasses.dataclass(kw_only=True)
class Table:
    """Rows of text; the first column names the row, the others align right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: int | float | None, digits: int = 3) -> str:
    """A share with fixed digits; an en dash where it is not defined."""
    if value is None or math.isnan(value):
        return DASH
    return f"{value:.{digits}f}"


def interval(summary: Mapping[str, int | float | str], name: str) -> str:
    """Value and, where the summary has one, interval: "0.912 (0.850 to 0.951)"."""
    ends = [summary.get(f"{name}_{end}", math.nan) for end in ("lo", "hi")]
    if any(map(math.isnan, ends)):
        return number(summary[name])
    return f"{number(summary[name])} ({' to '.join(map(number, ends))})"


def notes(summary: Mapping[str, int | float | str]) -> tuple[str, ...]:
    """What the summary says of intervals from few patients, and of which part."""
    found = []
    for key, note in summary.items():
        if key.endswith("interval_note"):
            part = key.removesuffix("interval_note").strip(".").replace(".", " ")
            found.append(f"{part or 'all slides'}: {note}")
    return tuple(found)


def breakdown(
    summary: Mapping[str, int | float | str],
    prefix: str,
    caption: str,
    columns: Mapping[str, str],
) -> Table:
    """One row of each `<prefix><row>.<metric>` in a summary.

    Args:
        summary: of `evals.summary.summarise`.
        prefix: "per_class." or "site.".
        caption: above the table.
        columns: metric -> heading, besides n.
    """
    names = [key.removeprefix(prefix) for key in summary if key.startswith(prefix)]
    things = [name.removesuffix(".n") for name in names if name.endswith(".n")]
    rows = tuple(
        (
            thing,
            f"{summary[f'{prefix}{thing}.n']:,.0f}",
            *(interval(summary, f"{prefix}{thing}.{metric}") for metric in columns),
        )
        for thing in things
    )
    header = (prefix.strip(".").replace("per_", ""), "slides", *columns.values())
    return Table(caption=caption, header=header, rows=rows)


def levels(
    summary: Mapping[str, int | float | str], columns: Mapping[str, str]
) -> Table:
    """Slides, and patients where the summary has them; arguments as `breakdown`."""
    prefixes = {"slides": ""} | (
        {"patients": "patient."} if "patient.n" in summary else {}
    )
    rows = tuple(
        (
            name,
            f"{summary[at + 'n']:,.0f}",
            *(interval(summary, at + m) for m in columns),
        )
        for name, at in prefixes.items()
    )
    header = ("verdicts of", "n", *columns.values())
    return Table(caption="By slide and by patient", header=header, rows=rows)


def counts(
    rows: Iterable[Mapping[str, str]], by: Sequence[str], classes: Sequence[str]
) -> Table:
    """Slides of each class, of each combination of `by`, and in all.

    Args:
        rows: of each slide at least `by` and "label".
        by: e.g. ("split", "site").
        classes: columns.
    """
    tally: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        of = tally.setdefault(tuple(row[name] for name in by), [0] * len(classes))
        of[classes.index(row["label"])] += 1
    columns = zip(*tally.values(), strict=True)
    everything = ("all", *[""] * (len(by) - 1)), [sum(column) for column in columns]
    return Table(
        caption="Slides by " + ", ".join(by) + " and class",
        header=(*by, *classes, "all"),
        rows=tuple(
            (*(part or DASH for part in key), *map(str, of), str(sum(of)))
            for key, of in (*sorted(tally.items()), everything)
        ),
    )


def size(count: int | float | None) -> str:
    """Bytes in a unit that leaves few digits."""
    if count is None:
        return "not known"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def seconds(count: int | float) -> str:
    """Milliseconds, seconds up to two minutes, then minutes, then hours."""
    if count < 1:
        return f"{1000 * count:.3g} ms"
    if count < 120:
        return f"{count:.3g} s"
    return f"{count / 60:.1f} min" if count < 7200 else f"{count / 3600:.1f} h"


def _repeated(account: Mapping[str, int | float | None]) -> str:
    """The work that a stopped run had to do again, "" where there is none."""
    shown = {"slides": "slides", "tiles": "tiles", "steps": "training steps"}
    counts = {name: account[f"repeated_{key}"] for key, name in shown.items()}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def cost(account: Mapping[str, int | float | None]) -> Table:
    """The account of `evals.cost.Meter.as_dict`, in all and per slide."""
    slides = account["slides"]

    def each(value, form):
        return form(value / slides) if slides else DASH

    rows = [
        ("slides", f"{slides:,}", ""),
        (
            "tiles read",
            f"{account['tiles']:,}",
            each(account["tiles"], "{:,.1f}".format),
        ),
    ]
    for name, key, form in (
        ("pixels decoded", "bytes_decoded", size),
        ("wall time", "wall_s", seconds),
        ("device time", "device_s", seconds),
    ):
        rows.append((name, form(account[key]), each(account[key], form)))
    if account["steps"]:
        rows.append(("training steps", f"{account['steps']:,}", ""))
    if account["flops"]:
        tera = account["flops"] / 1e12
        rows.append(
            (
                "arithmetic: encoder, training, validation, test",
                f"{tera:.3g} TFLOP",
                each(tera, "{:.3g} TFLOP".format),
            )
        )
    if account["uncounted_calls"]:
        calls = f"{account['uncounted_calls']:,} calls"
        rows.append(("programs whose arithmetic is not counted", calls, ""))
    if again := _repeated(account):
        rows.append(("done again after a stop", again, ""))
    for key, percent in account.items():
        if key.startswith("span.") and key.endswith(".percent"):
            of = key.removesuffix("percent")
            share = "" if percent is None else f"{percent:.0f} % of wall time"
            name = of.split(".", 1)[1].rstrip(".")
            rows.append((f"time in {name}", seconds(account[of + "wall_s"]), share))
    rows.append(("peak host memory", size(account["peak_host_bytes"]), ""))
    rows.append(("peak device memory", size(account["peak_device_bytes"]), ""))
    return Table(
        caption="Cost of this run; shares overlap where work runs side by side",
        header=("", "in all", "per slide"),
        rows=tuple(rows),
    )
