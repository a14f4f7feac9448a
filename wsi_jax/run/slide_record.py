"""What becomes of each slide of a cohort: one record a slide, a line of slides.csv."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from wsi_jax.data.cohort import Row
from wsi_jax.data.features import FeatureError, check_feature_file
from wsi_jax.files import AnyPath
from wsi_jax.report.contact_sheet import contact_sheet
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.stain import Stain, stain_columns


@dataclasses.dataclass
class SlideRecord:
    """A slide on its way from the manifest to a prediction.

    Attributes:
        row: line of the manifest.
        purpose: its status unless it is refused: "encoded", "streamed", "precomputed"
            or "written".
        slide: its tissue and tiles; None where its features were made elsewhere.
        tiles: number of its tiles.
        refusal: why it cannot be used, or "".
        notes: what else is wrong with it; it is used all the same.
        features: its feature files, one for each tiling.
    """

    row: Row
    purpose: str
    slide: TiledSlide | None = None
    tiles: int = 0
    refusal: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    features: list[pathlib.Path] = dataclasses.field(default_factory=list)

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.row.slide_id

    @property
    def status(self) -> str:
        """Its purpose, or "refused"."""
        return "refused" if self.refusal else self.purpose

    @property
    def reason(self) -> str:
        """The refusal and the notes, or ""."""
        return "; ".join(filter(None, (self.refusal, *self.notes)))

    @property
    def stain(self) -> Stain | None:
        """Colour of its tissue, if that was read."""
        return self.slide.stain if self.slide else None

    def note(self, text: str) -> None:
        """Adds a note, unless it is there or empty."""
        if text and text not in self.notes:
            self.notes.append(text)

    def refuse(self, reason: str) -> None:
        """Refuses the slide, unless `reason` is empty; the first reason stays."""
        self.refusal = self.refusal or reason

    def add_reasons_of(self, other: "SlideRecord") -> None:
        """Takes over refusal and notes of the same slide's record in another tiling."""
        self.refuse(other.refusal)
        for text in other.notes:
            self.note(text)

    def message(self) -> str:
        """A line about a slide that is refused or has notes; "" of any other."""
        if not self.reason:
            return ""
        subject = "refused" if self.refusal else f"note: {self.slide_id}"
        return f"{subject}: {self.reason}"

    def columns(self) -> dict[str, Any]:
        """The slide's line of slides.csv."""
        row, slide = self.row, self.slide
        line = {
            "slide_id": row.slide_id,
            "path": row.path,
            "label": row.label,
            "patient_id": row.patient_id,
            "site": row.site,
        }
        if slide:
            line |= {
                "mpp": slide.mpp,
                "mpp_source": slide.mpp_source,
                "height": slide.shape[0],
                "width": slide.shape[1],
                "background": slide.background,
                **stain_columns(slide.stain),
                "tissue_mm2": round(slide.tissue_mm2, 4),
            }
        return line | {
            "tiles": self.tiles,
            "status": self.status,
            "reason": self.reason,
        }


def tiled_record(slide: TiledSlide, purpose: str) -> SlideRecord:
    """The record of a slide whose tissue has been looked for."""
    record = SlideRecord(slide.row, purpose, slide, len(slide.yx), slide.reason)
    record.note(slide.note)
    return record


def precomputed_records(rows: Sequence[Row], folder: pathlib.Path) -> list[SlideRecord]:
    """Records of slides whose features were made elsewhere; each file is read once.

    Refused are slides with a number that is not finite, with features that are not what
    their checksum says, and with features of another length than most slides have.
    """
    records, dims = [], {}
    for row in rows:
        name, path = row.slide_id, folder / f"{row.slide_id}.h5"
        record = SlideRecord(row, "precomputed", features=[path])
        records.append(record)
        try:
            record.tiles, dims[name] = check_feature_file(path)
            record.refuse("" if record.tiles else f"{name}: a bag without tiles")
        except FeatureError as error:
            record.refuse(f"{name}: {error}")
    usual = collections.Counter(dims.values()).most_common(1)
    for record in records:
        name = record.slide_id
        if name in dims and dims[name] != usual[0][0]:
            record.refuse(
                f"{name}: features of {dims[name]} numbers, {usual[0][0]} elsewhere; "
                "extract all slides with one encoder"
            )
    return records


def draw_tissue(records: Sequence[SlideRecord], path: AnyPath) -> None:
    """Draws a contact sheet: what was taken as tissue on each slide."""
    contact_sheet([record.slide.contact(record.refusal) for record in records], path)
