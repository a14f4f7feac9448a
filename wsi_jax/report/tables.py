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


def interval_notes(summary: Mapping[str, int | float | str]) -> tuple[str, ...]:
    """One note on intervals from few patients, and whose they are; or none."""
    part = lambda key: key.removesuffix("interval_note").strip(".").replace(".", " ")
    parts, meaning = {}, ""
    for key, note in summary.items():
        if key.endswith("interval_note"):
            counts, _, meaning = note.removeprefix("patients: ").partition("; ")
            parts.setdefault(counts, part(key) or "all slides")
    counts = "; ".join(f"{name}: {count}" for count, name in parts.items())
    return (f"few patients ({counts}): {meaning}",) if parts else ()


def breakdown(
    summary: Mapping[str, int | float | str],
    prefix: str,
    caption: str,
    columns: Mapping[str, str],
) -> Table:
    """One row for each `<prefix><row>.<metric>` in a summary of `evals.summary`.

    `prefix` is "per_class.", "site." or the like; `columns` are metric -> heading.
    """
    keys = [k for k in summary if k.startswith(prefix) and k.endswith(".n")]
    names = [key[len(prefix) : -len(".n")] for key in keys]
    rows = {name: f"{prefix}{name}." for name in names}
    heading = prefix.strip(".").replace("per_", "")
    return _metric_table(summary, rows, caption, (heading, "slides"), columns)


def levels(
    summary: Mapping[str, int | float | str], columns: Mapping[str, str]
) -> Table:
    """Slides, and patients where the summary has them; `columns` as `breakdown`."""
    rows = {"slides": ""} | ({"patients": "patient."} if "patient.n" in summary else {})
    heading = "predictions of", "n"
    return _metric_table(summary, rows, "By slide and by patient", heading, columns)


def _metric_table(summary, rows, caption, heading, columns) -> Table:
    """A row for each name -> prefix of its keys: n, and metrics with intervals."""
    return Table(
        caption=caption,
        header=(*heading, *columns.values()),
        rows=tuple(
            (
                name,
                f"{summary[prefix + 'n']:,.0f}",
                *(interval(summary, prefix + metric) for metric in columns),
            )
            for name, prefix in rows.items()
        ),
    )


def counts(
    rows: Iterable[Mapping[str, str]], by: Sequence[str], classes: Sequence[str]
) -> Table:
    """Slides of each class, of each combination of columns `by`, and in all.

    `rows` is one for each slide, with at least `by` and "label".
    """
    tally: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        cells = tally.setdefault(tuple(row[name] for name in by), [0] * len(classes))
        cells[classes.index(row["label"])] += 1
    columns = zip(*tally.values(), strict=True)
    everything = ("all", *[""] * (len(by) - 1)), [sum(column) for column in columns]
    return Table(
        caption="Slides by " + ", ".join(by) + " and class",
        header=(*by, *classes, "all"),
        rows=tuple(
            (*(part or DASH for part in key), *map(str, cells), str(sum(cells)))
            for key, cells in (*sorted(tally.items()), everything)
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


def cost(account: Mapping[str, int | float | None]) -> Table:
    """The account of `evals.cost_meter.Meter.as_dict`, in all and per slide."""
    slides = account["slides"]

    def row(name, value, form, per_slide_form=None):
        each = (per_slide_form or form)(value / slides) if slides else DASH
        return name, form(value), each

    whole, tera = "{:,}".format, "{:.3g} TFLOP".format
    rows = [
        ("slides", whole(slides), ""),
        row("tiles read", account["tiles"], whole, "{:,.1f}".format),
        row("pixels decoded", account["bytes_decoded"], size),
        row("wall time", account["wall_s"], seconds),
        row("device time", account["device_s"], seconds),
    ]
    if account["steps"]:
        rows.append(("training steps", whole(account["steps"]), ""))
    if account["flops"]:
        work = "arithmetic: encoder, training, validation, test"
        rows.append(row(work, account["flops"] / 1e12, tera))
    if account["uncounted_calls"]:
        calls = f"{account['uncounted_calls']:,} calls"
        rows.append(("programs whose arithmetic is not counted", calls, ""))
    names = {"slides": "slides", "tiles": "tiles", "steps": "training steps"}
    again = {name: account[f"repeated_{key}"] for key, name in names.items()}
    if again := ", ".join(
        f"{count:,} {name}" for name, count in again.items() if count
    ):
        rows.append(("done again after a stop", again, ""))
    for key, percent in account.items():
        if key.startswith("span.") and key.endswith(".percent"):
            name = key.removeprefix("span.").removesuffix(".percent")
            share = "" if percent is None else f"{percent:.0f} % of wall time"
            spent = seconds(account[f"span.{name}.wall_s"])
            rows.append((f"time in {name}", spent, share))
    rows.append(("peak host memory", size(account["peak_host_bytes"]), ""))
    rows.append(("peak device memory", size(account["peak_device_bytes"]), ""))
    return Table(
        caption="Cost of this run; shares overlap where work runs side by side",
        header=("", "in all", "per slide"),
        rows=tuple(rows),
    )
