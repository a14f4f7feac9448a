"""Predictions of slides in memory: one file, or a folder, a CSV or several."""

import os
import pathlib
from collections.abc import Sequence

from wsi_jax.data.tile_batches import Reading
from wsi_jax.run.predict.predict_slides import TABLES, find_rows
from wsi_jax.run.predict.slide_prediction import SlidePrediction, SlidePredictions
from wsi_jax.run.predict.slide_predictor import SlidePredictor
from wsi_jax.slides.slide import SlideError


def predict_paths(
    predictor: SlidePredictor,
    slides: str | os.PathLike | Sequence[str | os.PathLike],
    mpp: float | None = None,
    reading: Reading | None = None,
) -> SlidePrediction | SlidePredictions:
    """Predicts slides and writes nothing.

    Args:
        predictor: a run, or several together.
        slides: file of one slide; or a folder, a CSV, or several of all these.
        mpp: um/px of slides for which neither a CSV nor the file says it.
        reading: threads, and the share of a slide that may be unreadable.

    Returns:
        The prediction of one slide; of several a list, where `refused` has the reason
        of each slide that has none.

    Raises:
        SlideError: why one slide has no prediction.
        CohortError: a folder without slides, or a CSV that is none.
    """
    one = isinstance(slides, str | os.PathLike)
    paths = [pathlib.Path(path) for path in ([slides] if one else slides)]
    rows, predictions = find_rows(paths, mpp), SlidePredictions()
    results = predictor.predict_many(rows, reading=reading)
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, SlideError):
            predictions.refused[row.slide_id] = str(result)
        else:
            predictions.append(result)
    if not one or paths[0].is_dir() or paths[0].suffix.casefold() in TABLES:
        return predictions
    for reason in predictions.refused.values():
        raise SlideError(reason)
    return predictions[0]
