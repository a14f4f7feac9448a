"""Public cohorts by the names of their slides, and which an encoder may have seen."""

import re
from collections.abc import Sequence

from wsi_jax.data.cohort import Cohort, in_split
from wsi_jax.data.slide_folder import abbreviate
from wsi_jax.slides.slide_id import slide_id_of

# Names of slides: TCGA-2A-A8VL-01Z-00-DX1, C3L-00004-21 or 11LU013, GTEX-1117F-0126,
# normal_001 or test_001, patient_004_node_4, and PANDA's 32 hexadecimal digits.
PATTERNS = {
    "TCGA": r"TCGA-\w{2}-\w{4}",
    "CPTAC": r"C3[LN]-\d{5}|\d\d(BR|CO|LU|OV)\d{3}",
    "GTEx": r"GTEX-\w{4,5}",
    "CAMELYON16": r"(normal|tumor|test)_\d{3}$",
    "CAMELYON17": r"patient_\d{3}_node_\d$",
    "PANDA": r"[0-9a-f]{32}$",
}


def guess_public_cohort(*names: str) -> str:
    """The cohort that the names of a slide point to; "" where they match none."""
    for cohort, pattern in PATTERNS.items():
        if any(re.match(pattern, name, re.IGNORECASE) for name in names):
            return cohort
    return ""


def pretraining_note(cohort: Cohort, pretrained_on: Sequence[str]) -> str:
    """Which test slides an encoder may have seen before; "" where none is known to be.

    Args:
        cohort: with its splits.
        pretrained_on: cohorts that the encoder has learnt from.
    """
    by_cohort: dict[str, list[str]] = {}
    rows = in_split(cohort, "test").rows
    for row in rows:
        own = guess_public_cohort(row.slide_id, slide_id_of(row.path))
        if own.casefold() in {name.casefold() for name in pretrained_on}:
            by_cohort.setdefault(own, []).append(row.slide_id)
    return "; ".join(
        f"{len(names)} of {len(rows)} test slides seem to be of {name}, which the "
        f"encoder has learnt from ({abbreviate(names)}): their numbers may flatter it"
        for name, names in by_cohort.items()
    )
