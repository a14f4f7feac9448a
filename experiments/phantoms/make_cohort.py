"""Makes a synthetic cohort in CAMELYON16's layout: slides with a known truth.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py \
        --config.preset=fine_only --config.out=cohorts/fine_only

Run again, it goes on where it stopped. `experiments.phantoms.certify` then proves where
the signal is.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from absl import logging
from skimage import measure

from experiments.phantoms import synthetic
from experiments.phantoms.cohort_folder import (
    MakeCohortError,
    TileMaker,
    command,
    write_image,
)
from experiments.phantoms.texture_sources import TileSource
from wsi_jax.commands.config_command_line import launch
from wsi_jax.config_fields import COUNT, POSITIVE, SEED, FieldError
from wsi_jax.data.cohort import read_manifest
from wsi_jax.data.lint import format_counts, lint
from wsi_jax.files import write_text
from wsi_jax.run.run_folder import write_csv, write_json
from wsi_jax.slides.annotations import Polygon, write_asap
from wsi_jax.slides.pyramid_writer import rescale, write_pyramid

MACRO_UM = 2000
FOLDS = 5
SPOTS = {synthetic.LESION: "lesion", synthetic.SHAM: "sham", synthetic.TISSUE: "pair"}


@dataclasses.dataclass(kw_only=True)
class MakeCohort(TileMaker, synthetic.Practice):
    """A synthetic cohort on disk.

    Slides that share a style of texture are not independent, and intervals come out too
    narrow: there are so many styles that hardly two do. Fewer are quicker to draw.
    """

    kinds: tuple[str, ...] = ("colon_n", "colon_aca")
    styles: int = 4000

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{"seed": SEED, "mpp": (POSITIVE, math.inf)},
        **{"styles": COUNT, "side_px": (64, math.inf)},
        **dict.fromkeys(("prevalence", "fill", "suspect_share"), (0, 1)),
    }

    def validate(self) -> None:
        """Refuses numbers that no slide can be drawn with."""
        mpps, quality = self.artefacts.mpps, self.artefacts.quality
        if min(mpps, default=0) <= 0:
            raise FieldError("artefacts.mpps", "one number or more, each above 0")
        if not 0 < quality[0] <= quality[1]:
            raise FieldError("artefacts.quality", "least and most, as (70,90)")

    def source(self) -> TileSource:
        """The tiles; of fewer kinds than the preset's classes there are none."""
        n = synthetic.LAWS[self.preset].n_classes
        if self.tiles and len(self.kinds) < n:
            raise MakeCohortError(
                f"preset {self.preset.value} needs {n} kinds of tiles, "
                f"--config.kinds has {self.kinds}"
            )
        return super().source()


def make_cohort(config: MakeCohort) -> pathlib.Path:
    """Makes what is missing of a cohort.

    Returns:
        The path of its manifest, `slides.csv`.

    Raises:
        MakeCohortError: no folder named, or one that holds another cohort.
        SourceError: tiles that cannot serve.
        OSError: the disk is full or not to be written to.
    """
    out, source = config.checked(), config.source()
    names = synthetic.labels(source.kinds, config.preset)
    slides = synthetic.plan(config, names)
    config.claim()
    make = lambda slide: _make(slide, config, source, names)
    config.in_parallel(make, slides, "slides")
    _write_reference(out, slides, names)
    manifest = _write_manifest(config, slides, names)
    logging.info("%s", format_counts(lint(read_manifest(manifest, names))))
    return manifest


def slide_path(slide: synthetic.Planned, names: tuple[str, ...]) -> str:
    """Where a slide lies in the cohort's folder."""
    if slide.split == "test":
        return f"testing/images/{slide.slide_id}.tif"
    return f"training/{names[slide.label]}/{slide.slide_id}.tif"


def outlines(mask, scale: float) -> list[Polygon]:
    """ASAP polygons around the cells of a mask, `scale` level-0 pixels to a cell."""
    fine = 4  # contours cut corners: of quarter cells, then, not of cells
    big = np.pad(mask.repeat(fine, 0).repeat(fine, 1), 1).astype(np.uint8)
    polygons = []
    for contour in measure.find_contours(big, 0.5):
        contour = measure.approximate_polygon(contour, 0.01)[:-1]
        # Contours wind one way around high values and the other way around holes.
        y, x = contour.T
        hole = np.dot(y, np.roll(x, 1)) < np.dot(x, np.roll(y, 1))
        group = "_2" if hole else "_0"
        vertices = (contour - 0.5) / fine * scale
        polygons.append(Polygon(f"Annotation {len(polygons)}", group, vertices))
    return polygons


def _make(slide, config, source, names):
    """Writes one slide and its truth, the slide last: where it is, all is."""
    out = pathlib.Path(config.out)
    path = out / slide_path(slide, names)
    if path.is_file():
        return
    drawn = synthetic.draw_slide(slide, config, source)
    cell_um = synthetic.CELL_PX * source.mpp
    cell_px0 = cell_um / drawn.mpp
    write_image(out / "masks" / f"{slide.slide_id}_mask.png", drawn.truth)
    lesion = drawn.truth == synthetic.LESION
    polygons = outlines(lesion, cell_px0)
    if slide.label:
        folder = out / path.relative_to(out).parts[0] / "lesion_annotations"
        folder.mkdir(parents=True, exist_ok=True)
        write_asap(folder / f"{slide.slide_id}.xml", polygons)
    scale = source.mpp / drawn.mpp
    truth = {
        "mpp": drawn.mpp,
        "quality": drawn.quality,
        "clusters": drawn.clusters,
        "tissue_um2": float((drawn.truth != synthetic.GLASS).sum() * cell_um**2),
        "lesion_um2": float(lesion.sum() * cell_um**2),
        "longest_um": _longest(lesion) * cell_um,
        "spots": [
            {"y": y * scale, "x": x * scale, "what": SPOTS[value]}
            for y, x, value in drawn.spots
        ],
    }
    write_json(_truth_path(out, slide), truth)
    image = rescale(drawn.image, source.mpp, drawn.mpp)
    write_pyramid(path, image, drawn.mpp, drawn.quality)


def _longest(mask):
    regions = measure.regionprops(measure.label(mask))
    return max((float(r.axis_major_length) for r in regions), default=0.0)


def _truth_path(out, slide):
    return out / "truth" / f"{slide.slide_id}.json"


def _write_reference(out, slides, names):
    lines = []
    for slide in slides:
        if slide.split != "test":
            continue
        longest = json.loads(_truth_path(out, slide).read_text())["longest_um"]
        size = "Macro" if longest >= MACRO_UM else "Micro" if longest else "None"
        name = names[slide.label]
        lines.append(f"{slide.slide_id},{name.capitalize()},practice,{size}\n")
    (out / "testing").mkdir(exist_ok=True)
    write_text(out / "testing" / "reference.csv", "".join(lines))


def _write_manifest(config, slides, names):
    out, lines = pathlib.Path(config.out), []
    made_of = f"{config.preset.value}_{config.seed}"  # no patient is in two cohorts
    for slide in slides:
        truth = json.loads(_truth_path(out, slide).read_text())
        where = slide_path(slide, names)
        xml = f"{where.split('/')[0]}/lesion_annotations/{slide.slide_id}.xml"
        line = {
            "slide_id": slide.slide_id,
            "path": where,
            "label": names[slide.label],
            "patient_id": f"{made_of}_patient_{slide.number + 1:03}",
            "split": slide.split,
            "mpp": repr(truth["mpp"]),
            "site": slide.site,
            "mask_path": f"masks/{slide.slide_id}_mask.png",
            "annotation_path": xml if slide.label else "",
            "fold": "" if slide.split == "test" else str(slide.number % FOLDS),
            "cluster": ";".join(truth["clusters"]),
        }
        areas = {f"{name}_um2": truth[f"{name}_um2"] for name in ("lesion", "tissue")}
        lines.append(line | {name: f"{area:.0f}" for name, area in areas.items()})
    write_csv(out / "slides.csv", lines)
    return out / "slides.csv"


main = command(make_cohort)

if __name__ == "__main__":
    launch(main, "MakeCohort")
