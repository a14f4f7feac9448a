"""From slide files to feature files: tissue, tiles, encoder."""

import collections
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from wsi_jax.data.cohort import Row
from wsi_jax.data.disk_space import check_space
from wsi_jax.data.features import (
    FeatureError,
    Origin,
    check_features,
    is_whole,
    lost_tiles,
    write_features,
)
from wsi_jax.data.tiles import Reading, TileCounts, TileSource
from wsi_jax.evals.cost import Meter
from wsi_jax.report.contact import contact_sheet
from wsi_jax.run.encode import encode, unreadable
from wsi_jax.run.tiling import TiledSlide, Tiling, tile_slides
from wsi_jax.slides.grid import level0
from wsi_jax.slides.stain import stain_columns
from wsi_jax.training.compile import compile_encoder, replicate
from wsi_jax.training.flops import count_flops


class Ready:
    """A tiling's encoder on the devices: read and compiled when it is first needed.

    Args:
        tiling: not to be changed any more.
        mesh: over whose devices tiles are encoded.
    """

    def __init__(self, tiling: Tiling, mesh: Mesh):
        self.tiling, self.mesh = tiling, mesh
        self.settings, self.folder = tiling.fingerprint(), tiling.folder()

    @functools.cached_property
    def params(self) -> PyTree:
        """Of the encoder."""
        return replicate(self.tiling.encoder.params(), self.mesh)

    @functools.cached_property
    def apply(self) -> Callable:
        """(params, pixels [b h w 3]) -> features [b d]."""
        return compile_encoder(self.tiling.encoder.make().apply, self.mesh)

    @functools.cached_property
    def flops(self) -> int:
        """Of one tile."""
        side = self.tiling.tiles.size_px
        tile = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        return count_flops(self.tiling.encoder.make().apply, self.params, tile)


def extract(
    rows: Sequence[Row],
    ready: Ready,
    folder: pathlib.Path,
    *,
    batch: int,
    reading: Reading,
    meter: Meter,
    progress: Callable,
    check: Callable[[list[dict]], None] = lambda slides: None,
    sheet: pathlib.Path | None = None,
) -> list[dict]:
    """Writes the features of slides that have none yet; a bad slide stops nothing.

    Args:
        rows: the slides.
        ready: grid, tissue, encoder; of tiles, or of their children.
        folder: of all features; each tiling gets its own below it.
        batch: tiles at a time.
        reading: threads and buffers.
        meter: is charged with all of it.
        progress: (what, total) -> a context that gives `advance(n, note)`.
        check: called before the first tile is encoded, with what is returned in the
            end as far as it is known by then; may raise.
        sheet: where to draw what was taken as tissue, before the encoding; or None.

    Returns:
        For each slide what became of it, as `slides.csv` has it.

    Raises:
        FeatureError: the disk has no room for the features.
    """
    tiling, settings, folder = ready.tiling, ready.settings, folder / ready.folder
    path_of = lambda row: folder / f"{row.slide_id}.h5"
    found = look(
        rows, tiling, reading=reading, meter=meter, progress=progress, sheet=sheet
    )
    why = {s.row.slide_id: s.reason for s in found}
    usable = [s for s in found if not s.reason]
    todo = [s for s in usable if not is_whole(path_of(s.row), s.fingerprint(settings))]
    status = {s.row.slide_id: {"status": "refused", "reason": s.reason} for s in found}
    damaged = {s.row.slide_id: _damage(path_of(s.row)) for s in todo}
    for s in usable:
        name = s.row.slide_id
        lost = "" if name in damaged else _lost(path_of(s.row), len(s.yx))
        status[name] = {"status": "encoded", "reason": _joined(s.note, lost)}
    check(_lines(found, status))
    if todo:
        check_space(folder, sum(len(s.yx) for s in todo), tiling.encoder.make().dim)
        counts = TileCounts()
        encoded = encode(
            [TileSource(s.row.path, s.row.mpp, s.yx) for s in todo],
            tiling.tiles,
            ready.apply,
            params=ready.params,
            mesh=ready.mesh,
            batch=batch,
            reading=reading,
            meter=meter,
            counts=counts,
        )
        again = tiling.children > 1  # these slides have been counted with their tiles
        with progress("tiles", sum(len(s.yx) for s in todo)) as advance:
            for one in encoded:
                slide = todo[one.index]
                # Entered first: of a slide that has its file, the work is known.
                unit = f"{ready.folder}/{slide.row.slide_id}"
                meter.begin(unit)
                meter.enter(
                    unit,
                    slides=0 if again else 1,
                    tiles=len(one.kept),
                    bytes_decoded=counts.decoded.get(one.index, 0),
                    flops=len(one.kept) * ready.flops,
                )
                name, expect = slide.row.slide_id, slide.fingerprint(settings)
                refusal = one.refusal(reading.max_unreadable)
                if refusal:
                    why[name] = _joined(damaged[name], refusal)
                    status[name] = {"status": "refused", "reason": why[name]}
                else:
                    _write(path_of(slide.row), slide, one, tiling, expect)
                    reason = _joined(slide.note, damaged[name], one.note())
                    status[name]["reason"] = reason
                advance(len(slide.yx), _busy(meter, counts))
    if sheet and any(why[s.row.slide_id] for s in usable):
        contact_sheet([s.contact(why[s.row.slide_id]) for s in found], sheet)
    return _lines(found, status)


def look(
    rows: Sequence[Row],
    tiling: Tiling,
    *,
    reading: Reading,
    meter: Meter,
    progress: Callable,
    sheet: pathlib.Path | None = None,
) -> list[TiledSlide]:
    """Finds tissue and tiles on slides, of which nothing else is read; as `extract`."""
    with progress("tissue", len(rows)) as advance, meter.span("tiling"):
        found = tile_slides(rows, tiling, reading.threads, advance)
    if sheet:
        contact_sheet([s.contact(s.reason) for s in found], sheet)
    return found


def streamed(found: Sequence[TiledSlide]) -> list[dict]:
    """What became of slides that are streamed, as `slides.csv` has it."""
    status = {
        s.row.slide_id: {
            "status": "refused" if s.reason else "streamed",
            "reason": s.reason or s.note,
        }
        for s in found
    }
    return _lines(found, status)


def adopt(rows: Sequence[Row], folder: pathlib.Path) -> list[dict]:
    """What becomes of slides whose features were made elsewhere; as `extract`.

    Every file is read once: one with a number that is not finite, or that is not what
    its checksum says, is refused, and so are features of another length than most
    slides'.
    """
    shapes, reasons = {}, {}
    for row in rows:
        name = row.slide_id
        try:
            shapes[name] = check_features(folder / f"{name}.h5")
            reasons[name] = "" if shapes[name][0] else f"{name}: a bag without tiles"
        except FeatureError as error:
            reasons[name] = f"{name}: {error}"
    usual = collections.Counter(d for _, d in shapes.values()).most_common(1)
    for name, (_, d) in shapes.items():
        if d != usual[0][0]:
            reasons[name] = (
                f"{name}: features of {d} numbers, {usual[0][0]} elsewhere; extract "
                "all slides with one encoder"
            )
    return [
        {
            "slide_id": row.slide_id,
            "path": row.path,
            "label": row.label,
            "patient_id": row.patient_id,
            "site": row.site,
            "tiles": shapes.get(row.slide_id, (0, 0))[0],
            "status": "refused" if reasons[row.slide_id] else "precomputed",
            "reason": reasons[row.slide_id],
        }
        for row in rows
    ]


def _lines(found, status) -> list[dict]:
    """A line of slides.csv for each slide."""
    return [
        {
            "slide_id": s.row.slide_id,
            "path": s.row.path,
            "label": s.row.label,
            "patient_id": s.row.patient_id,
            "site": s.row.site,
            "mpp": s.mpp,
            "mpp_source": s.mpp_source,
            "height": s.shape[0],
            "width": s.shape[1],
            "background": s.background,
            **stain_columns(s.stain),
            "tissue_mm2": round(s.tissue_mm2, 4),
            "tiles": len(s.yx),
            **status[s.row.slide_id],
        }
        for s in found
    ]


def _damage(path) -> str:
    """A note on a feature file that is there and cannot be used."""
    try:
        if path.exists():
            check_features(path)
    except FeatureError:
        return f"{path.name} was damaged and is made anew"
    return ""


def _lost(path, n) -> str:
    """A note on the tiles that could not be read when a slide was encoded."""
    lost, reason = lost_tiles(path)
    return unreadable(lost, n, reason)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _write(path, slide, encoded, tiling, expect) -> None:
    """Writes one slide's features."""
    grid = tiling.tiles
    origin = Origin(
        slide_id=slide.row.slide_id,
        shape=slide.shape,
        mpp=slide.mpp,
        target_mpp=grid.mpp,
        size_px=grid.size_px,
        overlap_px=grid.overlap_px,
        encoder=tiling.encoder.name,
        config_hash=expect,
        bad_tiles=encoded.lost,
        bad_reason=encoded.reason,
    )
    yx = level0(slide.yx[encoded.kept], grid.mpp, slide.mpp)
    write_features(path, encoded.x, yx, origin)


def _busy(meter: Meter, counts: TileCounts) -> str:
    """Where the time goes, for a progress bar."""
    account = meter.as_dict()
    share = lambda name: account[f"span.{name}.percent"]
    readers = counts.reading_s / account["wall_s"]
    return (
        f"waited {share('wait'):.0f}% for reading and {share('encode'):.0f}% for "
        f"encoding, {readers:.1f} threads reading"
    )
