"""A finished run: its folder, its metrics, its report, and its predictions."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from wsi_jax.files import AnyPath, any_path
from wsi_jax.report.tables import interval
from wsi_jax.run.model_card import CARD
from wsi_jax.run.predict.ensemble import load
from wsi_jax.run.predict.predict_paths import predict_paths
from wsi_jax.run.predict.slide_prediction import (
    SlidePrediction,
    SlidePredictions,
    html_table,
)
from wsi_jax.run.predict.slide_predictor import SlidePredictor
from wsi_jax.run.run_folder import read_csv, read_json
from wsi_jax.run.write_report import write_report


class Run:
    """A finished run; shown in a notebook, its headline.

    Args:
        folder: folder of the run.

    Attributes:
        folder: as above.
        report: its page, `report.html`.
        metrics: of the test slides, with the ends of their intervals, as metrics.json
            has them: "test.auc", "test.auc_lo", "test.auc_hi", ...
        predictions: lines of predictions.csv, one for each test slide.
        slides: lines of slides.csv: what became of each slide, and why.
        models: folders of its trained models: itself, or its folds.
        predictor: the trained model, opened; of a run of folds, all of them together.

    Raises:
        FileNotFoundError: no run has ended there.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = any_path(folder)
        self.report = self.folder / "report.html"
        if not self.report.is_file():
            raise FileNotFoundError(f"{folder} has no report; let its run end first")

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the test slides."""
        return read_json(self.folder / "metrics.json")

    @functools.cached_property
    def predictions(self) -> list[dict[str, str]]:
        """Lines of predictions.csv."""
        return read_csv(self.folder / "predictions.csv")

    @functools.cached_property
    def slides(self) -> list[dict[str, str]]:
        """Lines of slides.csv."""
        return read_csv(self.folder / "slides.csv")

    @property
    def models(self) -> list[AnyPath]:
        """Folders of its trained models."""
        own = [self.folder] * (self.folder / CARD).is_file()
        return own or sorted(p.parent for p in self.folder.glob(f"*/{CARD}"))

    @functools.cached_property
    def predictor(self) -> SlidePredictor:
        """The trained model, opened."""
        return load(self.models)

    def predict(
        self,
        slides: str | os.PathLike | Sequence[str | os.PathLike],
        mpp: float | None = None,
    ) -> SlidePrediction | SlidePredictions:
        """Predicts one slide, or several; arguments as `wsi_jax.predict`."""
        return predict_paths(self.predictor, slides, mpp)

    def headline(self) -> dict[str, str]:
        """Headline metrics with their 95 % intervals, as text."""
        cut = lambda name: name.removeprefix("test.")
        summary = {cut(name): value for name, value in self.metrics.items()}
        shown = write_report.names(summary) | write_report.pooled(summary)
        return {name: interval(summary, key) for key, name in shown.items()}

    def __repr__(self):
        values = ", ".join(f"{name} {v}" for name, v in self.headline().items())
        return f"Run({self.folder}, {self.metrics['test.n']} test slides: {values})"

    def _repr_html_(self) -> str:
        n = f"{self.metrics['test.n']} test slides"
        lines = [(str(self.folder), f"{n}, 95 % intervals"), *self.headline().items()]
        return html_table([*lines, ("report", str(self.report))])
