"""The pieces of a page: headline numbers, drawings, tables, verdicts; and their HTML.

Everything that is not markup is escaped here.
"""

import base64
import dataclasses
import html
import io
import math
import os

import PIL.Image

from wsi_jax.report.tables import Table, number

# Wide enough to be looked at, and two hundred slides still make a page one can mail.
IMAGE_WIDTH_PX = 1400


@dataclasses.dataclass(kw_only=True)
class Metric:
    """A headline number between 0 and 1 with its interval; NaN is shown as a dash."""

    name: str
    value: float
    lo: float
    hi: float


@dataclasses.dataclass(kw_only=True)
class Drawing:
    """A curve: `figure.svg(...)`, and in `alt` the same for who cannot see it."""

    title: str
    svg: str
    alt: str
    caption: str = ""
    wide: bool = False


@dataclasses.dataclass(kw_only=True)
class Verdict:
    """One slide: what it is, what was said, and pictures of why."""

    slide_id: str
    label: str
    predicted: str
    probability: float  # of the class that was predicted
    images: tuple[str | os.PathLike, ...] = ()
    note: str = ""


def text(value: object) -> str:
    """Escapes."""
    return html.escape(str(value))


def metric_html(metric: Metric) -> str:
    """A card: the number, its interval, and both as a bar from 0 to 1."""
    ends = metric.value, metric.lo, metric.hi
    track, between = "", "no interval"
    if not any(map(math.isnan, ends)):
        between = f"{number(metric.lo)} to {number(metric.hi)}"
        at, lo, hi = (100 * min(max(end, 0), 1) for end in ends)
        track = (
            f'<div class="track" aria-hidden="true"><i style="left:{lo:.1f}%;'
            f'width:{hi - lo:.1f}%"></i><b style="left:{at:.1f}%"></b></div>'
        )
    return (
        f"<div><dt>{text(metric.name)}</dt>"
        f'<dd><span class="value">{number(metric.value)}</span>{track}'
        f'<span class="range">{between}</span></dd>'
        "</div>\n"
    )


def drawing_html(drawing: Drawing) -> str:
    """A figure that a screen reader hears as its `alt`."""
    wide = ' class="wide"' if drawing.wide else ""
    caption = f"<strong>{text(drawing.title)}</strong> {text(drawing.caption)}"
    return (
        f"<figure{wide}><figcaption>{caption}</figcaption>"
        f'<div role="img" aria-label="{text(drawing.alt)}">{drawing.svg}</div>'
        "</figure>\n"
    )


def table_html(table: Table, kind: str = "numbers") -> str:
    """A table; `kind` "text" lets long cells wrap."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in table.rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{text(table.caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )


def flag(verdict: Verdict) -> str:
    """In words and a sign, for colour alone is not seen by all."""
    return "✓ correct" if verdict.label == verdict.predicted else "✗ wrong"


def verdict_html(verdict: Verdict) -> str:
    """A slide's card, flagged in words and by colour."""
    said = f"{verdict.predicted} ({number(verdict.probability, 2)})"
    alt = f"{verdict.slide_id}: label {verdict.label}, verdict {said}"
    images = "".join(
        f'<img src="{data_uri(path)}" alt="{text(alt)}, picture {k}">'
        for k, path in enumerate(verdict.images, 1)
    )
    note = f'<p class="soft">{text(verdict.note)}</p>' if verdict.note else ""
    kind = "right" if verdict.label == verdict.predicted else "wrong"
    return (
        f'<li class="{kind}"><h3>{text(verdict.slide_id)}</h3>'
        f'<span class="flag">{flag(verdict)}</span> · '
        f"verdict {text(said)} · label {text(verdict.label)}{note}{images}</li>\n"
    )


def data_uri(path: str | os.PathLike) -> str:
    """An image file as a data URI, as WebP, at most IMAGE_WIDTH_PX wide."""
    with PIL.Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((IMAGE_WIDTH_PX, 4 * IMAGE_WIDTH_PX))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
