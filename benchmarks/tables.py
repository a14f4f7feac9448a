"""Writes the tables of README.md and docs/ from the JSON files of benchmarks/results.

    python -m benchmarks.tables

Between `<!-- NAME -->` and `<!-- end -->` stands what is made from results/NAME.json,
or by the function of NAME in `FACTS`. What a table shows stands in tables.toml.
"""

import argparse
import json
import pathlib
import re
import string
import tomllib
from collections.abc import Mapping, Sequence

from benchmarks import compiled_tables, derive
from wsi_jax.nets import foundation_models

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FACTS = {
    "encoders": foundation_models.markdown_table,
    "compiled_memory": compiled_tables.memory,
    "compiled_seconds": compiled_tables.seconds,
    "compiled_streaming": compiled_tables.streaming,
}

TABLES = tomllib.loads((ROOT / "benchmarks" / "tables.toml").read_text("utf-8"))


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


def render(tables: Sequence[Mapping], report: Mapping) -> str:
    """Tables of one report as Markdown, and what made the report.

    A cell with a value that is missing or None is empty; a column without any cell is
    left out.

    Args:
        tables: columns, rows and facts of each, as in tables.toml, and the name of the
            JSON where it is not the table's.
        report: a benchmark's JSON.
    """
    parts = []
    for table in tables:
        rows = _derived(table["rows"], report) if "rows" in table else report["rows"]
        titles, formats = zip(*table["columns"], strict=True)
        cells = [[_cell(form, row) for form in formats] for row in rows]
        kept = [i for i, column in enumerate(zip(*cells, strict=True)) if any(column)]
        lines = [titles, ["---"] * len(titles), *cells]
        lines = [" | ".join(line[i] for i in kept) for line in lines]
        parts += ["\n".join(f"| {line} |" for line in lines)] if kept else []
        facts = {
            title: _derived(call, report) for title, *call in table.get("facts", ())
        }
        listed = [f"- {title}: {text}" for title, text in facts.items() if text]
        parts += ["\n".join(listed)] if listed else []
    return "\n\n".join([*parts, derive.made(report)])


def filled(page: str) -> str:
    """A page with every block made anew."""

    def block(match):
        opening, name, end = match.groups()
        if name in FACTS:
            return f"{opening}{FACTS[name]()}\n{end}"
        file = TABLES[name][0].get("report", name)
        report = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
        return f"{opening}{render(TABLES[name], report)}\n{end}"

    return BLOCK.sub(block, page)


def pages() -> list[pathlib.Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def _derived(call: Sequence[str], report: Mapping):
    name, *args = call
    function = getattr(derive, name)
    return (function(*args) if args else function)(report["rows"])


def _cell(form: str, row: Mapping) -> str:
    try:
        return _Cells().vformat(form, (), row)
    except _Missing:
        return ""


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
