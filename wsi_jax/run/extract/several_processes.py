"""Slides shared out among the processes of a run; what each finds, all know."""

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from wsi_jax.data.cohort import Row
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.report.contact_sheet import Picture
from wsi_jax.run.slide_record import SlideRecord, tiled_record
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.stain import Stain
from wsi_jax.training.processes import (
    exchange_arrays,
    exchange_json,
    own_part,
    several,
)


def records_of_all(
    rows: Sequence[Row],
    purpose: str,
    find: Callable[[Sequence[Row]], list[SlideRecord]],
) -> list[SlideRecord]:
    """Records of all slides, of which each process makes some.

    Args:
        rows: the slides.
        purpose: of the records.
        find: makes the records of some of them.
    """
    own = find(own_part(rows))
    if not several():
        return own
    parts = exchange_arrays([_to_arrays(record.slide) for record in own])
    slides = [None] * len(rows)
    for process, part in enumerate(parts):
        slides[process :: len(parts)] = part
    return [
        tiled_record(_from_arrays(row, arrays), purpose)
        for row, arrays in zip(rows, slides, strict=True)
    ]


def share_outcomes(records: Sequence[SlideRecord]) -> None:
    """Tells all processes what has become of each one's own part of slides."""
    if not several():
        return
    files = lambda record: [str(path) for path in record.features]
    outcome = lambda record: (record.refusal, record.notes, files(record))
    parts = exchange_json([outcome(record) for record in own_part(records)])
    for process, part in enumerate(parts):
        for record, (refusal, notes, paths) in zip(
            records[process :: len(parts)], part, strict=True
        ):
            record.features = list(map(pathlib.Path, paths))
            record.refuse(refusal)
            for text in notes:
                record.note(text)


def share_work(meter: Meter, units: Iterable[str]) -> None:
    """Enters what each process has done in the account of all.

    Args:
        units: those of this process; some may have had no work.
    """
    done = {unit: work for unit in units if (work := meter.unit(unit))}
    for process, others in enumerate(exchange_json(done)):
        if process != jax.process_index():
            for unit, work in others.items():
                meter.begin(unit)
                meter.record(unit, **work)


def _to_arrays(slide: TiledSlide) -> dict[str, Any]:
    """A slide's tiles as arrays; the row is known."""
    plain = slide._asdict() | {"stain": slide.stain and list(slide.stain)}
    arrays = {"yx": plain.pop("yx")}
    if picture := plain.pop("picture"):
        arrays |= picture._asdict()
    del plain["row"]
    return arrays | {"plain": json.dumps(plain)}


def _from_arrays(row: Row, arrays: dict[str, np.ndarray]) -> TiledSlide:
    plain = json.loads(str(arrays["plain"]))
    if stain := plain["stain"]:
        plain["stain"] = Stain(bool(stain[0]), tuple(stain[1]))
    picture = None
    if "image" in arrays:
        picture = Picture(arrays["image"], arrays["tissue"])
    plain["shape"] = tuple(plain["shape"])
    return TiledSlide(row, arrays["yx"], picture=picture, **plain)
