"""What passes between the floors: batches, states, predictions, methods.

Shape letters, throughout the package: b slides, n tiles, k crops, t looks, h w pixels
or cells, 3 RGB, d features, c classes, a actions.
"""

import enum
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

Params = Any


class Dtype(enum.Enum):
    """Type of matmuls and convolutions; softmax, losses and norms have >= float32."""

    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class Task(NamedTuple):
    """What is learnt of a slide: which of some classes it belongs to.

    Attributes:
        classes: their names. Of two, the second is positive.
    """

    classes: tuple[str, ...]

    def targets(self, rows: Iterable[Any]) -> np.ndarray:
        """The targets of slides [b], from their rows of a manifest: class indices."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[row.label] for row in rows], np.int32)


class Bag(NamedTuple):
    """The tiles of `b` slides, padded to one length.

    Attributes:
        x: features [b n d], or whatever a method's first line takes.
        mask: [b n], True where there is a tile.
        target: [b ...], what is to be predicted of each slide, as `Task.targets` makes
            it: the index of its class.
        weight: [b], weight of the slide in the loss, above 0; 0 for a slide that only
            fills the batch.
    """

    x: Array
    mask: Array
    target: Array
    weight: Array


class TwoLevelFeatures(NamedTuple):
    """Features of the tiles of `b` slides at two resolutions.

    Attributes:
        low: [b n d], features of the tiles.
        high: [b n k d], features of the k children that fill each tile, at high
            resolution; or [b n d], one vector a tile that a stage has distilled.
    """

    low: Array
    high: Array


class Overviews(NamedTuple):
    """Overviews of `b` slides, for methods that select which crops to read.

    Attributes:
        overview: [b h w 3], uint8; `mask` of its Bag are its cells [b y x].
        background: [b 3], uint8, the colour of what lies off the slides.
        planes: the slides at each magnification [b H W 3], where they lie on the
            device; () where crops are read from the slides.
        slide: [b] int32, numbers by which a reader knows the slides, -1 for none; ()
            where there are planes.
    """

    overview: Array
    background: Array
    planes: tuple[Array, ...] = ()
    slide: Any = ()


def bucket(n: int, smallest: int) -> int:
    """The padded length of n tiles: the least smallest * 2**i that holds them."""
    return smallest << max(0, -(-n // smallest) - 1).bit_length()


def padded(n: int, least: int) -> int:
    """n rounded up, by a quarter of itself at most: few lengths, and little waste."""
    step = max(least, 1 << max(0, n.bit_length() - 3))
    return -(-n // step) * step


class Prediction(NamedTuple):
    """What a method predicts for `b` slides.

    Attributes:
        logits: [b c].
        attention: [b n], non-negative, summing to 1 over a slide's tiles.
        counts: cost of each slide [b]: `tiles` read, `flops` of the method itself.
        trace: what a report shows of the method (crops, a zoom path), or None.
    """

    logits: Array
    attention: Array
    counts: dict[str, Array]
    trace: Any = None


class TrainState(NamedTuple):
    """All that a training step changes, and the key it never changes.

    Attributes:
        step: int32, steps taken.
        params: parameters of the networks.
        opt: state of the optimiser.
        key: typed; step `i` uses `fold_in(key, i)`.
    """

    step: Array
    params: Params
    opt: Any
    key: Array


class Method(NamedTuple):
    """A learner on slides: three pure functions, not yet compiled.

    Attributes:
        init: (key, batch) -> state.
        step: (state, batch) -> (state, metrics).
        predict: (params, batch, key) -> Prediction.
        driver: (read, mesh, spread) -> `Compiled`, as `training.compile.compile_method`
            has them, for methods that leave the device in between. `init` is then good
            for shapes alone, and the other two are None. `read` is for those that read
            what they select: it takes slide numbers [b], magnifications [b n], corners
            [b n 2] and a mask [b n], and gives a future of the crops [b n s s 3].
    """

    init: Callable
    step: Callable
    predict: Callable
    driver: Callable | None = None

    def steps(self, state, batches: Iterable) -> Iterator[tuple]:
        """(state, metrics) after each batch; the state given is donated."""
        for batch in batches:
            state, metrics = self.step(state, batch)
            yield state, metrics

    def predictions(self, params, batches: Iterable, key) -> Iterator[Prediction]:
        """The prediction on each batch."""
        for batch in batches:
            yield self.predict(params, batch, key)


@runtime_checkable
class Compiled(Protocol):
    """What trains and predicts: a compiled `Method`, or the driver of one."""

    def init(self, key: Array, batch: Bag) -> TrainState:
        """The initial state."""

    def steps(self, state: TrainState, batches: Iterable[Bag]) -> Iterator[tuple]:
        """(state, metrics) after each batch; the state given is donated."""

    def predict(self, params: Params, batch: Bag, key: Array) -> Prediction:
        """The prediction on a batch."""

    def predictions(
        self, params: Params, batches: Iterable[Bag], key: Array
    ) -> Iterator[Prediction]:
        """The prediction on each batch; those to come may be read ahead."""


class Rounds(NamedTuple):
    """Prediction in rounds, where what is read next depends on what was read before.

    Attributes:
        begin: (params, features of tiles [b n d], mask [b n]) -> carry.
        request: (params, carry) -> (tiles [b k], mask [b k]). The children of the first
            tile are read, those of the others are likely to be requested next; the mask
            is False throughout for a slide that is finished.
        absorb: (params, carry, tile [b], features of its children [b k d]) -> carry.
        finish: (params, carry) -> (logits [b c], attention [b n]).
    """

    begin: Callable
    request: Callable
    absorb: Callable
    finish: Callable


class Stage(NamedTuple):
    """One of the trainings that a method needs, in order.

    Where there are several, the parameters of each are a dict of named trees. A tree
    with the name of an earlier stage's starts from that stage's values, so that the
    last stage has them all. The optimiser's state must not depend on values; optax's
    does not.

    Attributes:
        name: its folder of checkpoints.
        method: what is trained.
        memory_estimate: slides -> text on the memory and work of a step on the largest;
            raises where the device has too little. None for methods that do not stream.
        saliency: (params, slide, class) -> for each tile ((row, column), gradient
            [h w 3] of the class's logit). None for methods that read no pixels.
        predict_by_tiles: (params, batch, key) -> Prediction, the tiles of a slide split
            over all devices of the parameters; None where slides are.
        alternatives: the same parameters with other `predict` functions, by name;
            reported beside the method.
        overrides: fields of `training.loop.Train` that this stage replaces, by name.
        validate: (params, batch, key) -> metrics, each [b], for the stage's monitor;
            None to compute them from the predictions of `method.predict`.
        rounds: the prediction that reads children on demand; None where it needs all.
        baseline: the stage trains a baseline, reported beside the method by the stage's
            name. Later stages start without its parameters unless `inherited`.
        inherited: later stages start from a baseline's parameters too.
        distil: (params, x of a batch) -> x, for methods on `TwoLevelFeatures`: what all
            later stages read of a slide, made once after this stage. The params may be
            a later stage's too.
    """

    name: str
    method: Method
    memory_estimate: Callable | None = None
    saliency: Callable | None = None
    predict_by_tiles: Callable | None = None
    alternatives: Mapping[str, Method] = types.MappingProxyType({})
    overrides: Mapping[str, Any] = types.MappingProxyType({})
    validate: Callable | None = None
    distil: Callable | None = None
    rounds: Rounds | None = None
    baseline: bool = False
    inherited: bool = False


class Takes(enum.Enum):
    """The kinds of input that methods take.

    features: Bags of features that an encoder has made of tiles.
    two_levels: Bags whose `x` is `TwoLevelFeatures`; the method says how many
        `children` there are to a side of a tile.
    slides: Bags whose `x` is a tuple of `data.streamed_slide.StreamedSlide`.
    crops: Bags whose `x` is `Overviews`.
    """

    features = "features"
    two_levels = "two_levels"
    slides = "slides"
    crops = "crops"
