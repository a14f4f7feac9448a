"""One self-contained HTML page about one run: opens from a file, asks no network.

The page is the template `report.html`, which escapes every value but the charts' SVG.
"""

import base64
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jinja2
import PIL.Image

from wsi_jax.files import any_path, write_text
from wsi_jax.report.tables import Table, number

# Legible, and two hundred slides still make a page that can be mailed.
IMAGE_WIDTH_PX = 1400


class Bar(NamedTuple):
    """Where a metric and its interval lie between 0 and 1, in percent."""

    value: float
    lo: float
    width: float


class Metric(NamedTuple):
    """A headline number between 0 and 1 with its interval; NaN is shown as a dash."""

    name: str
    value: float
    lo: float
    hi: float

    @property
    def bar(self) -> Bar | None:
        """None where there is no interval."""
        ends = self.value, self.lo, self.hi
        if any(map(math.isnan, ends)):
            return None
        value, lo, hi = (100 * min(max(end, 0), 1) for end in ends)
        return Bar(round(value, 1), round(lo, 1), round(hi - lo, 1))


@dataclasses.dataclass(kw_only=True)
class Chart:
    """A plot as an `<svg>` element, with a text that says the same in `alt`."""

    title: str
    svg: str
    alt: str
    caption: str = ""
    wide: bool = False


@dataclasses.dataclass(kw_only=True)
class SlideResult:
    """Label and prediction of one slide, and pictures of what it was drawn from."""

    slide_id: str
    label: str
    predicted: str
    probability: float  # of the predicted class
    images: tuple[str | os.PathLike, ...] = ()

    @property
    def correct(self) -> bool:
        return self.label == self.predicted


@dataclasses.dataclass(kw_only=True)
class Report:
    """Everything on the page, as plain text, numbers and files."""

    title: str  # method and classes
    subtitle: str  # input of the method, in one sentence
    metrics: tuple[Metric, ...]  # headline numbers, the most important first
    n_slides: int  # of the test split
    n_patients: int
    results: tuple[Table, ...]  # of `tables.breakdown` and `levels`
    cohort: Table  # of `tables.counts`
    cost: Table  # of `tables.cost`
    charts: tuple[Chart, ...]
    slides: tuple[SlideResult, ...]  # in any order: the wrong ones are shown first
    refused: Mapping[str, str]  # slide -> reason, for slides that could not be used
    config: Mapping[str, str]  # field -> value, resolved
    versions: Mapping[str, str]  # package -> version
    commit: str
    date: str
    limitations: tuple[str, ...] = ()  # sentences besides those that every page has
    notes: tuple[str, ...] = ()  # sentences about the threshold and the intervals

    def provenance(self) -> dict[str, str]:
        """Commit, date and versions, by name."""
        return {"commit": self.commit, "date": self.date, **self.versions}


def headline(
    summary: Mapping[str, int | float | str], names: Mapping[str, str]
) -> tuple[Metric, ...]:
    """Metrics with intervals from a summary of `evals`, by key: {"auc": "AUC", ...}."""
    each = lambda key: (summary[key], summary[f"{key}_lo"], summary[f"{key}_hi"])
    return tuple(Metric(name, *each(key)) for key, name in names.items())


def write_page(path: str | os.PathLike, report: Report) -> None:
    """Writes the page, images and all, into one HTML file; all images must be there."""
    write_text(path, render(report))


def render(report: Report) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "data_uri": data_uri}
    slides = sorted(report.slides, key=lambda slide: slide.correct)
    page = environment.get_template("report.html")
    return page.render(report=report, slides=slides)


def data_uri(path: str | os.PathLike) -> str:
    """An image file as a data URI, as WebP, at most IMAGE_WIDTH_PX wide."""
    with any_path(path).open("rb") as file, PIL.Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((IMAGE_WIDTH_PX, 4 * IMAGE_WIDTH_PX))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
