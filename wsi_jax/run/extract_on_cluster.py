"""Features of a run, made by workers on other machines."""

import pathlib
from collections.abc import Sequence

from wsi_jax.data.cohort import Row
from wsi_jax.evals.cost import Meter
from wsi_jax.run import executor as workers
from wsi_jax.run.config import Experiment
from wsi_jax.run.extract_distributed import spread
from wsi_jax.run.inputs.two_levels import both
from wsi_jax.run.progress import progress


def extract(
    config: Experiment, rows: Sequence[Row], folder: pathlib.Path, meter: Meter
) -> list[dict]:
    """What became of each slide; as `pipeline.extract`, of all tilings of the run."""
    how = {"batch": config.encode_batch, "reading": config.reading, "meter": meter}
    with workers.dask(config.scheduler) as (executor, lost):
        found = [
            spread(executor, rows, tiling, folder, progress=progress, lost=lost, **how)
            for tiling in config.tilings()
        ]
    return found[0] if len(found) == 1 else both(*found)
