"""What every input does: batches for training, one slide for a prediction."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.tiling import TiledSlide, Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import Slide
from wsi_jax.training.compile import compile_method
from wsi_jax.training.loop import Train
from wsi_jax.types import Bag, Compiled, Method, Stage, Task


class TilePositions(NamedTuple):
    """The tiles of a slide that have attention.

    Attributes:
        yx: corners [n 2], level-0 pixels, in the order of the attention.
        size_px: side, in pixels at mpp.
        mpp: um/px.
    """

    yx: np.ndarray
    size_px: int
    mpp: float


class LoadedSlide(NamedTuple):
    """One slide as a batch, to be predicted.

    Attributes:
        bag: the batch, with this slide alone.
        kept: indices of the slide's tiles that are in it.
        note: what of the slide could not be read, or "".
        streamed: the slide, where the method reads it itself; else None.
    """

    bag: Bag
    kept: np.ndarray
    note: str = ""
    streamed: StreamedSlide | None = None


class Input(abc.ABC):
    """Where the batches of a kind of method come from; each kind is a subclass.

    Class methods answer what a config (`run.config.Experiment`) says already. An
    instance reads: batches of a cohort, if it was made `from_config`, or one slide.

    Attributes:
        description: what methods of this kind do, in words.
        mpp_field: the field of a config that sets the um/px at which they see slides.
        method: config of the method.
        tiling: grid, tissue and encoder.
        mesh: devices over which batches are split.
        encoder_mesh: devices over which tiles are split to be encoded.
        dim: features of a tile; 0 for slides.
    """

    description: ClassVar[str]
    mpp_field: ClassVar[str] = "grid.mpp"

    def __init__(self, method: Any, tiling: Tiling, mesh: Mesh, config: Any = None):
        """Reads nothing yet; `config` is the experiment, None to predict only."""
        self.method, self.tiling, self.dim = method, tiling, 0
        self.mesh = self.encoder_mesh = mesh
        self._config, self._compiled = config, {}

    def compiled(self, method: Method) -> Compiled:
        """A method compiled once: training, validation, test and folds share it."""
        if id(method) not in self._compiled:  # some have parts without a hash
            spread = bool(self._config) and self._config.cluster.spread
            compiled = compile_method(method, self.mesh, self.read_crops, spread)
            self._compiled[id(method)] = compiled, method
        return self._compiled[id(method)][0]

    @classmethod
    @abc.abstractmethod
    def check(cls, config: Any) -> None:
        """Raises ValueError for what methods of this kind cannot do."""

    @classmethod
    def mpps(cls, method: Any, grid: Grid) -> tuple[float, ...]:
        """The um/px at which a method sees slides, the finest first."""
        del method
        return (grid.mpp,)

    @classmethod
    @abc.abstractmethod
    def tiling_config(cls, config: Any) -> Tiling:
        """Grid, tissue and encoder; the encoder of a method with a trunk is that."""

    @classmethod
    @abc.abstractmethod
    def tilings(cls, config: Any) -> tuple[Tiling, ...]:
        """The tilings whose features are extracted before training."""

    @classmethod
    def stages(
        cls, method: Any, grid: Grid, task: Task, tx: optax.GradientTransformation
    ) -> tuple[Stage, ...]:
        """The stages of a method."""
        del grid
        return method.stages(task, tx)

    @classmethod
    @abc.abstractmethod
    def subtitle(cls, config: Any) -> str:
        """What a run learns from, in a sentence."""

    @classmethod
    def from_config(cls, config: Any, mesh: Mesh, *slides: Any) -> "Input":
        """The input of a run; `slides` as the constructor takes them."""
        return cls(config.method, cls.tiling_config(config), mesh, config, *slides)

    @abc.abstractmethod
    def template(self, dim: int) -> Bag:
        """A batch of one tile, for its shapes; `dim` features to a tile."""

    @abc.abstractmethod
    def one(
        self, slide: TiledSlide, encode_batch: int, reading: Reading, meter: Meter
    ) -> LoadedSlide:
        """One slide, ready for a prediction.

        Args:
            slide: with its tiles.
            encode_batch: tiles encoded at a time.
            reading: threads and buffers.
            meter: is charged.

        Raises:
            SlideError: too much of it cannot be read.
        """

    def finish(self, loaded: LoadedSlide, reading: Reading, meter: Meter) -> str:
        """What of a slide could not be read, once it is predicted.

        Raises:
            SlideError: too much of it.
        """
        del reading, meter
        return loaded.note

    def tiles_read(self, n: int, zooms: int | None = None) -> int:
        """Tiles that a prediction has read of a slide with n, after some zooms."""
        del zooms
        return n

    @abc.abstractmethod
    def training_batches(
        self, part: Cohort, plan: Train, start: int, weights: np.ndarray | None = None
    ) -> Iterator[Bag]:
        """Batches without end, in host memory.

        Args:
            part: slides to learn from.
            plan: of the stage: seed, size of a batch, balance.
            start: step of the first batch.
            weights: each slide's weight in the loss; None for 1.
        """

    @abc.abstractmethod
    def evaluation_batches(self, part: Cohort) -> Iterator[tuple[Bag, list[int]]]:
        """Every slide once, in order; and how many tiles each has."""

    @abc.abstractmethod
    def put(self, batch: Bag) -> Bag:
        """Moves a batch to where the method wants it."""

    @abc.abstractmethod
    def positions(self, row: Row, slide: Slide) -> TilePositions:
        """Where the tiles of a slide are."""

    def read_crops(
        self,
        slides: np.ndarray,
        magnification: np.ndarray,
        yx: np.ndarray,
        mask: np.ndarray,
    ) -> Any:
        """A future of crops of slides in a batch; see `training.compile`.

        Args:
            slides: numbers [b] of the slides.
            magnification: index [b n] of each crop's magnification.
            yx: corners [b n 2], in pixels of the magnification.
            mask: [b n], False where none is read.
        """
        raise TypeError(f"{type(self).__name__} has no crops")

    @abc.abstractmethod
    def fingerprints(self, part: Cohort) -> dict[str, str]:
        """A hash of what each slide gives to learn from, by slide."""

    def describe_memory(self, stages: Sequence[Stage], part: Cohort) -> list[str]:
        """What training takes of the device, in words; [] where nothing is known.

        Raises:
            ValueError: the device has too little memory.
        """
        del stages, part
        return []

    def work(self) -> dict[str, int]:
        """`tiles` and `bytes_decoded` that training has read so far.

        What is kept in memory is read once; a process that resumes reads it anew, and
        that counts.
        """
        return {}

    def slides_read(self) -> list[str]:
        """Names of the slides that training has read so far."""
        return []

    @abc.abstractmethod
    def free_memory(self) -> None:
        """Frees what is kept in memory, at the end of a training."""

    def notes(self) -> dict[str, str]:
        """What training could not read, by slide."""
        return {}
