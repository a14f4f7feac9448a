"""Tolerant reading of CSVs, as spreadsheets, pandas and people write them."""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence

from wsi_jax.files import any_path, replacing

# What makes a spreadsheet compute a cell, or would once it is unescaped.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


class CohortError(ValueError):
    """A cohort that cannot be used as it is; the message names place and mend."""


def read_lines(path: str | os.PathLike) -> list[tuple[int, list[str]]]:
    """(line number, cells) of any CSV; empty lines are left out.

    Cells are text without blanks around them. Commas, semicolons and tabs all separate.
    The apostrophe of `escape_formula` is taken off again. CohortError: no such file, or
    not a CSV.
    """
    try:
        text = any_path(path).read_bytes().decode("utf-8-sig")
        file = io.StringIO(text, newline="")
        separator = max(",;\t", key=file.readline().count)
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        lines = [
            (reader.line_num, [unescape_formula(cell.strip()) for cell in cells])
            for cells in reader
        ]
    except FileNotFoundError:
        raise CohortError(f"{path}: no such manifest; mend the path") from None
    except IsADirectoryError:
        raise CohortError(
            f"{path}: a folder, not a CSV; name a CSV of slides and labels (only "
            "experiments.extract_features and experiments.predict take folders)"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(
            f"{path}: not a CSV in UTF-8 ({error}); save it as one"
        ) from None
    return [(number, cells) for number, cells in lines if any(cells)]


def read_table(
    path: str | os.PathLike, filled: Sequence[str] = ()
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, in lower case, and (line number, {column: cell}) of each line.

    The first line of the CSV names the columns. CohortError: as `read_lines`; more or
    fewer cells than names; or a column of `filled` is not there, or has an empty cell.
    """
    table = read_lines(path)
    if not table:
        raise CohortError(f"{path}: empty; its first line names the columns")
    (_, header), *lines = table
    header = [name.casefold() for name in header]
    for name in filled:
        find_column(path, header, (name,))
    named = []
    for number, cells in lines:
        while len(cells) > len(header) and not cells[-1]:  # as spreadsheets export
            cells = cells[:-1]
        if len(cells) != len(header):
            raise CohortError(
                f"{path}, line {number}: {len(cells)} cells under {len(header)} "
                "column names; quote a cell that holds the separator"
            )
        line = dict(zip(header, cells, strict=True))
        for name in filled:
            if not line[name]:
                raise CohortError(f"{path}, line {number}: no {name}; fill it in")
        named.append((number, line))
    return header, named


def find_column(
    path: str | os.PathLike,
    header: Sequence[str],
    names: Sequence[str],
    mend: str = "add it",
) -> str:
    """The first of some names that one column has; else a CohortError with `mend`."""
    for name in names:
        if header.count(name) == 1:
            return name
    raise CohortError(
        f"{path}: no column {' or '.join(map(repr, names))} among {header}; {mend}"
    )


def write_table(
    path: str | os.PathLike, header: Sequence[str], lines: Iterable[Sequence]
) -> None:
    """Writes a CSV that `read_table` reads, whole, its formulas escaped."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(map(escape_formula, cells) for cells in lines)


def escape_formula(cell: object) -> object:
    """A cell for a CSV, such that no spreadsheet takes it for a formula.

    Text that begins with = + - @, a tab or a carriage return gets an apostrophe in
    front, which spreadsheets do not show; numbers stay as they are. Carriage returns,
    which Python's csv does not quote, become blanks.
    """
    if not isinstance(cell, str):
        return cell
    is_formula = _FORMULA.match(cell) and not _is_number(cell)
    return ("'" if is_formula else "") + cell.replace("\r", " ")


def unescape_formula(cell: str) -> str:
    """The text of a cell before `escape_formula`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
