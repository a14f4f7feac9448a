"""Tissue tiles of a cohort as records of TensorFlow Datasets, many to a file.

For training away from the slides, whose scattered reads are slow over a network.
Records are ArrayRecord files, shuffled when written. Any tool reads them that reads
TensorFlow Datasets (`tfds.builder_from_directory`).
"""

import enum
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.pretraining.tile_sets import Tiles, TileSets, check_mpp
from wsi_jax.data.cohort import SPLITS
from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.tensorflow import import_tfds
from wsi_jax.data.tile_batches import Reading, TileCounts, TileSource, tile_batches
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.grid import Grid, level0
from wsi_jax.slides.pyramid_writer import rescale

NAME, VERSION = "tiles", "1.0.0"
READ_AHEAD = 64  # tiles read ahead of the one that is written


class Encoding(enum.Enum):
    """png: the pixels themselves. jpeg: fewer bytes, and not quite the pixels."""

    png = "png"
    jpeg = "jpeg"


class PreparedTiles:
    """The records of one split ("train", "val" or "test"), read one at a time.

    Raises:
        CohortError: there are no whole tiles in the folder, or none of this split.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        builder = open_builder(folder)
        if split not in builder.info.splits:
            raise CohortError(f"{folder}: no tiles in split {split!r}")
        self.classes = tuple(builder.info.metadata["classes"])
        self.mpp = float(builder.info.metadata["mpp"])
        self.size_px = builder.info.features["tile"].shape[0]
        self._records = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record: tile, label, slide_id, patient_id, yx, mpp."""
        record = self._records[index]
        names = ("slide_id", "patient_id")
        return record | {name: record[name].decode() for name in names}

    def in_memory(self, mpp: float, most: int | None) -> Tiles:
        """The first tiles, resampled; labels are the slides', clusters the patients."""
        records = [self[i] for i in range(min(most or len(self), len(self)))]
        name_of = lambda one: "{}_y{}_x{}".format(one["slide_id"], *one["yx"].tolist())
        return Tiles(
            pixels=np.stack([rescale(one["tile"], self.mpp, mpp) for one in records]),
            label=np.array([one["label"] for one in records], np.int32),
            cluster=tuple(one["patient_id"] for one in records),
            name=tuple(map(name_of, records)),
        )


def load_prepared(
    folder: str | os.PathLike, *, mpp: float, most: int | None = None
) -> TileSets:
    """Reads all splits into memory.

    Args:
        folder: what `write_tiles` wrote.
        mpp: um/px that tiles are resampled to, antialiased.
        most: most tiles of each split, the first ones; None for all.

    Raises:
        CohortError: no whole tiles, a split missing, or `mpp` is finer than theirs.
    """
    parts = [PreparedTiles(folder, split) for split in SPLITS]
    check_mpp(f"{folder}: tiles of", parts[0].mpp, mpp)
    sets = [part.in_memory(mpp, most) for part in parts]
    slides = (name.rpartition("_y")[0] for part in sets[:2] for name in part.name)
    patients = (cluster for part in sets[:2] for cluster in part.cluster)
    return TileSets(*sets, parts[0].classes, tuple(sorted({*slides, *patients})))


def open_builder(folder: str | os.PathLike) -> Any:
    """TFDS's builder of a folder, to read from.

    Raises:
        CohortError: there are no whole tiles.
    """
    path = pathlib.Path(folder) / NAME / VERSION
    if not path.is_dir():  # TFDS names it so once all are written
        raise CohortError(
            f"{folder}: no prepared tiles, or not all; run "
            "experiments.pretraining.prepare_tiles"
        )
    return import_tfds().builder_from_directory(path)


def is_prepared(folder: str | os.PathLike, made_with: str) -> bool:
    """Whether a folder holds these very tiles, whole.

    Raises:
        CohortError: it holds others.
    """
    try:
        metadata = open_builder(folder).info.metadata
    except CohortError:
        return False
    if metadata["made_with"] != made_with:
        raise CohortError(
            f"{folder} holds tiles of other slides or settings; name another folder "
            "with --config.out"
        )
    return True


def write_tiles(
    folder: str | os.PathLike,
    slides: Sequence[TiledSlide],
    classes: Sequence[str],
    grid: Grid,
    *,
    encoding: Encoding,
    made_with: str,
    reading: Reading,
    advance: Callable,
) -> dict[str, str]:
    """Writes tiles, all or none: a build that was stopped begins anew.

    Args:
        folder: is made; of what a build left there that was stopped nothing stays.
        slides: with a split each.
        classes: names of the classes.
        grid: size and um/px of the tiles.
        encoding: encoding of the pixels.
        made_with: fingerprint of all that decides the records (`is_prepared`).
        reading: threads and buffers.
        advance: (tiles) -> None, of a progress bar.

    Returns:
        The reason of each slide with tiles that could not be read; these are left out.
    """
    tfds, folder = import_tfds(), pathlib.Path(folder)
    for left in (folder / NAME).glob("incomplete.*"):
        shutil.rmtree(left)
    reasons, records = {}, {}
    for split in SPLITS:
        if part := [slide for slide in slides if slide.row.split == split]:
            records[split] = _records(part, grid, reading, reasons, advance)
    metadata = {"made_with": made_with, "mpp": grid.mpp, "classes": list(classes)}
    builder = _builder(tfds, folder, grid.size_px, encoding, metadata, records)
    builder.download_and_prepare()
    return reasons


def _builder(tfds, folder, size_px, encoding, metadata, splits):
    """TFDS's builder of such records, of a (key, record) iterator for each split."""
    kinds, shape = tfds.features, (size_px, size_px, 3)
    record = {
        "tile": kinds.Image(shape=shape, encoding_format=encoding.value),
        "label": kinds.ClassLabel(names=metadata["classes"]),
        "slide_id": kinds.Text(),
        "patient_id": kinds.Text(),
        "yx": kinds.Tensor(shape=(2,), dtype=np.int32),
        "mpp": kinds.Scalar(np.float32),
    }

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        code_path = None  # beside it TFDS would look for checksums of downloads

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Tissue tiles of whole slides.",
                features=kinds.FeaturesDict(record),
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return splits

        def _generate_examples(self):
            raise NotImplementedError  # the splits are generators already

    Builder.name, Builder.VERSION = NAME, tfds.core.Version(VERSION)
    return Builder(data_dir=folder, file_format="array_record")


def _records(
    slides: Sequence[TiledSlide],
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
        batch_size=READ_AHEAD,
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
    reasons |= {slides[i].row.slide_id: why for i, why in counts.reasons.items()}
