"""CAMELYON16, from its folders: 270 training and 129 test slides, tumour or not.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16/clam_sb.py \
        --config.data.root=CAMELYON16

The official test set tests; the validation slides are drawn from the training slides.
With `data.practice` set, a cohort of the same layout is drawn first.
"""

import dataclasses
import pathlib

from experiments.cohort import launch
from experiments.experiment import with_mpp
from experiments.make_cohort import MakeCohort, make_cohort
from wsi_jax.data.camelyon16 import read_camelyon16
from wsi_jax.data.cohort import Cohort, CohortError


@dataclasses.dataclass(kw_only=True)
class Camelyon16:
    """CAMELYON16 or a practice cohort of its layout.

    Attributes:
        root: the folder that holds training/ and testing/, or images/.
        val: share of the training slides that validate.
        seed: of their draw.
        metadata: CSV with each slide's centre; "" for none.
        complete: refuse a folder with slides missing.
        mpp: of level 0 of every slide whose file is not to be believed.
        practice: draw this cohort into `root` first.
        folds: none: the test set is official.
    """

    root: str = ""
    val: float = 0.2
    seed: int = 0
    metadata: str = ""
    complete: bool = True
    mpp: float | None = None
    practice: MakeCohort | None = None
    folds: int = 0

    def cohort(self) -> Cohort:
        """The slides with their splits."""
        if not self.root:
            raise CohortError("no slides; add --config.data.root=FOLDER of CAMELYON16")
        if self.practice:
            make_cohort(dataclasses.replace(self.practice, out=self.root))
        cohort = read_camelyon16(
            pathlib.Path(self.root),
            val=self.val,
            seed=self.seed,
            metadata=self.metadata or None,
            complete=self.complete,
        )
        return with_mpp(cohort, self.mpp)


if __name__ == "__main__":
    launch()
