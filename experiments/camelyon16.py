"""CAMELYON16, from its folders: 270 training and 129 test slides, tumour or not.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16.py:clam_sb \
        --config.data.root=CAMELYON16 --config.encoder.weights=resnet50.safetensors

The official test set tests; the validation slides are drawn from the training slides.
With `data.practice` set, a cohort of the same layout is drawn first.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from experiments.phantoms.cohort_folder import practising
from experiments.phantoms.make_cohort import MakeCohort, make_cohort
from experiments.phantoms.presets import LAWS, practice_limits
from wsi_jax.commands.config_command_line import launch
from wsi_jax.data.camelyon16 import CLASSES, read_camelyon16
from wsi_jax.data.cohort import Cohort, CohortError
from wsi_jax.data.tool_manifests import Slides, from_streaming_clam
from wsi_jax.run.config import with_mpp


@dataclasses.dataclass(kw_only=True)
class Camelyon16:
    """CAMELYON16 or a practice cohort of its layout.

    Attributes:
        root: the folder that holds training/ and testing/, or images/.
        val: share of the training slides that validate.
        seed: seed of their draw.
        metadata: CSV with each slide's centre; "" for none.
        complete: refuse a folder with slides missing.
        mpp: um/px of level 0 of slides whose file does not say.
        splits: folder of StreamingCLAM's train_0.csv, val_0.csv and test.csv: their
            slides only, split so; "" to draw the validation slides.
        practice: draw this cohort into `root` first.
        folds: none: the test set is official.
    """

    root: str = ""
    val: float = 0.2
    seed: int = 0
    metadata: str = ""
    complete: bool = True
    mpp: float | None = None
    splits: str = ""
    practice: MakeCohort | None = None
    folds: int = 0

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"val": (0, 1)}

    def cohort(self) -> Cohort:
        """The slides with their splits."""
        if not self.root:
            raise CohortError("no slides; add --config.data.root=FOLDER of CAMELYON16")
        if self.practice:
            check_practice(self.practice)
            with practising():
                make_cohort(dataclasses.replace(self.practice, out=self.root))
        cohort = read_camelyon16(
            pathlib.Path(self.root),
            val=self.val,
            seed=self.seed,
            metadata=self.metadata or None,
            complete=self.complete,
        )
        if self.splits:
            cohort = published(cohort, pathlib.Path(self.splits), self.root)
        return with_mpp(cohort, self.mpp)

    def limitations(self) -> tuple[str, ...]:
        """What a report says of the slides besides."""
        return practice_limits(self.practice)


def published(cohort: Cohort, folder: pathlib.Path, root: str) -> Cohort:
    """The slides of three CSVs, split as they are.

    Raises:
        CohortError: a CSV or a slide of it is not there.
    """
    tables = [folder / name for name in ("train_0.csv", "val_0.csv", "test.csv")]
    named = from_streaming_clam(*tables, Slides(folder=root))
    by_name = {row.slide_id: row for row in cohort.rows}
    rows = []
    for row in named.rows:
        if row.slide_id not in by_name:
            raise CohortError(
                f"{folder}: {row.slide_id} is no slide of CAMELYON16 in {root}"
            )
        rows.append(dataclasses.replace(by_name[row.slide_id], split=row.split))
    return cohort._replace(rows=tuple(rows))


def check_practice(config: MakeCohort) -> None:
    """Refuses a cohort of other classes than CAMELYON16's, before it is drawn."""
    name, n = config.preset.value, LAWS[config.preset].n_classes
    if n != len(CLASSES):
        raise CohortError(
            f"--config.data.practice.preset={name} has {n} classes, CAMELYON16 has "
            f"{' and '.join(CLASSES)}; draw it with `python -m "
            "experiments.phantoms.make_cohort --config experiments/configs/practice.py "
            f"--config.preset={name} "
            "--config.out=FOLDER` and run `python -m experiments.cohort --config "
            "wsi_jax/configs/quick.py "
            "--config.data.manifest=FOLDER/slides.csv`"
        )


if __name__ == "__main__":
    launch()
