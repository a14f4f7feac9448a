"""TCGA-LUAD against TCGA-LUSC: two folders of lung slides, and which is which.

    python -m experiments.tcga_nsclc --config experiments/configs/tcga_nsclc.py \
        --config.data.luad=TCGA-LUAD --config.data.lusc=TCGA-LUSC \
        --config.encoder.weights=resnet50.safetensors

Folds and splits are by patient, spread over the sites. The splits that SASHA's authors
publish are by slide: up to a tenth of the patients are in two parts. They serve to
compare with the published numbers alone, and each patient that leaks is counted:
`--config.data.leaking_split=split_1.json`.
"""

import dataclasses
from collections import defaultdict

from absl import logging

from wsi_jax.commands.config_command_line import launch
from wsi_jax.data.cohort import Cohort, CohortError
from wsi_jax.data.split_files import read_sasha_split
from wsi_jax.data.splits import Split, assign_folds, assign_splits
from wsi_jax.data.tcga import find_tcga, label_slides, parse_barcode
from wsi_jax.run.config import with_mpp

CLASSES = ("LUAD", "LUSC")


@dataclasses.dataclass(kw_only=True)
class TcgaNsclc:
    """Slides of TCGA-LUAD and TCGA-LUSC.

    Attributes:
        luad: searched for slides of TCGA-LUAD, with all folders below it.
        lusc: searched for those of TCGA-LUSC.
        kinds: kinds of slides: DX diagnostic; TS, BS and MS frozen.
        samples: types of sample: 01 primary tumour.
        folds: folds of a cross-validation, at least 3; 0 draws one split.
        split: its shares, and the seed of either draw.
        leaking_split: a JSON of train_names, val_names and test_names by slide; slides
            that it does not name are left out.
        mpp: um/px of level 0 of slides whose file does not say.
    """

    luad: str = ""
    lusc: str = ""
    kinds: tuple[str, ...] = ("DX",)
    samples: tuple[str, ...] = ("01",)
    folds: int = 0
    split: Split = dataclasses.field(default_factory=Split)
    leaking_split: str = ""
    mpp: float | None = None

    def cohort(self) -> Cohort:
        """The slides, every one with its fold or its split."""
        slides, labels = {}, {}
        for label in CLASSES:
            name = label.lower()
            if not getattr(self, name):
                what = f"FOLDER of TCGA-{label}'s slides"
                raise CohortError(f"no cohort; add --config.data.{name}={what}")
            paths = find_tcga(
                getattr(self, name),
                kinds=self.kinds,
                # The command line makes numbers of (1,6).
                samples=tuple(str(sample).zfill(2) for sample in self.samples),
            )
            patients = {parse_barcode(slide).patient for slide in paths}
            if both := sorted(patients & labels.keys()):
                raise CohortError(
                    f"{both[0]} has slides in --config.data.luad and in "
                    "--config.data.lusc; give each project its own folder"
                )
            slides |= paths
            labels |= dict.fromkeys(patients, label)
        cohort = label_slides(slides, labels, CLASSES, "the folders")
        cohort = with_mpp(cohort, self.mpp)
        if self.leaking_split:
            return leaking(cohort, self.leaking_split)
        if self.folds:
            return assign_folds(cohort, self.folds, self.split.seed)
        return assign_splits(cohort, self.split)

    def limitations(self) -> tuple[str, ...]:
        """What a report says of the slides besides."""
        return ()


def leaking(cohort: Cohort, path: str) -> Cohort:
    """The cohort in the parts of a split by slide; tells how many patients leak.

    Each slide counts as a patient, or the cohort would be refused.

    Raises:
        CohortError: the file is no such split.
    """
    split_of = read_sasha_split(path)
    rows = [row for row in cohort.rows if row.slide_id in split_of]
    if missing := len(split_of) - len(rows):
        logging.warning("%s: %d of its slides are not there", path, missing)
    parts = defaultdict(set)
    for row in rows:
        parts[split_of[row.slide_id]].add(row.patient_id)
    pairs = (("train", "test"), ("train", "val"), ("val", "test"))
    counts = [f"{len(parts[a] & parts[b])} in {a} and {b}" for a, b in pairs]
    logging.warning(
        "%s is by slide, not by patient: %s. Metrics on it are too good", path,
        ", ".join(counts),
    )  # fmt: skip
    own = lambda row: dataclasses.replace(
        row, patient_id=row.slide_id, split=split_of[row.slide_id]
    )
    return cohort._replace(rows=tuple(map(own, rows)))


if __name__ == "__main__":
    launch()
