"""Writes the tissue tiles of a cohort as records, many to a file.

    python -m experiments.pretraining.prepare_tiles \
        --config experiments/configs/pretrain/prepare_tiles.py \
        --config.data.manifest=my_slides.csv --config.out=prepared

For `experiments.pretraining.pretrain_tiles` (`configs/pretrain/prepared.py`), and for
any other tool: TensorFlow Datasets reads them (`tfds.builder_from_directory`). Unlike
features a stopped build begins anew. `slides.csv` says what became of each slide and
why.
"""

import dataclasses
import pathlib
import sys
from typing import Any

from absl import logging

from experiments.pretraining.prepared_tiles import Encoding, is_prepared, write_tiles
from wsi_jax import config_fields
from wsi_jax.commands.config_command_line import errors_in_one_line, launch
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.provenance import config_hash
from wsi_jax.run.checks import write_slides
from wsi_jax.run.config import Manifest
from wsi_jax.run.extract.slide_features import find_tiles
from wsi_jax.run.progress import progress
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.slide_record import draw_tissue
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Tissue


@dataclasses.dataclass(kw_only=True)
class PrepareTiles:
    """Which tiles, and how they are stored.

    Attributes:
        out: folder to write, made when absent.
        data: the cohort, with splits.
        grid: tiles, in um/px and pixels.
        tissue: settings that tell tissue from background.
        encoding: encoding of the pixels.
        reading: threads that read tiles.
    """

    out: str = ""
    data: Any = dataclasses.field(default_factory=Manifest)
    grid: Grid = dataclasses.field(default_factory=Grid)
    tissue: Tissue = dataclasses.field(default_factory=Tissue)
    encoding: Encoding = Encoding.png
    reading: Reading = dataclasses.field(default_factory=Reading)


def prepare(config: PrepareTiles) -> pathlib.Path:
    """Writes the tiles, unless they are there.

    Returns:
        Their folder.

    Raises:
        ValueError: anything wrong with config or cohort, or a folder of other tiles.
    """
    config_fields.validate(config)
    if not config.out:
        raise RunError("no folder to write to; add --config.out=FOLDER")
    if config.data.folds:
        raise RunError(f"--config.data.folds={config.data.folds}: tiles have splits")
    cohort, out = config.data.cohort(), pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    records = find_tiles(
        cohort.rows, Tiling(grid=config.grid, tissue=config.tissue), "written",
        reading=config.reading, meter=Meter(), progress=progress,
    )  # fmt: skip
    draw_tissue(records, out / "tissue.png")
    usable = [record.slide for record in records if not record.refusal]
    if not usable:
        raise RunError(f"no slide can be used; of the first: {records[0].reason}")
    made_with = config_hash(
        config.encoding,
        cohort.classes,
        *((s.row.label, s.row.patient_id, s.row.split) for s in usable),
        *(s.fingerprint(config_hash(config.grid, config.tissue)) for s in usable),
    )
    if is_prepared(out, made_with):
        return out
    with progress("tiles", sum(len(s.yx) for s in usable)) as advance:
        reasons = write_tiles(
            out, usable, cohort.classes, config.grid, encoding=config.encoding,
            made_with=made_with, reading=config.reading, advance=advance,
        )  # fmt: skip
    for record in records:
        if reason := reasons.get(record.slide_id):
            record.note(f"tiles left out: {reason}")
        if record.reason:
            print(f"{record.slide_id}: {record.reason}", file=sys.stderr)
    write_slides(out, records)
    return out


def main(config: PrepareTiles, name: str) -> None:
    """Prepares the tiles that the command line asks for."""
    del name
    logging.set_verbosity(logging.WARNING)
    with errors_in_one_line(config.out):
        print(prepare(config))


if __name__ == "__main__":
    launch(main, "PrepareTiles")
