"""The page holds all it shows, says it in words, and opens without a network."""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import PIL.Image
import pytest

from wsi_jax.evals import metrics
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.evals.summary import summarise_split
from wsi_jax.report import curves, page, tables
from wsi_jax.report.figure import save_png, svg
from wsi_jax.run.write_report.charts import draw_magnifications

CLASSES = ("normal <&>", 'tumor "$x$"')


@pytest.fixture(scope="module")
def evaluated():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    p = 1 / (1 + np.exp(-rng.normal(size=40) - 2 * labels + 1))
    p = np.stack([1 - p, p], -1)
    parts = {"patients": np.arange(40) // 2, "sites": ["rumc", "umcu"] * 20}
    return labels, p, summarise_split(labels, p, CLASSES, threshold=0.5, **parts)


@pytest.fixture(scope="module")
def figures(evaluated):
    labels, p, summary = evaluated
    fpr, tpr = metrics.roc_points(labels == 1, p[:, 1])
    ends = {"auc": summary["auc"], "lo": summary["auc_lo"], "hi": summary["auc_hi"]}
    grid = np.linspace(0, 1, 5)
    band = {"grid": grid, "tpr_lo": grid, "tpr_hi": np.sqrt(grid)}
    one = curves.Roc(name=CLASSES[1], fpr=fpr, tpr=tpr, **ends, **band)
    bins = metrics.calibration(*metrics.confidence(labels, p))
    matrix = metrics.confusion(labels, metrics.predict(p, 0.5), 2)
    steps = np.arange(5)
    return {
        "roc": curves.roc([one, one], (0.1, 0.8)),
        "calibration": curves.calibration(*bins, "probability of tumor"),
        "confusion": curves.confusion(matrix, CLASSES),
        "training": curves.training(
            {"training loss": (steps, 1 / (1 + steps))}, {"AUC": (steps, steps / 5)}
        ),
    }


@pytest.fixture(scope="module")
def report(evaluated, figures, tmp_path_factory):
    labels, p, summary = evaluated
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    image = folder / "map.png"
    pixels = rng.integers(0, 255, (20, 3000, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(image)
    meter = Meter(device_bytes=lambda: 5_000_000)
    meter.add(slides=40, tiles=1234, bytes_decoded=10**9, device_s=0.5)
    with meter.span("read"):
        pass
    predicted = metrics.predict(p, 0.5)
    columns = {"auc": "AUC", "f1": "F1"}
    rows = [{"split": "test", "site": "", "label": CLASSES[k]} for k in labels]
    return page.Report(
        title="A <script>alert(1)</script> & B",
        subtitle="Sub",
        metrics=page.headline(summary, {"auc": "AUC", "f1": "F1"}),
        n_slides=40,
        n_patients=summary["n_patients"],
        results=(
            tables.levels(summary, columns),
            tables.breakdown(summary, "per_class.", "By class", columns),
            tables.breakdown(summary, "site.", "By site", columns),
        ),
        cohort=tables.counts(rows, ("split", "site"), CLASSES),
        cost=tables.cost(meter.as_dict()),
        charts=tuple(
            page.Chart(title=name, svg=svg(figure), alt=f"{name} curve")
            for name, figure in figures.items()
        ),
        slides=tuple(
            page.SlideResult(
                slide_id=f"s_{i}",
                label=CLASSES[labels[i]],
                predicted=CLASSES[predicted[i]],
                probability=float(p[i, predicted[i]]),
                images=(image,) if i < 5 or predicted[i] != labels[i] else (),
            )
            for i in range(40)
        ),
        refused={"s_<b>": "no mpp in the file: pass it in the manifest"},
        config={"train.steps": "100"},
        versions={"jax": "0.10.2"},
        commit="0123456789abcdef",
        date="2026-11-21",
        limitations=("Stained in one laboratory.",),
    )


def test_the_cost_names_what_its_arithmetic_is_of_and_what_was_done_again(tmp_path):
    journal = tmp_path / "cost.jsonl"
    for _ in range(2):
        meter = Meter(journal=journal)
        meter.begin("train")
        meter.record("train", steps=1200, flops=5 * 10**12, uncounted_calls=3)
    rows = {name: value for name, value, _ in tables.cost(meter.as_dict()).rows}
    assert rows["training steps"] == "1,200"
    assert rows["arithmetic: encoder, training, validation, test"] == "5 TFLOP"
    assert rows["programs whose arithmetic is not counted"] == "3 calls"
    assert rows["done again after a stop"] == "1,200 training steps"


def test_nothing_that_is_data_becomes_markup(report):
    text = page.render(report)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert '<th scope="row">s_&lt;b&gt;</th>' in text
    assert "<normal" not in text
    assert "normal <&>" not in text


def test_the_page_holds_all_it_shows(report):
    text = page.render(report)
    links = re.findall(r'(?:src|href)="([^"]{0,20})', text)
    assert all(link.startswith(("data:image/webp;base", "#")) for link in links)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http-equiv', "", text)
    for part in (
        *("40 slides of 20 patients", "Stained in one laboratory", "research"),
        *("train.steps", "0.10.2", "0123456789abcdef", "no mpp in the file", "1,234"),
        *(slide.slide_id for slide in report.slides),
    ):
        assert part in text, part
    for chart in report.charts:
        assert chart.svg in text


def test_wrong_predictions_come_first_and_are_named(report):
    text = page.render(report)
    wrong = [slide for slide in report.slides if slide.label != slide.predicted]
    assert report.slides[0] not in wrong
    assert text.count("✗ wrong") == len(wrong) > 0
    assert text.count("✓ correct") == len(report.slides) - len(wrong)
    shown = [kind == "wrong" for kind in re.findall(r'<li class="(\w+)"', text)]
    assert shown == sorted(shown, reverse=True)
    assert set(shown) == {True, False}


def test_an_undefined_metric_is_a_dash_and_images_are_bounded(report):
    lost = page.Metric("AUC", np.nan, np.nan, np.nan)
    text = page.render(dataclasses.replace(report, metrics=(lost,)))
    assert ">nan" not in text
    assert tables.DASH in text
    uri = page.data_uri(report.slides[0].images[0])
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < 60_000


def test_few_patients_are_noted_and_very_few_have_no_interval(report):
    """Neither on a card nor in a legend."""
    labels = np.array([0] * 12 + [1] * 4)
    p = np.stack([np.linspace(0.9, 0.2, 16), np.linspace(0.1, 0.8, 16)], -1)
    sites, names = ["a"] * 16, ("normal", "tumor")
    summary = summarise_split(labels, p, names, threshold=0.5, sites=sites)
    assert tables.interval(summary, "auc") == tables.number(summary["auc"])
    notes = tables.interval_notes(summary)
    (once,) = notes  # of the site there is nothing else to say
    assert once.startswith("few patients (all slides: tumor 4): intervals of fewer")
    other = summary | {"site.b.interval_note": "patients: tumor 2; intervals"}
    (both,) = tables.interval_notes(other)
    assert both.startswith("few patients (all slides: tumor 4; site b: tumor 2): inte")
    card = page.headline(summary, {"auc": "AUC"})
    text = page.render(dataclasses.replace(report, metrics=card, notes=notes))
    assert "all slides: tumor 4" in text
    assert "no interval" in text
    assert ">nan" not in text
    ends = {"auc": 0.9, "lo": np.nan, "hi": np.nan}
    zero = {"fpr": np.zeros(1), "tpr": np.zeros(1)}
    (axes,) = curves.roc([curves.Roc(name="tumor", **zero, **ends)]).axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["tumor: 0.900"]


def test_charts_are_well_formed_and_take_the_pages_ink(figures, tmp_path):
    for name, figure in figures.items():
        text = svg(figure)
        ET.fromstring(text)
        assert "currentColor" in text, name
        assert "font-family" not in text, name
    save_png(figures["roc"], tmp_path / "roc.png")
    with PIL.Image.open(tmp_path / "roc.png") as image:
        assert min(image.size) > 300
    assert 'tumor "$x$"' in "".join(ET.fromstring(svg(figures["roc"])).itertext())


def test_a_report_shows_magnifications_where_there_are_several():
    lines = [{"step": s, "train.mass.16": 0.1 * s, "train.mass.4": 0.5} for s in (1, 2)]
    (chart,) = draw_magnifications([*lines, {"step": 2, "val.auc": 0.5}])
    assert "50 % at 4 um/px, 20 % at 16 um/px" in chart.caption
    assert draw_magnifications([{"step": 1, "train.mass.4": 1.0}]) == []


def test_tables_have_a_row_for_each_part_and_add_up(report):
    assert report.cohort.header == ("split", "site", *CLASSES, "all")
    assert report.cohort.rows == (
        ("test", tables.DASH, "20", "20", "40"),
        ("all", tables.DASH, "20", "20", "40"),
    )
    parts = [[row[:2] for row in table.rows] for table in report.results]
    assert parts == [
        [("slides", "40"), ("patients", "20")],
        [(name, "20") for name in CLASSES],
        [("rumc", "20"), ("umcu", "20")],
    ]
    cell = report.results[1].rows[0][2]
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\)", cell)


def test_quantities_have_units():
    sizes = {999: "999 B", 20_600_000_000: "20.6 GB", None: "not known"}
    assert {n: tables.size(n) for n in sizes} == sizes
    times = {0.0047: "4.7 ms", 5.04: "5.04 s", 600: "10.0 min", 7200: "2.0 h"}
    assert {s: tables.seconds(s) for s in times} == times


PROBE = """<script>
let refused = 0;
document.addEventListener("securitypolicyviolation", () => refused++);
addEventListener("load", () => { document.body.dataset.result = JSON.stringify({
  images: document.images.length,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
  drawings: [...document.querySelectorAll("figure svg")].filter(
    s => s.getBoundingClientRect().height > 100).length,
  wide: document.documentElement.scrollWidth > innerWidth, refused }); });
</script>"""


def test_a_browser_shows_every_image(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        message = "no chromium on PATH (apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    page.write_page(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text()
    # The page itself runs no script: this copy may run the one that looks at it.
    policy = "default-src 'none'"
    assert text.count(policy) == 1
    text = text.replace(policy, f"{policy}; script-src 'unsafe-inline'")
    copy = tmp_path / "probed.html"
    copy.write_text(text.replace("<title>", PROBE + "<title>"))
    run = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,800"),
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search("<title>(.*)</title>", run.stdout).group(1)
    assert html.unescape(title) == report.title
    result = re.search(r'data-result="([^"]*)"', run.stdout).group(1)
    assert json.loads(html.unescape(result)) == {
        "images": sum(len(v.images) for v in report.slides),
        "broken": 0,
        "drawings": 4,
        "wide": False,
        "refused": 0,
    }
