"""A trained method, run on slides one by one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.inputs import Input, LoadedSlide
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


class MethodRunner:
    """Runs a method on one slide after another.

    Attributes:
        grouped: whether slides are faster together than one by one.
        input: makes batches of slides.
        params: parameters of the method.

    Args:
        input, params: as above.
        method: compiled.
        distil: (params, x, key) -> x of earlier stages, compiled, in order.
    """

    grouped = False

    def __init__(
        self, input: Input, method: Compiled, distil: Sequence[Callable], params: Any
    ):
        self.input, self.params = input, params
        self._method, self._distil = method, distil

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
        loaded = self.input.one(slide, batch, reading, meter)
        return self.predict(loaded, reading, meter)

    def predict(
        self, loaded: LoadedSlide, reading: Reading, meter: Meter
    ) -> SlideOutput:
        """The output for a slide that `input.one` has loaded.

        Raises:
            SlideError: too much of it cannot be read.
        """
        bag, key = loaded.bag, jax.random.key(0)
        for distil in self._distil:
            bag = bag._replace(x=distil(self.params, bag.x, key))
        prediction = jax.device_get(self._method.predict(self.params, bag, key))
        note = self.input.finish(loaded, reading, meter)
        attention = prediction.attention[0][: len(loaded.kept)]
        return SlideOutput(prediction.logits[0], attention, loaded.kept, note)
