"""The slides of a run, from manifest to feature files, as its config says."""

import pathlib
from collections.abc import Sequence

import jax

from wsi_jax.data.cohort import Row
from wsi_jax.data.features import read_coords
from wsi_jax.data.two_level_bags import pair
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.files import AnyPath
from wsi_jax.run.config import Experiment
from wsi_jax.run.executor import dask
from wsi_jax.run.extract.extract_distributed import extract_distributed
from wsi_jax.run.extract.several_processes import (
    records_of_all,
    share_outcomes,
    share_work,
)
from wsi_jax.run.extract.slide_features import Extractor, extract, find_tiles
from wsi_jax.run.progress import progress
from wsi_jax.run.slide_record import SlideRecord, draw_tissue, precomputed_records
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.file_faults import set_hang_s
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.processes import first_does, own_part


def find_slides(
    config: Experiment, rows: Sequence[Row], sheet: AnyPath, meter: Meter
) -> list[SlideRecord]:
    """Tissue and tiles of each slide, or its precomputed features.

    What was taken as tissue is drawn on a contact sheet, at `sheet`.
    """
    set_hang_s(config.reading.hang_s)
    if config.precomputed:
        return precomputed_records(rows, pathlib.Path(config.precomputed))
    purpose = "encoded" if config.tilings() else "streamed"
    find = lambda rows: find_tiles(
        rows, config.tiling(), purpose,
        reading=config.reading, meter=meter, progress=progress,
    )  # fmt: skip
    records = records_of_all(rows, purpose, find)
    first_does(lambda: draw_tissue(records, sheet))
    return records


def extract_here(
    config: Experiment,
    records: Sequence[SlideRecord],
    tiling: Tiling,
    features: pathlib.Path,
    sheet: AnyPath,
    meter: Meter,
) -> None:
    """Writes the features of one tiling below a folder, by threads of this process.

    Of several processes each makes those of its own part of the slides. Each record
    learns what becomes of its slide; the contact sheet is drawn again if slides are
    refused meanwhile.
    """
    usable = [record for record in records if not record.refusal]
    mesh = make_mesh(jax.local_devices())
    extractor = Extractor(tiling, mesh, config.cluster.spread)
    extract(
        own_part(records), extractor, features, batch=config.encode_batch,
        reading=config.reading, meter=meter, progress=progress,
    )  # fmt: skip
    for record in own_part(records):
        if tiling.children > 1 and not record.refusal:
            low, high = map(read_coords, record.features)
            if not len(pair(low, high, tiling.children)[0]):
                record.refuse(
                    f"{record.slide_id}: no tile of which all children could be read"
                )
    share_outcomes(records)
    names = (record.slide_id for record in own_part(records))
    share_work(meter, (f"{extractor.folder}/{name}" for name in names))
    if any(record.refusal for record in usable):
        first_does(lambda: draw_tissue(records, sheet))


def extract_on_cluster(
    config: Experiment, rows: Sequence[Row], features: pathlib.Path, meter: Meter
) -> list[SlideRecord]:
    """Finds tiles and writes features of all the run's tilings, by workers of Dask."""
    with dask(config.scheduler) as (executor, lost):
        by_tiling = [
            extract_distributed(
                executor, rows, tiling, features, batch=config.encode_batch,
                reading=config.reading, meter=meter, progress=progress, lost=lost,
            )
            for tiling in config.tilings()
        ]  # fmt: skip
    records, *others = by_tiling
    for other in others:
        for record, same_slide in zip(records, other, strict=True):
            record.add_reasons_of(same_slide)
    return records
