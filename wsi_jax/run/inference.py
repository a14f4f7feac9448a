"""A trained method, run on slides one by one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.inputs import Input
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.slide import SlideError
from wsi_jax.types import Compiled


class SlideOutput(NamedTuple):
    """What a method gives for one slide.

    Attributes:
        logits: [c].
        attention: [n], attention on the tiles that could be read.
        kept: [n], indices of those among the slide's tiles.
        note: what of it could not be read, or "".
        order: [t], which of the tiles were zoomed into, the first first; None for
            methods that do not zoom.
    """

    logits: np.ndarray
    attention: np.ndarray
    kept: np.ndarray
    note: str = ""
    order: np.ndarray | None = None


class Inference:
    """Runs a method on one slide after another.

    Attributes:
        grouped: whether slides are faster together than one by one.

    Args:
        input: makes batches of slides.
        method: compiled.
        distil: (params, x, key) -> x of earlier stages, compiled, in order.
        params: parameters of the method.
    """

    grouped = False

    def __init__(
        self, input: Input, method: Compiled, distil: Sequence[Callable], params: Any
    ):
        self._input, self._method = input, method
        self._distil, self._params = distil, params

    def __call__(
        self, slides: Sequence[TiledSlide], batch: int, reading: Reading, meter: Meter
    ) -> list[SlideOutput | SlideError]:
        """The output for each slide, or why there is none.

        Args:
            slides: slides with tiles.
            batch: tiles encoded at a time.
            reading: threads, and the share of a slide that may be unreadable.
            meter: is charged.
        """
        outputs = []
        for slide in slides:
            try:
                outputs.append(self._one(slide, batch, reading, meter))
            except SlideError as error:
                outputs.append(error)
        return outputs

    def _one(self, slide, batch, reading, meter) -> SlideOutput:
        loaded, key = self._input.one(slide, batch, reading, meter), jax.random.key(0)
        bag = loaded.bag
        for distil in self._distil:
            bag = bag._replace(x=distil(self._params, bag.x, key))
        prediction = jax.device_get(self._method.predict(self._params, bag, key))
        note = self._input.finish(loaded, reading, meter)
        attention = prediction.attention[0][: len(loaded.kept)]
        return SlideOutput(prediction.logits[0], attention, loaded.kept, note)
