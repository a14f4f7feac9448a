"""BACH, from its folder: 400 fields of breast tissue in four classes, by folds.

    python -m experiments.bach --config experiments/configs/bach.py:abmil \
        --config.data.root=ICIAR2018_BACH_Challenge \
        --config.encoder.weights=resnet50.safetensors

The labels of the official test set were never public: of five folds each tests once,
and the next one validates. With `data.practice` set, a cohort of the same layout is
drawn first.
"""

import dataclasses
import os

from experiments.phantoms.cohort_folder import practising
from experiments.phantoms.make_bach import PATIENTS, MakeBach, make_bach
from experiments.phantoms.presets import practice_limits
from wsi_jax.commands.config_command_line import launch
from wsi_jax.data.bach import MPP, read_bach
from wsi_jax.data.cohort import Cohort, CohortError
from wsi_jax.data.splits import Split, assign_folds, assign_splits
from wsi_jax.run.config import with_mpp


@dataclasses.dataclass(kw_only=True)
class Bach:
    """BACH or a practice cohort of its layout.

    Attributes:
        root: the folder that holds Photos/, or Photos itself.
        patients: CSV of images and their patients (file, patient), as far as they are
            known; "" makes every image its own, or takes those of the practice cohort.
        folds: folds of the cross-validation, at least 3; 0 draws one split.
        split: its shares, and the seed of either draw.
        complete: refuse a folder with images missing or unlisted.
        mpp: um/px of images whose file does not say; BACH's do not.
        practice: draw this cohort into `root` first.
    """

    root: str = ""
    patients: str = ""
    folds: int = 5
    split: Split = dataclasses.field(default_factory=Split)
    complete: bool = True
    mpp: float = MPP
    practice: MakeBach | None = None

    def cohort(self) -> Cohort:
        """The images, every one with its fold or its split."""
        if not self.root:
            raise CohortError("no images; add --config.data.root=FOLDER of BACH")
        patients = self.patients
        if self.practice:
            with practising():
                make_bach(dataclasses.replace(self.practice, out=self.root))
            patients = patients or os.path.join(self.root, PATIENTS)
        cohort = read_bach(self.root, patients=patients or None, complete=self.complete)
        cohort = with_mpp(cohort, self.mpp)
        if self.folds:
            return assign_folds(cohort, self.folds, self.split.seed)
        return assign_splits(cohort, self.split)

    def limitations(self) -> tuple[str, ...]:
        """What a report says of the slides besides."""
        return practice_limits(self.practice)


if __name__ == "__main__":
    launch()
