"""From slide files to feature files: tissue, tiles, features."""

import concurrent.futures
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from wsi_jax.data.cohort import Row
from wsi_jax.data.disk_space import check_space
from wsi_jax.data.features import (
    FeatureError,
    FeatureMetadata,
    check_feature_file,
    is_whole,
    lost_tiles,
    write_features,
)
from wsi_jax.data.tile_batches import Reading, TileCounts, TileSource
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.extract.encode import CompiledEncoder, Encoded, encode, unreadable
from wsi_jax.run.slide_record import SlideRecord, tiled_record
from wsi_jax.run.tiling import TiledSlide, Tiling, tile_slide
from wsi_jax.slides.grid import level0
from wsi_jax.training.flops import count_flops


class Extractor:
    """Grid, tissue and encoder, the last on the devices once it is needed.

    Args:
        tiling: grid, tissue and encoder; not to be changed any more.
        mesh: devices over which each batch of tiles is split.
        spread: whether the encoder's weights are divided among them too.
    """

    def __init__(self, tiling: Tiling, mesh: Mesh, spread: bool = False):
        self.tiling = tiling
        self.encoder = CompiledEncoder(tiling.encoder, mesh, spread)
        self.settings, self.folder = tiling.fingerprint(), tiling.folder()

    @functools.cached_property
    def tile_flops(self) -> int:
        """FLOPs of one tile."""
        side = self.tiling.tiles.size_px
        tile = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        apply = self.tiling.encoder.make().apply
        return count_flops(apply, self.encoder.params, tile)


class _MissingFile(NamedTuple):
    """A feature file that is to be made, of the tiles in `slide`."""

    record: SlideRecord
    slide: TiledSlide
    path: pathlib.Path


def find_tiles(
    rows: Sequence[Row],
    tiling: Tiling,
    purpose: str,
    *,
    reading: Reading,
    meter: Meter,
    progress: Callable,
) -> list[SlideRecord]:
    """Finds tissue and tiles on slides, of which nothing else is read.

    Args:
        rows: the slides.
        tiling: grid and tissue.
        purpose: status of the slides that can be used, as in `SlideRecord`.
        reading: its threads are used.
        meter: is charged.
        progress: as of `extract`.
    """

    def find(row):
        record = tiled_record(tile_slide(row, tiling), purpose)
        advance()
        return record

    with (
        meter.span("tiling"),
        progress("tissue", len(rows)) as advance,
        concurrent.futures.ThreadPoolExecutor(reading.threads) as pool,
    ):
        return list(pool.map(find, rows))


def extract(
    records: Sequence[SlideRecord],
    extractor: Extractor,
    folder: pathlib.Path,
    *,
    batch: int,
    reading: Reading,
    meter: Meter,
    progress: Callable,
) -> None:
    """Writes the features of slides that have none yet; a bad slide stops nothing.

    Each record learns of its file; of tiles that could not be read, which may make it a
    refused one; and of a damaged file, which is made anew.

    Args:
        records: slides whose tiles have been found; refused ones are left out.
        extractor: of tiles, or of their children.
        folder: folder of all features; each tiling has its own below it.
        batch: tiles in a batch.
        reading: threads and buffers.
        meter: is charged with all of it.
        progress: (what, total) -> a context that gives `advance(n, note)`.

    Raises:
        FeatureError: the disk has no room for the features.
    """
    missing = _missing_files(records, extractor, folder / extractor.folder)
    if not missing:
        return
    tiling, counts = extractor.tiling, TileCounts()
    tiles = sum(len(file.slide.yx) for file in missing)
    check_space(folder / extractor.folder, tiles, tiling.encoder.make().dim)
    encoded = encode(
        [TileSource(m.slide.row.path, m.slide.row.mpp, m.slide.yx) for m in missing],
        tiling.tiles,
        extractor.encoder,
        batch=batch,
        reading=reading,
        meter=meter,
        counts=counts,
    )
    job = f"encoding at {tiling.tiles.mpp:g} um/px"
    with progress(job, tiles, "compiling") as advance:
        for one in encoded:
            file = missing[one.index]
            bytes_decoded = counts.decoded.get(one.index, 0)
            _charge(meter, extractor, file.record, len(one.kept), bytes_decoded)
            file.record.refuse(one.refusal(reading.max_unreadable))
            if not file.record.refusal:
                file.record.note(one.unreadable_note())
                _write(file, one, extractor)
            advance(len(file.slide.yx), _occupation(meter, counts))


def _missing_files(records, extractor, folder) -> list[_MissingFile]:
    """The files that are to be made; records of the others get their notes."""
    missing = []
    for record in records:
        if record.refusal:
            continue
        path = folder / f"{record.slide_id}.h5"
        record.features.append(path)
        slide = extractor.tiling.with_children(record.slide)
        if is_whole(path, slide.fingerprint(extractor.settings)):
            lost, reason = lost_tiles(path)
            record.note(unreadable(lost, len(slide.yx), reason))
        else:
            record.note(_damage(path))
            missing.append(_MissingFile(record, slide, path))
    return missing


def _damage(path) -> str:
    """A note on a feature file that is there and cannot be used."""
    try:
        if path.exists():
            check_feature_file(path)
    except FeatureError:
        return f"{path.name} was damaged and is made anew"
    return ""


def _charge(meter, extractor, record, tiles, bytes_decoded) -> None:
    """Charges a slide's work before its file is there: then the work is known too."""
    unit = f"{extractor.folder}/{record.slide_id}"
    meter.begin(unit)
    meter.record(
        unit,
        # A slide is counted with its tiles, not again with their children.
        slides=0 if extractor.tiling.children > 1 else 1,
        tiles=tiles,
        bytes_decoded=bytes_decoded,
        flops=tiles * extractor.tile_flops,
    )


def _write(file: _MissingFile, encoded: Encoded, extractor: Extractor) -> None:
    """Writes one slide's features."""
    slide, grid = file.slide, extractor.tiling.tiles
    origin = FeatureMetadata(
        slide_id=slide.row.slide_id,
        shape=slide.shape,
        mpp=slide.mpp,
        target_mpp=grid.mpp,
        size_px=grid.size_px,
        overlap_px=grid.overlap_px,
        encoder=extractor.tiling.encoder.name,
        config_hash=slide.fingerprint(extractor.settings),
        bad_tiles=encoded.lost,
        bad_reason=encoded.reason,
    )
    yx = level0(slide.yx[encoded.kept], grid.mpp, slide.mpp)
    write_features(file.path, encoded.x, yx, origin)


def _occupation(meter: Meter, counts: TileCounts) -> str:
    """Where the time goes, for a progress bar."""
    account = meter.as_dict()
    percent = lambda name: account[f"span.{name}.percent"]
    readers = counts.reading_s / account["wall_s"]
    return (
        f"waited {percent('wait'):.0f}% for reading and {percent('encode'):.0f}% for "
        f"encoding, {readers:.1f} threads reading"
    )
