"""What an experiment is made of, and the folder that remembers it."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import optax

from wsi_jax import config_fields
from wsi_jax.config_fields import COUNT
from wsi_jax.data.bags import Loading
from wsi_jax.data.cohort import Cohort, CohortError, Row, patient_of, read_manifest
from wsi_jax.data.slide_folder import find_slides
from wsi_jax.data.splits import Split, assign_folds, assign_splits
from wsi_jax.data.tile_batches import Reading
from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.run.executor import Executor
from wsi_jax.run.inputs import Input, input_of
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import has_mpp
from wsi_jax.slides.tissue import Tissue
from wsi_jax.training.loop import Train
from wsi_jax.training.processes import Cluster
from wsi_jax.types import Stage, Task


@dataclasses.dataclass(kw_only=True)
class Manifest:
    """Slides and labels from a CSV.

    Attributes:
        manifest: the CSV: path, label, and if you like slide_id, patient_id, split,
            mpp, site, mask_path, annotation_path. To extract features a folder of
            slides will do, and so will a CSV without labels.
        classes: labels in the order wanted, of two the positive one last; () sorts.
        mpp: um/px of level 0 of slides for which neither manifest nor file has one.
        split: shares of the splits that the manifest leaves open.
        folds: folds of a cross-validation over all slides not "test"; 0 for none.
    """

    manifest: str = ""
    classes: tuple[str, ...] = ()
    mpp: float | None = None
    split: Split = dataclasses.field(default_factory=Split)
    folds: int = 0

    def cohort(self) -> Cohort:
        """The slides, every one with its split or its fold."""
        self._check_named()
        # The command line makes numbers of (0,1) and one name of normal,tumor.
        classes = tuple(map(str, self.classes))
        if len(classes) == 1:
            classes = tuple(name.strip() for name in classes[0].split(","))
        cohort = with_mpp(read_manifest(self.manifest, classes), self.mpp)
        if self.folds:
            return assign_folds(cohort, self.folds, self.split.seed)
        return assign_splits(cohort, self.split)

    def slides(self, part: slice = slice(None)) -> tuple[Row, ...]:
        """The slides alone, or a part of them; labels and splits are not asked for."""
        if os.path.isdir(self.manifest):
            slides = sorted(find_slides(self.manifest).items())
            if not slides:
                raise CohortError(f"{self.manifest}: no slide anywhere below it")
            rows = tuple(
                Row(name, path, "", patient_of("", name, "", path), "")
                for name, path in slides
            )
        else:
            self._check_named()
            rows = read_manifest(self.manifest, labelled=False).rows
        return with_mpp(Cohort(rows[part], ()), self.mpp).rows

    def limitations(self) -> tuple[str, ...]:
        """What a report says of the slides besides."""
        return ()

    def _check_named(self):
        if not self.manifest:
            raise CohortError("no cohort; add --config.data.manifest=my_slides.csv")


@dataclasses.dataclass(kw_only=True, repr=False)
class Experiment:
    """Everything that decides a run. A method is exchanged in the config file.

    Attributes:
        run_dir: folder of the run, gs://BUCKET/NAME too; "" for runs/<name of the
            config file>.
        features: folder of feature files on a disk, for runs to share; "" for the
            run's own.
        precomputed: folder of SLIDE_ID.h5 made by CLAM, TRIDENT or another run: no
            slide is read, and grid, tissue and encoder are not asked; "" for none.
        data: the cohort.
        grid: tiles, in um/px and pixels.
        tissue: what counts as tissue, and what as background.
        encoder: frozen encoder of tiles; None for a method with a trunk of its own.
        method: what is trained on slide labels.
        train: how long, and by which optimiser, it is trained.
        reading: threads that read tiles.
        loading: how features are loaded as bags.
        encode_batch: tiles encoded at a time.
        executor: who extracts features: threads of this process, or Dask's workers.
        scheduler: Dask's scheduler, as tcp://HOST:8786; for executor=dask.
        cluster: the processes of a run on several machines.
        shard: i/n, to extract features of every n-th slide from the i-th on, counted
            from 0; auto for the part of a task of a job array, auto/n of n parts.
        max_refused: share of slides that may be refused before the run stops.
        heatmaps: test slides whose attention is drawn.
    """

    run_dir: str = ""
    features: str = ""
    precomputed: str = ""
    data: Any = dataclasses.field(default_factory=Manifest)
    grid: Grid = dataclasses.field(default_factory=Grid)
    tissue: Tissue = dataclasses.field(default_factory=Tissue)
    encoder: Any = dataclasses.field(default_factory=Encoder)
    method: Any = dataclasses.field(default_factory=ABMIL)
    train: Train = dataclasses.field(default_factory=Train)
    reading: Reading = dataclasses.field(default_factory=Reading)
    loading: Loading = dataclasses.field(default_factory=Loading)
    encode_batch: int = 64
    executor: Executor = Executor.threads
    scheduler: str = ""
    cluster: Cluster = dataclasses.field(default_factory=Cluster)
    shard: str = ""
    max_refused: float = 0.1
    heatmaps: int = 12

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "encode_batch": COUNT,
        "max_refused": (0, 1),
    }

    def __repr__(self):
        """The fields that are not as by default, a line each."""
        plain, usual = (
            config_fields.flatten(config_fields.to_plain(one), types=True)
            for one in (self, Experiment())
        )
        absent = object()
        lines = [
            f"  {name} = {value!r}"
            for name, value in plain.items()
            if name and usual.get(name, absent) != value
        ]
        return "\n".join([f"Experiment({type(self.method).__name__}), with", *lines])

    @property
    def trunk(self) -> Trunk:
        """What sees the pixels."""
        return self.encoder or self.method.trunk

    @property
    def trunks(self) -> dict[str, Trunk]:
        """All that see pixels, by their flags."""
        if self.encoder is not None:
            return {"encoder": self.encoder}
        fields = {
            f.name: getattr(self.method, f.name)
            for f in dataclasses.fields(self.method)
        }
        return {f"method.{k}": v for k, v in fields.items() if isinstance(v, Trunk)}

    @property
    def input(self) -> type[Input]:
        """The kind of input that the method takes."""
        return input_of(self.method)

    @property
    def mpps(self) -> tuple[float, ...]:
        """um/px at which the trunk sees slides."""
        return self.input.mpps(self.method, self.grid)

    def tiling(self) -> Tiling:
        """Grid, tissue and encoder; of a method with a trunk, once it is trained."""
        return self.input.tiling_config(self)

    def tilings(self) -> tuple[Tiling, ...]:
        """The tilings whose features are extracted before training."""
        return self.input.tilings(self)

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage, ...]:
        """The stages of the method."""
        return self.input.stages(self.method, self.grid, task, tx)

    def stage_train(self, stage: Stage) -> Train:
        """How a stage is trained."""
        return dataclasses.replace(self.train, **stage.overrides)

    def pretrained_on(self) -> tuple[str, ...]:
        """Cohorts that weights of others have learnt from."""
        trunks = () if self.precomputed else self.trunks.values()
        return tuple(name for trunk in trunks for name in trunk.pretrained_on)

    def validate(self) -> None:
        """Refuses weights that are not there or not for these tiles, and cells."""
        self._check_kinds()
        self._check_thaw()
        self.input.check(self)
        if self.precomputed:
            return
        if self.executor is Executor.dask and not self.tilings():
            raise RunError("--config.executor=dask: no features are made")
        if self.executor is Executor.dask and not self.scheduler:
            raise RunError(
                "--config.executor=dask: add --config.scheduler=tcp://HOST:8786"
            )
        for trunk in self.trunks.values():
            self._check_mpp(trunk)

    def check_trunks(self) -> None:
        """Refuses weights that are not there, and tiles that an encoder cannot take."""
        try:
            for flag, trunk in self.trunks.items():
                trunk.check(flag)
            if self.encoder is not None:
                self.encoder.check_tile("grid.size_px", self.grid.size_px)
        except ValueError as error:
            raise RunError(str(error)) from error

    def _check_kinds(self):
        """Refuses what stands where a cohort, a method or an encoder should."""
        wanted = {
            "data": ("cohort", "Manifest() of wsi_jax.run.config"),
            "method": ("takes", "ABMIL() of wsi_jax.methods.mil"),
            "encoder": ("make", "Encoder() of wsi_jax.nets.conv_encoder"),
        }
        for name, (attribute, example) in wanted.items():
            value = getattr(self, name)
            none = name == "encoder" and value is None
            if not none and not (
                config_fields.is_config(value) and hasattr(value, attribute)
            ):
                raise RunError(
                    f"--config.{name}={value!r}: give an object in the config file, as "
                    f"{name}={example}; wsi_jax/configs has a file for each method"
                )

    def _check_thaw(self):
        """Refuses a training that ends before all of it is trained."""
        thaw = getattr(self.method, "thaw", None)
        if thaw and thaw.frozen >= self.train.steps:
            raise RunError(
                f"--config.train.steps={self.train.steps} end before "
                f"--config.method.thaw.frozen={thaw.frozen}, when a part begins to "
                "learn that is frozen until then; raise the one or lower the other"
            )

    def _check_mpp(self, trunk: Trunk):
        """Refuses a trunk whose weights have learnt from tiles at another um/px."""
        trained = trunk.trained_mpp()
        if trained and all(abs(trained / mpp - 1) > 0.05 for mpp in self.mpps):
            field, mpps = (
                self.input.mpp_field,
                ", ".join(f"{mpp:g}" for mpp in self.mpps),
            )
            raise RunError(
                f"{trunk.weights} has learnt from tiles at {trained:g} um/px, and "
                f"--config.{field}={mpps}; set it to {trained:g}, or train an encoder "
                "for this one (experiments.pretraining.pretrain_tiles)"
            )


def with_mpp(cohort: Cohort, mpp: float | None) -> Cohort:
    """The cohort with `mpp` for the slides that have none, in manifest or file."""
    if mpp is None:
        return cohort

    def filled(row):
        has_own = row.mpp or not os.path.exists(row.path) or has_mpp(row.path)
        return row if has_own else dataclasses.replace(row, mpp=mpp)

    return cohort._replace(rows=tuple(map(filled, cohort.rows)))
