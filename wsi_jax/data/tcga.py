"""TCGA: a folder of its slides and the GDC's clinical table, to a cohort.

    TCGA-2A-A8VL-01Z-00-DX1.2C2BC0B0-....svs
    |    |       |      | kind: DX diagnostic, TS, BS and MS frozen
    |    |       | sample type: 01 primary tumour, 06 metastasis, 11 normal
    |    | site of the tissue source
    | patient: the first 12 characters

Slides may lie in the folders, named by UUID, that `gdc-client` makes.
"""

import enum
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.gdc_gleason import isup, read_gleason
from wsi_jax.data.slide_folder import abbreviate, find_slides, walk, warn_left_out
from wsi_jax.slides.slide_id import slide_id_of

_BARCODE = re.compile(r"(TCGA-(\w\w)-\w{4})-(\d\d)[A-Z]-\d\d-(DX|TS|BS|MS)")


class Grading(enum.Enum):
    """The classes of slides of TCGA-PRAD.

    isup: the ISUP grade group, one of five. Ordered: report the quadratic kappa.
    high_grade: Gleason 8 to 10 (groups 4 and 5) against 6 and 7.
    """

    isup = ("isup_1", "isup_2", "isup_3", "isup_4", "isup_5")
    high_grade = ("low_grade", "high_grade")


class Barcode(NamedTuple):
    """Parts of a slide's name, as "TCGA-2A-A8VL", "2A", "01", "DX"."""

    patient: str
    site: str
    sample: str
    kind: str


def parse_barcode(slide_id: str) -> Barcode | None:
    """The barcode at the start of a slide's name, or None."""
    match = _BARCODE.match(slide_id)
    return Barcode(*match.groups()) if match else None


def read_tcga_prad(
    folder: str | os.PathLike,
    clinical: str | os.PathLike,
    grading: Grading,
    *,
    kinds: Sequence[str] = ("DX",),
    samples: Sequence[str] = ("01",),
) -> Cohort:
    """Prostate slides with the grade of their patient, without a split.

    The folder is searched for slides, with all below it; `clinical` is the GDC's
    clinical.tsv. Other kinds of slides and types of samples are left out with a
    warning.

    CohortError: naming the file and the mend.
    """
    groups = {patient: isup(g) for patient, g in read_gleason(clinical).items()}
    if grading is Grading.isup:
        labels = {patient: grading.value[g - 1] for patient, g in groups.items()}
    else:
        labels = {patient: grading.value[g >= 4] for patient, g in groups.items()}
    slides = find_tcga(folder, kinds=kinds, samples=samples)
    return label_slides(slides, labels, grading.value, os.fspath(clinical))


def find_tcga(
    folder: str | os.PathLike, *, kinds: Sequence[str], samples: Sequence[str]
) -> dict[str, str]:
    """{slide_id: path} of the slides of some kinds and samples; warns of others.

    CohortError: no such folder, no such slide, or two files of one.
    """
    names = {os.path.basename(path) for path in walk(folder, defaultdict(list))}
    names = {slide_id_of(name) for name in names if slide_id_of(name) != name}
    names = sorted(name for name in names if not name.startswith("."))
    barcodes = {name: parse_barcode(name) for name in names}
    warn_left_out(
        "their names are no barcodes", [n for n, code in barcodes.items() if not code]
    )
    barcodes = {name: code for name, code in barcodes.items() if code}
    wanted = [n for n, c in barcodes.items() if c.kind in kinds and c.sample in samples]
    which = f"{' or '.join(kinds)} of sample type {' or '.join(samples)}"
    warn_left_out(f"they are not {which}", sorted(set(barcodes) - set(wanted)))
    slides = find_slides(folder, wanted)
    if not slides:
        raise CohortError(
            f"{folder}: no slide of TCGA that is {which}; mend the path, or ask "
            "for others with --config.data.kinds and --config.data.samples"
        )
    return {name: slides[name] for name in wanted}


def label_slides(
    slides: Mapping[str, str],
    labels: Mapping[str, str],
    classes: Sequence[str],
    source: str,
) -> Cohort:
    """A cohort of the slides {slide_id: path} whose patient has a label; others are
    left out. `source` is the labels' file, for messages."""
    rows, bare = [], []
    for slide_id, path in slides.items():
        code = parse_barcode(slide_id)
        label = labels.get(code.patient)
        if label is None:
            bare.append(slide_id)
            continue
        rows.append(Row(slide_id, path, label, code.patient, "", site=code.site))
    if not rows:
        raise CohortError(
            f"{source}: it grades no patient of the {len(slides)} slides, "
            f"{abbreviate(bare)}; take the clinical.tsv of their project"
        )
    warn_left_out(f"{source} does not grade their patients", bare)
    return Cohort(tuple(rows), tuple(classes))
