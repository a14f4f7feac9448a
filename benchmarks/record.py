"""How every benchmark runs and reports: one table to read, one JSON file to keep."""

import argparse
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

from wsi_jax.files import write_text
from wsi_jax.provenance import provenance

Arguments = argparse.Namespace  # of a command line


def main(
    description: str,
    measure: Callable[[Arguments], Iterable[dict]],
    options: Mapping[str, Mapping] | None = None,
    show: Callable[[list[dict]], str] | None = None,
) -> None:
    """Runs a benchmark from the command line: `--out FILE`, `--quick`, its own options.

    Args:
        description: the benchmark's docstring.
        measure: (arguments) -> rows; those that are there are kept if it stops.
        options: keywords of `ArgumentParser.add_argument`, by the option's name.
        show: (rows) -> text to print; None for a table of them.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="FILE", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="minutes, not more")
    for name, keywords in (options or {}).items():
        parser.add_argument(name, **keywords)
    args = parser.parse_args()
    rows = []
    for row in measure(args):
        rows.append(row)
        write(args.out, rows)
    print((show or table)(rows))


def write(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes rows with the commit, date, machine and versions that made them.

    Args:
        path: JSON file, written whole or not at all.
        rows: flat dicts of strings, finite numbers and None.

    Raises:
        ValueError: a row is not flat, or has a number that JSON lacks.
    """
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, str | int | float | None):
                raise ValueError(f"{name}={value!r} in a benchmark's row is not flat")
    text = json.dumps(provenance() | {"rows": rows}, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def table(rows: list[dict]) -> str:
    """Rows as aligned columns, in the order in which the rows first name them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_cell(row, name) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = lambda line: map(str.rjust, line, widths)
    return "\n".join("  ".join(padded(line)) for line in lines)


def _cell(row, name) -> str:
    value = row.get(name, "")
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
