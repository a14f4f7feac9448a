"""A folder of labelled tiles with an index.csv, parted by cluster of origin."""

import concurrent.futures
import enum
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.pretraining.tile_sets import Tiles, TileSets, check_mpp
from experiments.tile_clusters import COLUMNS, INDEX, misshapen, read_tile, split_of
from wsi_jax.data.cohort import SPLITS, Cohort, Row, in_split
from wsi_jax.data.csv_table import CohortError, read_table
from wsi_jax.data.lint import lint
from wsi_jax.data.splits import Split, assign_splits
from wsi_jax.slides.pyramid_writer import rescale


class Part(enum.Enum):
    """Which clusters an encoder learns from; `tile_clusters.split_of` names them.

    encoder: those that practice slides are never made of: no cohort leaks.
    train_and_encoder: those of training slides too: more tiles, for comparisons of
        encoders on the tiles of test clusters.
    """

    encoder = ("encoder",)
    train_and_encoder = ("train", "encoder")


def index_tiles(
    folder: str | os.PathLike,
    *,
    part: Part,
    classes: Sequence[str],
    val: float,
    seed: int,
    training_ids: Sequence[str] = (),
) -> Cohort:
    """The tiles of an index.csv as a cohort: a tile a row, its cluster the patient.

    Args:
        folder: the folder of index.csv, with columns file, class and cluster.
        part: clusters that train and validate; those of "test" test, others are left
            out.
        classes: classes in the order wanted, others left out; () for all, sorted.
        val: share of the clusters that validate.
        seed: seed of their draw, by class.
        training_ids: clusters that the encoder has learnt from before.

    Raises:
        CohortError: no index, a column or cell missing, a class of too few clusters,
            an empty split, or a test tile that was seen.
    """
    path = pathlib.Path(folder) / INDEX
    _, lines = read_table(path, COLUMNS)
    wanted = tuple(classes) or tuple(sorted({cells["class"] for _, cells in lines}))
    rows = []
    for _, cells in lines:
        split = split_of(cells["cluster"])
        if cells["class"] in wanted and split in (*part.value, "test"):
            row = Row(
                slide_id=cells["file"],
                path=str(path.parent / cells["file"]),
                label=cells["class"],
                patient_id=cells["cluster"],
                split="test" if split == "test" else "",
                cluster=cells["cluster"],
            )
            rows.append(row)
    cohort = Cohort(tuple(rows), wanted)
    cohort = assign_splits(cohort, Split(train=1 - val, val=val, test=0.0, seed=seed))
    _check_splits(cohort, path, part, val)
    lint(cohort, training_ids)
    return cohort


def load_tiles(cohort: Cohort, *, tile_mpp: float, mpp: float) -> TileSets:
    """Reads the tiles of an index, resampled from `tile_mpp` to `mpp`, antialiased.

    Raises:
        CohortError: listing the tiles that cannot be read or are of another shape; an
            `mpp` finer than the tiles'.
    """
    check_mpp("tiles of", tile_mpp, mpp)
    sets = [_read_split(in_split(cohort, s), tile_mpp, mpp) for s in SPLITS]
    shapes = {tiles.pixels.shape[1:] for tiles in sets}
    if len(shapes) > 1:
        raise CohortError(f"tiles of one folder have one size, not {sorted(shapes)}")
    learnt = {row.cluster for row in cohort.rows if row.split != "test"}
    return TileSets(*sets, cohort.classes, tuple(sorted(learnt)))


def _check_splits(cohort, path, part, val):
    for split in SPLITS:
        if in_split(cohort, split).rows:
            continue
        if split == "test" or all(row.split == "test" for row in cohort.rows):
            pool = ("test",) if split == "test" else part.value
            why = (
                f"by their names no cluster of {cohort.classes} falls to "
                f"{' or '.join(pool)}; add tiles of other clusters"
            )
            if "train" not in pool and split != "test":
                why += f", or --config.part={Part.train_and_encoder.name}"
        else:
            mend = "lower" if split == "train" else "raise"
            why = f"--config.val={val:g} leaves it no cluster; {mend} it"
        raise CohortError(f"{path}: split {split!r} is empty: {why}")


def _read_split(part: Cohort, tile_mpp: float, mpp: float) -> Tiles:
    def read(row):
        try:
            return rescale(read_tile(row.path), tile_mpp, mpp)
        except OSError as error:
            return f"{row.path}: {error}"

    with concurrent.futures.ThreadPoolExecutor() as pool:
        tiles = list(pool.map(read, part.rows))
    faults = [tile for tile in tiles if isinstance(tile, str)]
    whole = [i for i, tile in enumerate(tiles) if not isinstance(tile, str)]
    for i, reason in misshapen([tiles[i] for i in whole]):
        faults.append(f"{part.rows[whole[i]].path}: {reason}")
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise CohortError(
            f"{len(faults)} tiles cannot be used; mend them, or take their lines out "
            f"of {INDEX}:\n{listed}"
        )
    return Tiles(
        pixels=np.stack(tiles),
        label=part.targets,
        cluster=tuple(row.cluster for row in part.rows),
        name=tuple(row.slide_id for row in part.rows),
    )
