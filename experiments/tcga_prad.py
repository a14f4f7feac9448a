"""TCGA-PRAD, from the GDC's files: prostate slides and the Gleason grade of each man.

    python -m experiments.tcga_prad --config experiments/configs/tcga_prad.py:abmil \
        --config.data.root=TCGA-PRAD --config.data.clinical=clinical.tsv \
        --config.encoder.weights=resnet50.safetensors

Folds and splits are by patient, spread over the sites. A grade is the patient's, from
the report on the whole prostate: a slide need not show it.
"""

import dataclasses

from wsi_jax.commands.config_command_line import launch
from wsi_jax.data.cohort import Cohort, CohortError
from wsi_jax.data.splits import Split, assign_folds, assign_splits
from wsi_jax.data.tcga import Grading, read_tcga_prad
from wsi_jax.run.config import with_mpp


@dataclasses.dataclass(kw_only=True)
class TcgaPrad:
    """Slides of TCGA-PRAD; those without a grade are left out and named in the log.

    Attributes:
        root: searched for slides, with all folders below it.
        clinical: the GDC's clinical.tsv.
        grading: isup, five grade groups; or high_grade, Gleason 8 to 10 or less.
        kinds: kinds of slides: DX diagnostic; TS, BS and MS frozen.
        samples: types of sample: 01 primary tumour.
        folds: folds of a cross-validation, at least 3; 0 draws one split.
        split: its shares, and the seed of either draw.
        mpp: um/px of level 0 of slides whose file does not say.
    """

    root: str = ""
    clinical: str = ""
    grading: Grading = Grading.isup
    kinds: tuple[str, ...] = ("DX",)
    samples: tuple[str, ...] = ("01",)
    folds: int = 5
    split: Split = dataclasses.field(default_factory=Split)
    mpp: float | None = None

    def cohort(self) -> Cohort:
        """The slides, every one with its fold or its split."""
        for name in ("root", "clinical"):
            if not getattr(self, name):
                what = "FOLDER of slides" if name == "root" else "clinical.tsv"
                raise CohortError(f"no cohort; add --config.data.{name}={what}")
        cohort = read_tcga_prad(
            self.root,
            self.clinical,
            self.grading,
            kinds=self.kinds,
            # The command line makes numbers of (1,6).
            samples=tuple(str(sample).zfill(2) for sample in self.samples),
        )
        cohort = with_mpp(cohort, self.mpp)
        if self.folds:
            return assign_folds(cohort, self.folds, self.split.seed)
        return assign_splits(cohort, self.split)

    def limitations(self) -> tuple[str, ...]:
        """What a report says of the slides besides."""
        return ()


if __name__ == "__main__":
    launch()
