"""What passes between the floors: batches, states, predictions, methods.

Shape letters, throughout the package: b slides, n tiles, k crops, t looks, h w pixels
or cells, 3 RGB, d features, c classes, a actions.
"""

import enum
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

Params = Any


class Dtype(enum.Enum):
    """Of matmuls and convolutions; softmax, losses and norms are at least float32."""

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
        weight: [b], of the slide in the loss, above 0; 0 for a slide that only fills
            the batch and is no real one.
    """

    x: Array
    mask: Array
    target: Array
    weight: Array


class Zooms(NamedTuple):
    """Features of the tiles of `b` slides at two resolutions.

    Attributes:
        low: [b n d], of the tiles.
        high: [b n k d], of the k children that fill each tile, at high resolution; or
            [b n d], of what a stage has distilled from them.
    """

    low: Array
    high: Array


class Looks(NamedTuple):
    """What is seen of `b` slides by a method that chooses where to look closer.

    Attributes:
        overview: [b h w 3], uint8; `mask` of its Bag are its cells [b y x].
        background: [b 3], uint8, of what lies off the slides.
        planes: of each magnification the slides [b H W 3], on the device; () where
            `read` reads them.
        read: (magnification [b n], corner [b n 2], mask [b n]) -> a future of the crops
            [b n s s 3]; None where there are planes.
        after: the Bag that comes next, so that its crops are read meanwhile; or None.
        slides: what tells the slides apart, where they are read; () where there are
            planes.
    """

    overview: Array
    background: Array
    planes: tuple[Array, ...] = ()
    read: Callable | None = None
    after: Any = None
    slides: tuple = ()


def bucket(n: int, smallest: int) -> int:
    """The padded length of n tiles: the least smallest * 2**i that holds them."""
    return smallest << max(0, -(-n // smallest) - 1).bit_length()


def padded(n: int, least: int) -> int:
    """n rounded up, by a quarter of itself at most: few lengths, and little waste."""
    step = max(least, 1 << max(0, n.bit_length() - 3))
    return -(-n // step) * step


class Prediction(NamedTuple):
    """A method's verdict on `b` slides.

    Attributes:
        logits: [b c].
        attention: [b n], non-negative, summing to 1 over a slide's tiles.
        counts: what it took, each [b]: `tiles` looked at, `flops` of the method itself.
        trace: what the method wants shown (crops chosen, a zoom path), or None.
    """

    logits: Array
    attention: Array
    counts: dict[str, Array]
    trace: Any = None


class TrainState(NamedTuple):
    """All that a training step changes, and the key it never changes.

    Attributes:
        step: int32, steps taken.
        params: of the networks.
        opt: of the optimiser.
        key: typed; step `i` uses `fold_in(key, i)`.
    """

    step: Array
    params: Params
    opt: Any
    key: Array


class Method(NamedTuple):
    """A way to learn from slides: three pure functions, not yet compiled.

    Attributes:
        init: (key, batch) -> state.
        step: (state, batch) -> (state, metrics).
        predict: (params, batch, key) -> Prediction.
        staged: its functions leave the device in between, and are no programs but
            Python over compiled phases.
    """

    init: Callable
    step: Callable
    predict: Callable
    staged: bool = False


class Zoomer(NamedTuple):
    """A verdict that rests on what is zoomed into and nothing else is read of.

    Attributes:
        begin: (params, features of tiles [b n d], mask [b n]) -> state.
        likely: (params, state) -> log-probability [b n] of each tile to be the next;
            -inf for all of a slide that has been seen enough of.
        step: (params, state, tile [b], features of its children [b k d]) -> state.
        end: (params, state) -> (logits [b c], attention [b n]).
    """

    begin: Callable
    likely: Callable
    step: Callable
    end: Callable


class Stage(NamedTuple):
    """One training of those that a method needs, in order.

    Where there are several, the parameters of each are a dict of named trees. A tree
    that has the name of an earlier stage's begins as that left it, so that the last
    stage has them all. The optimiser's state must not hang on values, nor does optax's.

    Attributes:
        name: of its folder of checkpoints.
        method: trained in this stage.
        outlook: views of slides -> what a step on the one that takes most will take,
            in words; raises where the device cannot. None where nothing is told.
        saliency: (params, view of a slide, class) -> for each tile ((row, column),
            gradient [h w 3] of the class's logit). None where pixels are not seen.
        others: the method with other ways to predict, by name; reported besides.
        plan: fields of `train.loop.Train` that are this stage's own, by name.
        validate: (params, batch, key) -> metrics each [b], for the plan's monitor; None
            for those of the verdicts of `method.predict`.
        zoomer: how a verdict is come by that reads no more than it needs; None where
            all is read.
        opponent: only another way to predict is learnt, that of `method`, which is
            reported besides by the stage's name; no later stage begins with it unless
            it `leads`.
        leads: of an opponent: later stages begin with it, too.
        distil: (params, x of a batch) -> x, of methods that take zooms: what all later
            stages see of a slide, made once for all when this one is trained. The
            params may be a later stage's too.
    """

    name: str
    method: Method
    outlook: Callable | None = None
    saliency: Callable | None = None
    others: Mapping[str, Method] = types.MappingProxyType({})
    plan: Mapping[str, Any] = types.MappingProxyType({})
    validate: Callable | None = None
    distil: Callable | None = None
    zoomer: Zoomer | None = None
    opponent: bool = False
    leads: bool = False


class Takes(enum.Enum):
    """What a method's batches are made of.

    features: Bags of features that an encoder has made of tiles.
    zooms: Bags whose `x` is `Zooms`; the method tells its `children`, to a side of a
        tile.
    slides: Bags whose `x` is a tuple of views of slides (`data.views.View`).
    looks: Bags whose `x` is `Looks`.
    """

    features = "features"
    zooms = "zooms"
    slides = "slides"
    looks = "looks"
