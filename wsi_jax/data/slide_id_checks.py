"""Slide ids: which may name files, and the patients in TCGA's and CPTAC's barcodes.

TCGA-2A-A8VL-01Z-00-DX1.2C2B....svs   TCGA-2A-A8VL
C3L-00004-21.svs, C3N-01362-21.svs    C3L-00004, C3N-01362
11LU013-..., 01BR001-...              CPTAC's earlier numbers: lung, breast,
                                      colon (CO), ovary (OV)
"""

import re

from wsi_jax.data.csv_table import CohortError

MAX_ID_BYTES = 200  # with what is appended, a name that every file system takes
_FORBIDDEN = frozenset('/\\<>:"|?*')
_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10)
}
_PATIENT = re.compile(
    r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|C3[LN]-\d{5}|\d\d(?:BR|CO|LU|OV)\d{3})"
    r"(?![A-Z0-9])",
    re.IGNORECASE,
)


def barcode_patient(*names: str) -> str:
    """The patient of the first name that begins with a barcode; "" where none does."""
    matches = filter(None, map(_PATIENT.match, names))
    return next((match[1].upper() for match in matches), "")


def id_fault(slide_id: str) -> str:
    """Why a slide's id cannot name files on every file system, or ""."""
    if not slide_id.isprintable():
        return "it holds a character that cannot be printed"
    if forbidden := sorted(_FORBIDDEN & set(slide_id)):
        return f"no {' '.join(forbidden)} may be in it"
    if slide_id.startswith(".") or slide_id.endswith("."):
        return "it begins or ends with a dot"
    if slide_id.split(".")[0].casefold() in _DEVICES:
        return "Windows keeps it for a device"
    if (size := len(slide_id.encode())) > MAX_ID_BYTES:
        return f"it has {size} bytes, more than {MAX_ID_BYTES}"
    return ""


def check_id(slide_id: str, where: str) -> None:
    """Refuses an id that cannot name files; `where` is for the error."""
    if fault := id_fault(slide_id):
        shown = slide_id if len(slide_id) <= 60 else f"{slide_id[:60]}..."
        raise CohortError(
            f"{where}: slide_id {shown!r} names files, and {fault}; write another in "
            "column 'slide_id' (and the file in column 'path')"
        )
