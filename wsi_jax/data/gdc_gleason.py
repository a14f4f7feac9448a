"""Gleason grades of prostate cancer from the GDC's clinical table."""

import os
import re
from collections import defaultdict
from typing import NamedTuple

from absl import logging

from wsi_jax.data.csv_table import CohortError, find_column, read_table
from wsi_jax.data.slide_folder import abbreviate

_PATTERN = re.compile(r"(?:pattern )?([1-5])", re.IGNORECASE)
_MISSING = ("", "'--", "--", "not reported", "unknown", "not applicable")
_MEND = "give the clinical.tsv of the GDC"
_CASE = ("case_submitter_id", "cases.submitter_id", "submitter_id")
_GRADES = ("primary_gleason_grade", "secondary_gleason_grade")


class Gleason(NamedTuple):
    """The two commonest patterns of growth, 1 to 5 each."""

    primary: int
    secondary: int


def isup(gleason: Gleason) -> int:
    """The ISUP grade group, 1 to 5, of a Gleason score (Epstein et al. 2016)."""
    score = sum(gleason)
    if score == 7:
        return 2 if gleason.primary <= 3 else 3
    return 1 if score < 7 else 4 if score == 8 else 5


def read_gleason(path: str | os.PathLike) -> dict[str, Gleason]:
    """{patient: Gleason} of a clinical.tsv of the GDC, with plain or dotted columns.

    A case has a line for each diagnosis and treatment; those without a grade, and of a
    disease that is not the primary one, are passed over. A patient with two different
    grades has none, with a warning. CohortError: no such column, or no such grade.
    """
    header, lines = read_table(path)
    case = find_column(path, header, _CASE, _MEND)
    grades = [
        find_column(path, header, (f"diagnoses.{name}", name), _MEND)
        for name in _GRADES
    ]
    primary = [n for n in header if n.endswith("diagnosis_is_primary_disease")]
    grades_of = defaultdict(set)
    for number, cells in lines:
        values = [cells[name] for name in grades]
        if any(cells[name].casefold() in ("false", "no") for name in primary):
            continue
        if any(value.casefold() in _MISSING for value in values):
            continue
        patterns = [_PATTERN.fullmatch(value) for value in values]
        if not all(patterns):
            raise CohortError(
                f"{path}, line {number}: Gleason grades {values}; write Pattern 1 to "
                "Pattern 5, or '-- where there is none"
            )
        gleason = Gleason(*(int(match[1]) for match in patterns))
        grades_of[cells[case]].add(gleason)
    unclear = [patient for patient, several in grades_of.items() if len(several) > 1]
    if unclear:
        logging.warning(
            "%s: %d patients have two grades, so none: %s",
            *(path, len(unclear), abbreviate(unclear)),
        )
    return {patient: one for patient, (one, *more) in grades_of.items() if not more}
