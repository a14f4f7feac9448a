"""Methods on practice cohorts; what their configs share."""

from typing import Any

from wsi_jax.data.tile_batches import Reading
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def end_to_end(method: Any, grid: Grid, train: Train) -> Experiment:
    """A method with a trunk of its own, on a cohort's manifest."""
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=grid,
        encoder=None,
        method=method,
        train=train,
        reading=Reading(threads=4),
    )


def balanced(learning_rate: float, **train: int) -> Train:
    """A training of fixed length that draws classes equally often."""
    return Train(
        balanced=True,
        class_weights=False,
        patience=0,
        optimiser=optimiser(learning_rate),
        **train,
    )


def optimiser(learning_rate: float) -> Optimiser:
    """For trunks and heads that are small."""
    return Optimiser(learning_rate=learning_rate, warmup=0.1, weight_decay=1e-3)
