"""What predicts slides: a trained run, or several together."""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.config_file import rename_fields
from wsi_jax.run.predict.slide_prediction import SlidePrediction
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.file_faults import set_hang_s
from wsi_jax.slides.slide import SlideError
from wsi_jax.slides.slide_id import slide_id_of

# Fields of a config that Python has as arguments.
KEYWORDS = {
    "data.mpp": "predict(mpp=...)",
    "reading.max_unreadable": "Reading.max_unreadable",
}


class SlidePredictor(abc.ABC):
    """Predicts slides from their files.

    Attributes:
        names: what fields of a config are called in errors, {"data.mpp": "--mpp"}.
        classes: names of the classes.
        threshold: threshold on the second class's probability, chosen on validation;
            None where the likeliest class wins.
        grouped: whether slides are faster together than one by one.
        digest: 16 hex digits that change with whatever decides a prediction.
    """

    names: Mapping[str, str] = KEYWORDS
    classes: tuple[str, ...]
    threshold: float | None
    grouped: bool
    digest: str

    def predict(
        self,
        path: str | os.PathLike,
        mpp: float | None = None,
        batch: int = 64,
        reading: Reading | None = None,
        mask: str | os.PathLike = "",
    ) -> SlidePrediction:
        """The prediction of a slide.

        Args:
            path: its file.
            mpp: um/px of its level 0, if the file does not say or is wrong: it wins,
                with a note where the file's differs by more than 5 %.
            batch: tiles encoded at a time.
            reading: threads and buffers.
            mask: its tissue mask, for a run whose tissue.source is MASK.

        Raises:
            SlideError: the slide cannot be read at the run's mpp, has no tissue, has
                lost more than `reading.max_unreadable` of its tiles, or is refused for
                its stain.
        """
        row = row_of_path(path, mpp, mask)
        (prediction,) = self.predict_many([row], batch=batch, reading=reading)
        if isinstance(prediction, SlideError):
            raise prediction
        return prediction

    def predict_many(
        self,
        rows: Sequence[Row],
        batch: int = 64,
        reading: Reading | None = None,
        at_once: int = 16,
    ) -> Iterator[SlidePrediction | SlideError]:
        """The prediction of each slide, in order, or why there is none.

        Methods that zoom do so into several slides at once, so that the encoder has
        full batches; each prediction then has the cost of all of them. Others predict
        one slide after the other.

        Args:
            rows: the slides, from a manifest or `row_of_path`; labels are not needed.
            batch: as in `predict`.
            reading: as in `predict`.
            at_once: slides zoomed into at once.
        """
        at_once = at_once if self.grouped else 1
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            for result in self._predict(some, batch, reading or Reading()):
                failed = isinstance(result, SlideError)
                yield self._renamed(result) if failed else result

    def _predict(self, rows, batch, reading) -> list[SlidePrediction | SlideError]:
        set_hang_s(reading.hang_s)
        meter, results = Meter(), [self._tile(row) for row in rows]
        slides = [one for one in results if isinstance(one, TiledSlide)]
        outputs = iter(self._outputs(slides, batch, reading, meter) if slides else ())
        for i, slide in enumerate(results):
            if isinstance(slide, TiledSlide):
                results[i] = self._prediction(slide, next(outputs), meter)
        return results

    @abc.abstractmethod
    def _tile(self, row: Row) -> TiledSlide | SlideError:
        """The slide with its tiles, or why it is refused."""

    @abc.abstractmethod
    def _outputs(
        self, slides: Sequence[TiledSlide], batch: int, reading: Reading, meter: Meter
    ) -> list[Any]:
        """What the method gives for each slide, for `_prediction`."""

    @abc.abstractmethod
    def _prediction(
        self, slide: TiledSlide, output: Any, meter: Meter
    ) -> SlidePrediction | SlideError:
        """The prediction of a slide from one of `_outputs`, or why there is none."""

    @abc.abstractmethod
    def check_saliency(self) -> None:
        """Raises ValueError where the gradient at a slide's pixels is not drawn."""

    def _renamed(self, error: SlideError) -> SlideError:
        """An error that names fields as the command or the function at hand does."""
        return SlideError(rename_fields(str(error), self.names))


def row_of_path(
    path: str | os.PathLike, mpp: float | None = None, mask: str | os.PathLike = ""
) -> Row:
    """A slide of no cohort; arguments as those of `SlidePredictor.predict`."""
    name = slide_id_of(path)
    return Row(name, os.fspath(path), "", name, "", mpp, mask_path=os.fspath(mask))
