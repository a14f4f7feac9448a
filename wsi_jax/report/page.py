"""One self-contained HTML page about one run: opens from a file, asks no network."""

import dataclasses
import math
import os
from collections.abc import Mapping

from wsi_jax.files import write_text
from wsi_jax.report.parts import (
    Drawing,
    Metric,
    Verdict,
    drawing_html,
    flag,
    metric_html,
    table_html,
    text,
    verdict_html,
)
from wsi_jax.report.style import CSS
from wsi_jax.report.tables import Table, number


@dataclasses.dataclass(kw_only=True)
class Report:
    """Everything on the page, as plain text, numbers and files.

    Attributes:
        title: what was run, on what.
        subtitle: one sentence.
        metrics: the headline, in order; the first is the most important.
        n_slides, n_patients: how many the metrics are of.
        results, cohort, cost: tables (`tables.breakdown`, `counts`, `cost`).
        drawings: ROC, calibration, confusion, training.
        verdicts: of each slide; the wrong ones are shown first.
        refused: slide -> reason, of slides that could not be used.
        config: field -> value, resolved.
        versions: package -> version.
        commit, date: of the run.
        limits: sentences besides those that every page has.
        interval_notes: sentences about intervals of few patients.
    """

    title: str
    subtitle: str
    metrics: tuple[Metric, ...]
    n_slides: int
    n_patients: int
    results: tuple[Table, ...]
    cohort: Table
    cost: Table
    drawings: tuple[Drawing, ...]
    verdicts: tuple[Verdict, ...]
    refused: Mapping[str, str]
    config: Mapping[str, str]
    versions: Mapping[str, str]
    commit: str
    date: str
    limits: tuple[str, ...] = ()
    interval_notes: tuple[str, ...] = ()


def headline(
    summary: Mapping[str, int | float | str], names: Mapping[str, str]
) -> tuple[Metric, ...]:
    """Picks metrics with intervals from a summary of `evals`: {"auc": "AUC", ...}."""
    return tuple(
        Metric(
            name=shown,
            value=summary[key],
            lo=summary[f"{key}_lo"],
            hi=summary[f"{key}_hi"],
        )
        for key, shown in names.items()
    )


def write_page(path: str | os.PathLike, report: Report) -> None:
    """Writes the page, images and all, into one HTML file.

    Raises:
        FileNotFoundError: an image of a verdict is missing.
    """
    write_text(path, render(report))


def render(report: Report) -> str:
    """The page as text."""
    sections = {
        "Results": _results(report),
        "Slides": _gallery(report),
        "Refused": _refused(report),
        "Cohort": table_html(report.cohort),
        "Cost": table_html(report.cost),
        "Limits": _limits(report),
        "Provenance": _provenance(report),
    }
    names = {name: name.lower() for name in sections}
    links = "".join(f'<a href="#{at}">{name}</a>' for name, at in names.items())
    body = "".join(
        f'<section aria-labelledby="{at}"><h2 id="{at}">{name}</h2>{sections[name]}'
        "</section>\n"
        for name, at in names.items()
    )
    # The policy forbids every request: what is not in the file cannot be shown.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(report.title)}</title>
<style>{CSS}</style>
</head>
<body>
<a class="skip" href="#results">Skip to the results</a>
<header>
<h1>{text(report.title)}</h1>
<p>{text(report.subtitle)}</p>
<p class="soft">{report.n_slides:,} slides of {report.n_patients:,} patients ·
{text(report.date)} · commit <code>{text(report.commit[:12])}</code> ·
research use only</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}</main>
<footer class="soft">Made by wsi_jax. For research; not a medical device, not for
diagnosis.</footer>
</body>
</html>
"""


def _results(report: Report) -> str:
    cards = "".join(map(metric_html, report.metrics))
    drawings = "".join(map(drawing_html, report.drawings))
    return (
        f'<dl class="metrics">{cards}</dl>\n'
        '<p class="soft">In brackets and as a bar: 95 % intervals, by patients.</p>\n'
        + "".join(
            f'<p class="soft">{text(note)}.</p>\n' for note in report.interval_notes
        )
        + "".join(map(table_html, report.results))
        + f'<div class="figures">{drawings}</div>\n'
    )


def _gallery(report: Report) -> str:
    ordered = sorted(report.verdicts, key=lambda v: v.label == v.predicted)
    wrong = sum(v.label != v.predicted for v in ordered)
    cards = "".join(verdict_html(v) for v in ordered if v.images)
    bare = tuple(
        (v.slide_id, flag(v), v.predicted, number(v.probability, 2), v.label, v.note)
        for v in ordered
        if not v.images
    )
    header = ("slide", "", "verdict", "probability", "label", "note")
    table = Table(caption="Slides without pictures", header=header, rows=bare)
    return (
        f"<p>{wrong} of {len(ordered)} slides are wrong; they come first. In brackets: "
        "the probability of the verdict's class.</p>\n"
        + (f'<ul class="gallery">{cards}</ul>\n' if cards else "")
        + (table_html(table, "text") if bare else "")
    )


def _refused(report: Report) -> str:
    if not report.refused:
        return "<p>None: every slide of the cohort was used.</p>\n"
    rows = tuple(report.refused.items())
    caption = f"{len(rows)} slides are in no number above"
    table = Table(caption=caption, header=("slide", "reason"), rows=rows)
    return table_html(table, "text")


def _limits(report: Report) -> str:
    sentences = list(report.limits)
    if report.metrics:
        first = report.metrics[0]
        if not math.isnan(first.hi - first.lo):
            sentences.insert(
                0,
                f"The interval of {first.name} is {first.hi - first.lo:.2f} wide, from "
                f"{report.n_slides} slides of {report.n_patients} patients: a "
                "difference between two methods that is smaller than this may be "
                "chance, unless both were compared on the same slides.",
            )
    sentences.append(
        "Attention shows what the verdict was drawn from; it does not outline disease. "
        "Results hold for slides stained, scanned and chosen like these. For research "
        "use only."
    )
    return "".join(f"<p>{text(sentence)}</p>\n" for sentence in sentences)


def _provenance(report: Report) -> str:
    versions = {"commit": report.commit, "date": report.date, **report.versions}
    parts = (("Versions", versions), ("Resolved configuration", report.config))
    return "".join(
        f"<details><summary>{name}</summary>"
        + table_html(
            Table(
                caption=name,
                header=("field", "value"),
                rows=tuple((key, str(value)) for key, value in fields.items()),
            ),
            "text",
        )
        + "</details>\n"
        for name, fields in parts
    )
