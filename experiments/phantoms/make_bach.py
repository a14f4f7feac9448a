"""Makes a synthetic cohort in BACH's layout: flat fields of four classes.

    python -m experiments.phantoms.make_bach \
        --config experiments/configs/practice.py:bach \
        --config.tiles=LC25000 --config.out=cohorts/bach

Fields are mosaics of real tiles, or of drawn ones without `--config.tiles`
(`experiments.phantoms.bach_fields`). Every cluster of tiles belongs to one patient, and
every patient has fields of all classes, so folds by patient share no tile. Tiles side
by side are no tissue all the same, and kinds of LC25000 differ in colour: the task is
easy, and a result proves nothing about patients. Run again, it goes on where it
stopped.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from PIL import Image

from experiments.phantoms.bach_fields import Field, Fields, draw_field, plan
from experiments.phantoms.cohort_folder import MakeCohortError, claim, in_parallel
from experiments.phantoms.presets import Preset
from experiments.phantoms.texture_sources import Folder, Textures
from wsi_jax import config_io
from wsi_jax.cli import errors_in_one_line, launch
from wsi_jax.config_io import COUNT, POSITIVE, SEED, FieldError
from wsi_jax.data.bach import CLASSES, MPP, TRUTH
from wsi_jax.files import replacing, write_text
from wsi_jax.run.config import write_csv, write_json

PATIENTS = "patients.csv"
PREFIXES = ("n", "b", "is", "iv")


@dataclasses.dataclass(kw_only=True)
class MakeBach(Fields):
    """A synthetic cohort of fields on disk.

    Attributes:
        out: folder to write, made when absent.
        tiles: folder of real tiles with an index.csv; "" for drawn textures.
        kinds: classes of that index.csv for Normal, Benign, InSitu and Invasive.
        mpp: micrometres per pixel of the tiles. LC25000 has about 1.
        styles: of each kind of drawn texture, a third of a second each.
        workers: fields drawn at once; 0 for one per processor.
    """

    out: str = ""
    tiles: str = ""
    kinds: tuple[str, ...] = ("colon_n", "colon_aca", "lung_n", "lung_scc")
    mpp: float = 1.0
    styles: int = 100
    workers: int = 0

    @property
    def preset(self) -> Preset:
        """For reports: lesions here are plain to see."""
        return Preset.PLAIN

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{"seed": SEED, "mpp": (POSITIVE, math.inf)},
        **dict.fromkeys(("height", "width"), (64, math.inf)),
        **dict.fromkeys(("styles", "patients", "per_class"), COUNT),
    }

    def validate(self) -> None:
        """Refuses numbers that no field can be drawn with."""
        if not 0 < self.share[0] <= self.share[1] <= 0.8:
            raise FieldError("share", "least and most, as (0.15,0.6), up to 0.8")
        if self.tiles and len(set(self.kinds)) != len(CLASSES):
            raise FieldError("kinds", f"four, for {', '.join(CLASSES)}")


def main(config: MakeBach, name: str) -> None:
    """Makes what the command line asks for."""
    del name
    with errors_in_one_line(config.out):
        make_bach(config)


def make_bach(config: MakeBach) -> pathlib.Path:
    """Makes what is missing of a cohort.

    Returns:
        The path of its `patients.csv`: file, patient and cluster.

    Raises:
        MakeCohortError: no folder named, a number that makes no sense, or a folder
            that holds another cohort.
        SourceError: tiles that cannot serve.
        OSError: the disk is full or not to be written to.
    """
    if not config.out:
        raise MakeCohortError("no folder to write to; add --config.out=FOLDER")
    config_io.validate(config)
    out = pathlib.Path(config.out)
    source = (
        Folder(config.tiles, config.kinds, config.mpp)
        if config.tiles
        else Textures(config.mpp, config.styles)
    )
    claim(out, config)
    fields = plan(config)
    make = lambda field: _make(field, config, source)
    in_parallel(make, fields, config.workers, "fields")
    lines = [f"{name_of(field)}.tif,{CLASSES[field.label]}\n" for field in fields]
    write_text(out / "Photos" / TRUTH, "".join(lines))
    write_csv(out / PATIENTS, [_line(out, field) for field in fields])
    return out / PATIENTS


def name_of(field: Field) -> str:
    """As BACH names its images: n001, b001, is001, iv001."""
    return f"{PREFIXES[field.label]}{field.index + 1:03}"


def _make(field, config, source):
    """Writes one field and its truth, the field last: where it is, all is."""
    out = pathlib.Path(config.out)
    path = out / "Photos" / CLASSES[field.label] / f"{name_of(field)}.tif"
    if path.is_file():
        return
    pixels, clusters, share = draw_field(field, config, source, MPP)
    write_json(_truth(out, field), {"share": share, "clusters": clusters})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "tiff")


def _line(out, field):
    """What patients.csv says of a field."""
    clusters = json.loads(_truth(out, field).read_text())["clusters"]
    patient = f"patient_{field.patient + 1:02}"
    file = f"{name_of(field)}.tif"
    return {"file": file, "patient": patient, "cluster": ";".join(clusters)}


def _truth(out, field):
    return out / "truth" / f"{name_of(field)}.json"


if __name__ == "__main__":
    launch(main, "MakeBach")
