"""Patients by the barcodes with which TCGA and CPTAC name their slides.

TCGA-2A-A8VL-01Z-00-DX1.2C2B....svs   TCGA-2A-A8VL
C3L-00004-21.svs, C3N-01362-21.svs    C3L-00004, C3N-01362
11LU013-..., 01BR001-...              CPTAC's earlier numbers: lung, breast,
                                      colon (CO), ovary (OV)
"""

import re

_PATIENT = re.compile(
    r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|C3[LN]-\d{5}|\d\d(?:BR|CO|LU|OV)\d{3})"
    r"(?![A-Z0-9])",
    re.IGNORECASE,
)


def barcode_patient(*names: str) -> str:
    """The patient of the first name that begins with a barcode; "" where none does."""
    matches = filter(None, map(_PATIENT.match, names))
    return next((match[1].upper() for match in matches), "")
