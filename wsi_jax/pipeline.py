"""From slide files to feature files: tissue, tiles, encoder."""

import pathlib
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from wsi_jax.data.cohort import Row
from wsi_jax.data.features import (
    FeatureError,
    Origin,
    feature_shape,
    is_whole,
    write_features,
)
from wsi_jax.data.space import check_space
from wsi_jax.data.tiles import Reading, TileCounts, TileSource
from wsi_jax.encode import encode
from wsi_jax.evals.cost import Meter
from wsi_jax.report.contact import contact_sheet
from wsi_jax.slides.grid import level0
from wsi_jax.survey import Tiling, survey_all
from wsi_jax.train.compile import replicate


def extract(
    rows: Sequence[Row],
    tiling: Tiling,
    folder: pathlib.Path,
    *,
    mesh: Mesh,
    batch: int,
    reading: Reading,
    meter: Meter,
    progress: Callable,
    sheet: pathlib.Path | None = None,
) -> list[dict]:
    """Writes the features of slides that have none yet; a bad slide stops nothing.

    Args:
        rows: the slides.
        tiling: grid, tissue, encoder.
        folder: of all features; each tiling gets its own below it.
        mesh: over whose devices tiles are encoded.
        batch: tiles at a time.
        reading: threads and buffers.
        meter: is charged with all of it.
        progress: (what, total) -> a context that gives `advance(n, note)`.
        sheet: where to draw what was taken as tissue, before the encoding; or None.

    Returns:
        For each slide what became of it, as `slides.csv` has it.

    Raises:
        FeatureError: the disk has no room for the features.
    """
    settings, folder = tiling.fingerprint(), folder / tiling.folder()
    path_of = lambda row: folder / f"{row.slide_id}.h5"
    with progress("tissue", len(rows)) as advance, meter.span("survey"):
        found = survey_all(rows, tiling, reading.threads, advance)
    why = {s.row.slide_id: s.reason for s in found}
    if sheet:
        contact_sheet([s.contact(s.reason) for s in found], sheet)
    usable = [s for s in found if not s.reason]
    todo = [s for s in usable if not is_whole(path_of(s.row), s.fingerprint(settings))]
    status = {s.row.slide_id: {"status": "refused", "reason": s.reason} for s in found}
    for s in usable:
        status[s.row.slide_id] = {"status": "encoded", "reason": ""}
    damaged = {s.row.slide_id: _damage(path_of(s.row)) for s in todo}
    if todo:
        check_space(folder, sum(len(s.yx) for s in todo), tiling.encoder.make().dim)
        counts = TileCounts()
        params = replicate(tiling.encoder.params(), mesh)
        encoded = encode(
            [TileSource(s.row.path, s.row.mpp, s.yx) for s in todo],
            tiling.grid,
            tiling.encoder,
            params=params,
            mesh=mesh,
            batch=batch,
            reading=reading,
            meter=meter,
            counts=counts,
        )
        with progress("tiles", sum(len(s.yx) for s in todo)) as advance:
            for one in encoded:
                slide = todo[one.index]
                name, expect = slide.row.slide_id, slide.fingerprint(settings)
                note = _write(path_of(slide.row), slide, one, tiling, expect)
                notes = damaged[name], note["reason"]
                note["reason"] = "; ".join(filter(None, notes))
                status[name] = note
                if note["status"] == "refused":
                    why[name] = note["reason"]
                advance(len(slide.yx), _busy(meter, counts))
        meter.add(
            slides=len(todo), tiles=counts.tiles, bytes_decoded=counts.decoded_bytes
        )
    if sheet and any(why[s.row.slide_id] for s in usable):
        contact_sheet([s.contact(why[s.row.slide_id]) for s in found], sheet)
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
            feature_shape(path)
    except FeatureError:
        return f"{path.name} was damaged and is made anew"
    return ""


def _write(path, slide, encoded, tiling, expect) -> dict[str, str]:
    """Writes one slide's features, unless too few of its tiles could be read."""
    lost = len(slide.yx) - len(encoded.kept)
    if not len(encoded.kept):
        return {"status": "refused", "reason": encoded.reason}
    origin = Origin(
        slide_id=slide.row.slide_id,
        shape=slide.shape,
        mpp=slide.mpp,
        target_mpp=tiling.grid.mpp,
        size_px=tiling.grid.size_px,
        overlap_px=tiling.grid.overlap_px,
        encoder=tiling.encoder.depth.name,
        config_hash=expect,
        bad_tiles=lost,
    )
    yx = level0(slide.yx[encoded.kept], tiling.grid.mpp, slide.mpp)
    write_features(path, encoded.x, yx, origin)
    note = f"{lost} of {len(slide.yx)} tiles unreadable: {encoded.reason}"
    return {"status": "encoded", "reason": note if lost else ""}


def _busy(meter: Meter, counts: TileCounts) -> str:
    """Where the time goes, for a progress bar."""
    account = meter.as_dict()
    share = lambda name: account[f"span.{name}.percent"]
    readers = counts.reading_s / account["wall_s"]
    return (
        f"waited {share('wait'):.0f}% for reading and {share('encode'):.0f}% for "
        f"encoding, {readers:.1f} threads reading"
    )
