"""How every benchmark reports: one table to read, one JSON file to keep."""

import argparse
import json
import os
import pathlib

from wsi_jax.files import write_text
from wsi_jax.provenance import provenance


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser of what every benchmark takes: `--out FILE` and `--quick`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="FILE", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="minutes, not more")
    return parser


def write(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes rows with the commit, date, machine and versions that made them.

    Args:
        path: of a JSON file, written whole or not at all.
        rows: flat dicts of strings, finite numbers and None.

    Raises:
        ValueError: a row is not flat, or has a number that JSON lacks.
    """
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, str | int | float | None):
                raise ValueError(f"{name}={value!r} in a benchmark's row is not flat")
    text = json.dumps(provenance() | {"rows": rows}, indent=1, allow_nan=False)
    path = pathlib.Path(path)
    write_text(path, text + "\n")


def table(rows: list[dict]) -> str:
    """Rows as aligned columns, in the order in which the rows first name them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names]
    cells += [
        [_cell(row[name]) if name in row else "" for name in names] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
