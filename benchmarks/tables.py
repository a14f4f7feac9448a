"""Writes the tables of README.md and docs/ from the JSON files of benchmarks/results.

    python -m benchmarks.tables

Between `<!-- NAME -->` and `<!-- end -->` stands what is made from results/NAME.json,
or of NAME in `FACTS` from the package itself. A table is a list of columns, each a
title and the format of a row; what a column needs beyond a row is derived in
`derive.py`.
"""

import json
import pathlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks import derive
from wsi_jax.nets import foundation_models

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FACTS = {"encoders": foundation_models.table}

Row = Mapping[str, object]


class Table(NamedTuple):
    """A table of Markdown.

    Attributes:
        columns: {title: format of a row}; a cell with a value that is missing or None
            is empty, a column without any cell is left out.
        rows: (rows of the JSON) -> rows of the table.
        facts: {title: (rows of the JSON) -> text}, listed below the table.
    """

    columns: Mapping[str, str]
    rows: Callable[[Sequence[Row]], Sequence[Row]] = list
    facts: Mapping[str, Callable[[Sequence[Row]], str]] = {}


class _Missing(Exception):
    """A row has no value for a cell."""


class _Cells(string.Formatter):
    """Formats of a row, with `{name:MB}` of bytes, `{name:ms}` of seconds and so on."""

    def get_field(self, field_name, args, kwargs):
        value = kwargs.get(field_name)
        if value is None:
            raise _Missing
        return value, field_name

    def format_field(self, value, format_spec):
        if format_spec == "MB":
            return f"{value / 1e6:,.0f} MB"
        if format_spec == "ms":
            return f"{1e3 * value:,.0f}"
        if format_spec == "minutes":
            return f"{60 * value:.0f}"
        if format_spec == "words":
            return str(value).replace("_", " ")
        return format(value, format_spec)


def interval(name: str, form: str = ".3f") -> str:
    """The format of a value with the ends of its 95 % interval."""
    return f"{{{name}:{form}}} ({{{name}_lo:{form}}} to {{{name}_hi:{form}}})"


AUC = {"AUC (95 %)": interval("auc")}
COHORT = {"preset": "`{preset}`", "seed": "{seed}"}
TABLES: Mapping[str, Sequence[Table]] = {
    "practice": [
        Table(
            {
                "slides made of": "{source}",
                "preset": "{preset}",
                "method": "{method}",
                "encoder": "{encoder}",
                "test slides": "{n}",
                **AUC,
                "balanced accuracy": "{balanced_accuracy:.3f}",
                "tiles": "{tiles:,}",
            }
        )
    ],
    "certificates": [
        Table(
            {
                "preset": "`{preset}`, seed {seed}, {styles:,} textures",
                "slides": "{slides}",
                "signal": "{signal}",
                "no signal": "{none}",
                "metadata only": "{auc:.2f} ({lo:.2f} to {hi:.2f})",
                "rows that hold": "{held} of {of}",
            },
            derive.certificates,
        )
    ],
    "pooling": [
        Table(
            {
                "method": "{method}",
                "tiles": "{tiles:,}",
                "chunk": "{chunk:,}",
                "temporaries": "{temp_bytes:MB}",
                "work, against one chunk": "{work:.2f}x",
            },
            derive.pooling,
        )
    ],
    "phantoms": [
        Table(
            {
                "preset": "`{preset}`",
                "learner": "{learner}",
                "mean AUC": "{auc:.3f}",
                "AUC of each seed (95 %)": "{each}",
            },
            derive.by_seed("preset", "learner"),
            {
                "slides of a cohort": derive.span("slides"),
                "sides, px": derive.span("least_side_px", "largest_side_px"),
                "test slides": derive.span("n"),
                "rows of certificates that hold": derive.certified,
                "commits": derive.commits,
            },
        )
    ],
    "ucsb_breast": [
        Table(
            {
                "learner": "{learner}",
                "images": "{n}",
                **AUC,
                "difference (95 %)": "{difference:+.3f} ({lo:+.3f} to {hi:+.3f})",
            }
        )
    ],
    "coverage": [
        Table(
            {
                "metric": "{metric:words}",
                "cases": "{cases}",
                "least coverage": "{least coverage:.3f}",
                "below .93": "{below 0.93}",
                "widest, against the estimates' spread": "{widest:.2f}",
                "above 1.3": "{above 1.3}",
            },
            derive.coverage,
        )
    ],
    "tile_encoders": [
        Table(
            {
                "encoder of": "`{run}`, {group}",
                "um/px": "{mpp:g}",
                "tiles (clusters)": "{n} ({n_clusters})",
                "encoder": interval("accuracy"),
                "colours and gradients": interval("baseline_accuracy"),
                "difference": interval("difference"),
            }
        )
    ],
    "streaming": [
        Table(
            {
                "trunk": "{trunk}",
                "driver": "{driver}",
                "image": "{image_px:,} px",
                "tile": "{tile_px:,} px",
                "work": "{flops_ratio:.2f}x",
                "temporaries": "{temp_bytes:MB}",
                "CPU seconds": "{seconds_ratio:.2f}x",
            }
        )
    ],
    "streaming_memory": [
        Table(
            {
                "slide": "{image_px:,} px",
                "tile": "{tile_px:,} px",
                "seams, computed": "{seam_bytes:MB}",
                "seams, counted": "{seam_bytes_counted:MB}",
                "peak": "{peak_rss_bytes:MB}",
                "the rest": "{rest_bytes:MB}",
            }
        )
    ],
    "streaming_runs": [
        Table(
            {
                **COHORT,
                "trunk": "{trunk}, {learner}",
                **AUC,
                "attention (95 %)": interval("auprc"),
                "by chance": "{auprc_chance:.3f}",
                "minutes": "{hours:minutes}",
            },
            facts={
                "training slides": derive.span("n_train"),
                "test slides": derive.span("n"),
                "commits": derive.commits,
            },
        )
    ],
    "attention_pooling_memory": [
        Table(
            {
                "tiles learnt from": "{tiles}",
                "microbatch": "{chunk}",
                "temporaries": "{temp_bytes:MB}",
                "against one microbatch, gradients and rows": "{ratio:.2f}x",
            }
        )
    ],
    "attention_pooling_runs": [
        Table(
            {
                "preset": "`{preset}`",
                "weights": "{weights}",
                **AUC,
                "F1 (95 %)": interval("f1"),
                "attention difference (95 %)": interval("difference", ".4f"),
                "lift (95 %)": interval("lift", ".2f"),
                "average precision (95 %)": interval("auprc"),
                "by chance": "{chance:.3f}",
            },
            derive.having("seeds", sort="preset"),
            {
                "cohorts": derive.span("seeds"),
                "test slides of a cohort": derive.span("n", having="run_commit"),
                "rows of certificates that hold": derive.certified,
                "commits": derive.commits,
            },
        ),
        Table(
            {
                "preset": "`{preset}`",
                "compared": "{weights}",
                "cohorts": "{cohorts}",
                "difference of AUC (95 %)": interval("auc_diff", "+.3f"),
            },
            derive.having("auc_diff"),
        ),
    ],
    "attention_sampling": [
        Table(
            {
                "against": "{regime}",
                "crops of a step; of a prediction": "{crops:.0f}; {crops_verdict:.0f}",
                "tiles": "{tiles:,.0f}",
                "step": "{train_speedup:.1f}x",
                "step, ms": "{train_step_s:ms} of {train_step_s_patch_all:ms}",
                "step, predicted": "{predicted_train_speedup:.1f}x",
                "prediction": "{infer_speedup:.1f}x",
                "with the search for tissue": "{infer_speedup_with_tissue:.1f}x",
                "prediction, ms": "{infer_slide_s:ms} of {infer_slide_s_patch_all:ms}",
                "prediction, predicted": "{predicted_infer_speedup:.1f}x",
            }
        ),
        Table(
            {
                "against": "{regime}",
                "AUC": "{auc:.3f}",
                "patch-all's": "{auc_patch_all:.3f}",
                "difference (95 %)": interval("auc_diff", "+.3f"),
                "cohorts": "{cohorts}",
            },
            derive.having("auc"),
        ),
    ],
    "magnification": [
        Table(
            {**COHORT, "attention by um/px": "{shares}", **AUC},
            derive.magnification,
            {
                "furthest from even at the first step": derive.uneven("first"),
                "furthest from even at the last step, `null`": derive.uneven(
                    "last", preset="null"
                ),
                "crops of a slide": derive.span("crops"),
                "cells of a slide, mean of a cohort": derive.span("cells"),
                "training slides": derive.span("n_train"),
                "test slides": derive.span("n"),
                "rows of certificates that hold": derive.certified,
                "commits": derive.commits,
            },
        )
    ],
    "needle": [
        Table(
            {
                "crops": "{crops}",
                "attentions on them": "{attentions}",
                "learner": "{learner}",
                "mean AUC": "{auc:.3f}",
                "AUC of each seed (95 %)": "{each}",
                "minutes": "{minutes:.0f}",
            },
            derive.needle,
            {
                "test slides": derive.span("n"),
                "steps": derive.span("steps"),
                "cores of a run": derive.span("run_cores"),
                "commits": derive.commits,
            },
        ),
        Table(
            {
                "compared": "{learner}",
                "crops": "{crops}",
                "attentions on them": "{attentions}",
                "cohorts": "{cohorts}",
                "difference of AUC (95 %)": interval("auc_diff", "+.3f"),
            },
            derive.having("auc_diff"),
        ),
    ],
    "zoom": [
        Table(
            {
                "tiles": "{n:,}",
                "steps": "{t:,}",
                "slides together": "{slides_together}",
                "CPU s a slide": "{cpu_s_per_slide_update:.2f}",
                "memory": "{extra_mb:,.0f} MB",
                "steps a second": "{env_steps_per_s:,.0f}",
                "stacked states": "{plain_cpu_s:.1f} s, {plain_mb:,.0f} MB",
            }
        )
    ],
    "zoom_slides": [
        Table(
            {
                "zoomed into": "{t} of {n}",
                "tiles read": "{tiles_read:,.0f}",
                "s a slide": "{s_per_slide:.2f}",
                "speed-up": "{speedup:.2f}x",
                "by tiles encoded": "{bound:.2f}x",
                "peak of the process": "{peak_rss_mb:,.0f} MB",
                "largest program": "{program_mb:,.0f} MB",
                "peak on the device": "{peak_device_mb:,.0f} MB",
            }
        )
    ],
    "zoom_runs": [
        Table(
            {
                "preset": "`{preset}`",
                "settings": "{settings}",
                "share": "{share:.0%}",
                "strategy": "{way:words}",
                "tiles needed": "{tiles_read:,.0f}",
                "AUC (95 %)": interval("auc"),
                "of each cohort": "{each}",
                "calibration error": "{calibration_error:.3f}",
            },
            derive.zoom_means,
            {
                "test slides of a cohort": derive.span("n"),
                "tumour slides with less lesion than a child covers": derive.small,
                "rows of certificates that hold": derive.certified,
                "commits": derive.commits,
            },
        ),
        Table(
            {
                "preset": "`{preset}`",
                "settings": "{settings}",
                "share": "{share:.0%}",
                "compared": "{way:words}",
                "difference of AUC (95 %)": interval("auc_diff", "+.3f"),
                "gap to the oracle closed": "{closed:.2f}",
            },
            derive.zoom_gains,
        ),
    ],
    "extract": [
        Table(
            {
                "encoder": "{encoder}",
                "threads": "{threads}",
                "tiles in a batch": "{batch}",
                "slides a second": "{slides_per_s:.2f}",
                "tiles a second": "{tiles_per_s:,.0f}",
                "the device waited": "{device_waited_percent:.0f} %",
            }
        )
    ],
    "tile_loader": [
        Table(
            {
                "slide": "`{slide}`",
                "grid": "{grid}",
                "um/px, against the file's": "{coarser}x",
                "tiles a second": "{loader_tiles_per_s:,.0f}",
                "against PyTorch": "{ratio_to_pytorch:.1f}x",
                "against decoding alone": "{ratio_to_raw_decode:.2f}x",
            },
            facts={"greatest growth of memory, MB": derive.greatest("rss_growth_mb")},
        )
    ],
}


def render(tables: Sequence[Table], report: Mapping) -> str:
    """Tables of one report as Markdown, and what made the report."""
    parts = []
    for table in tables:
        cells = [
            [_cell(form, row) for form in table.columns.values()]
            for row in table.rows(report["rows"])
        ]
        kept = [i for i, column in enumerate(zip(*cells, strict=True)) if any(column)]
        if not kept:
            continue
        titles = list(table.columns)
        lines = [[titles[i] for i in kept], ["---"] * len(kept)]
        lines += [[line[i] for i in kept] for line in cells]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        facts = {title: text(report["rows"]) for title, text in table.facts.items()}
        listed = [f"- {title}: {text}" for title, text in facts.items() if text]
        parts += ["\n".join(listed)] if listed else []
    return "\n\n".join([*parts, derive.made(report)])


def filled(page: str) -> str:
    """A page with every block made anew."""

    def block(match):
        opening, name, end = match.groups()
        if name in FACTS:
            return f"{opening}{FACTS[name]()}\n{end}"
        report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        return f"{opening}{render(TABLES[name], report)}\n{end}"

    return BLOCK.sub(block, page)


def pages() -> list[pathlib.Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def _cell(form: str, row: Row) -> str:
    try:
        return _Cells().vformat(form, (), row)
    except _Missing:
        return ""


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
