"""Writes the tissue tiles of a cohort as records; `data.prepared` reads them."""

import enum
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.pretraining.prepared import NAME, VERSION, opened, place
from wsi_jax.data.cohort import SPLITS, Row
from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.tensorflow import import_tfds
from wsi_jax.data.tiles import Reading, TileCounts, TileSource, tile_batches
from wsi_jax.slides.grid import Grid, level0

READ = 64  # tiles read ahead of the one that is written


class Encoding(enum.Enum):
    """png: the pixels themselves. jpeg: fewer bytes, and not quite the pixels."""

    png = "png"
    jpeg = "jpeg"


class PreparedSlide(NamedTuple):
    """A slide whose tiles are to be written.

    Attributes:
        row: of the manifest.
        mpp: of level 0.
        yx: corners of the tiles, in pixels at the grid's mpp.
    """

    row: Row
    mpp: float
    yx: Int[np.ndarray, "n 2"]


def write_tiles(
    folder: str | os.PathLike,
    slides: Sequence[PreparedSlide],
    classes: Sequence[str],
    grid: Grid,
    *,
    encoding: Encoding,
    made_with: str,
    reading: Reading,
    advance: Callable,
    shards: int | None = None,
) -> dict[str, str]:
    """Writes tiles, all or none: a build that was stopped begins anew.

    Args:
        folder: is made; of what a build left there that was stopped nothing stays.
        slides: with a split each.
        classes: of their labels.
        grid: of the tiles.
        encoding: of their pixels.
        made_with: fingerprint of all that decides the records (`is_prepared`).
        reading: threads and buffers.
        advance: of a progress bar of tiles.
        shards: files of each split; None for TFDS's own choice, of 1 GiB at most.

    Returns:
        The reason of each slide with tiles that could not be read; these are left out.
    """
    tfds, folder = import_tfds(), pathlib.Path(folder)
    for left in (folder / NAME).glob("incomplete.*"):
        shutil.rmtree(left)
    reasons: dict[str, str] = {}
    of = lambda split: [slide for slide in slides if slide.row.split == split]
    parts = {split: of(split) for split in SPLITS if of(split)}
    records = {
        s: _records(p, grid, reading, reasons, advance) for s, p in parts.items()
    }
    builder = _builder(tfds, folder, classes, grid, encoding, made_with, records)
    config = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=config)
    return reasons


def is_prepared(folder: str | os.PathLike, made_with: str) -> bool:
    """Whether a folder holds these very tiles, whole.

    Raises:
        CohortError: it holds others.
    """
    if not place(folder).is_dir():
        return False
    if opened(folder).info.metadata["made_with"] != made_with:
        raise CohortError(
            f"{folder} holds tiles of other slides or settings; name another folder "
            "with --config.out"
        )
    return True


def _builder(tfds, folder, classes, grid, encoding, made_with, splits):
    """TFDS's builder of such records, of a (key, record) iterator for each split."""
    kinds = tfds.features
    record = {
        "tile": kinds.Image(
            shape=(grid.size_px, grid.size_px, 3), encoding_format=encoding.value
        ),
        "label": kinds.ClassLabel(names=list(classes)),
        "slide_id": kinds.Text(),
        "patient_id": kinds.Text(),
        "yx": kinds.Tensor(shape=(2,), dtype=np.int32),
        "mpp": kinds.Scalar(np.float32),
    }
    known = {"made_with": made_with, "mpp": grid.mpp, "classes": list(classes)}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        code_path = None  # beside it TFDS would look for checksums of downloads

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Tissue tiles of whole slides.",
                features=kinds.FeaturesDict(record),
                metadata=tfds.core.MetadataDict(known),
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return splits

        def _generate_examples(self):
            raise NotImplementedError  # the splits are generators already

    Builder.name, Builder.VERSION = NAME, tfds.core.Version(VERSION)
    return Builder(data_dir=folder, file_format="array_record")


def _records(
    slides: Sequence[PreparedSlide],
    grid: Grid,
    reading: Reading,
    reasons: dict[str, str],
    advance: Callable,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, record) of each tile that can be read."""
    counts = TileCounts()
    batches = tile_batches(
        [TileSource(slide.row.path, slide.row.mpp, slide.yx) for slide in slides],
        mpp=grid.mpp,
        size_px=grid.size_px,
        batch_size=READ,
        reading=reading,
        counts=counts,
    )
    corners = [level0(s.yx, grid.mpp, s.mpp).astype(np.int32) for s in slides]
    for batch in batches:
        for pixels, slide, tile, ok in zip(*batch, strict=True):
            row = slides[slide].row
            record = {
                "tile": pixels,
                "label": row.label,
                "slide_id": row.slide_id,
                "patient_id": row.patient_id,
                "yx": corners[slide][tile],
                "mpp": grid.mpp,
            }
            if ok:
                yield f"{row.slide_id}:{tile}", record
        advance(int((batch.slide >= 0).sum()))
    reasons |= {slides[i].row.slide_id: told for i, told in counts.reasons.items()}
