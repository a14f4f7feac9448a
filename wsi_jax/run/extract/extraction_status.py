"""How far an extraction is, by its feature files and records; no slide is opened."""

import collections
import dataclasses
import pathlib
from typing import NamedTuple

from wsi_jax.data.features import FeatureError, feature_shape
from wsi_jax.files import AnyPath
from wsi_jax.run.config import Experiment
from wsi_jax.run.extract.extract_command import (
    check_extraction,
    shards_folder,
    slides_of,
)
from wsi_jax.run.run_folder import features_folder, read_csv

NAMED = 5  # missing slides that are listed


class SlideStatus(NamedTuple):
    """A slide that is "done", "missing", "refused" or "damaged", and why."""

    slide_id: str
    status: str
    reason: str = ""


def print_status(config: Experiment, folder: AnyPath, command: str) -> None:
    """Prints the status of an extraction, and the command that goes on with it.

    Raises:
        SystemExit: with 1, where slides are neither done nor refused.
        ValueError: anything wrong with config or cohort.
    """
    slides = slide_statuses(config, folder)
    counts = collections.Counter(slide.status for slide in slides)
    parts = (f"{counts[name]} {name}" for name in ("done", "missing", "refused"))
    print(f"{len(slides)} slides: {', '.join(parts)}, {counts['damaged']} damaged")
    for slide in slides:
        if slide.reason:
            print(f"{slide.status}: {slide.reason}")
    missing = [slide.slide_id for slide in slides if slide.status == "missing"]
    if missing:
        more = f" and {len(missing) - NAMED} more" * (len(missing) > NAMED)
        print(f"missing: {', '.join(missing[:NAMED])}{more}")
    left = [i for i, one in enumerate(slides) if one.status in ("missing", "damaged")]
    if not left:
        return
    shards = sorted(shards_folder(config, folder).glob("*_of_*"), key=_written)
    if shards:
        n = int(shards[-1].name.rpartition("_of_")[2])
        tasks = ",".join(map(str, sorted({i % n for i in left})))
        print(f"shards with slides left, of {n}: {tasks}")
    print(f"to go on: {command}")
    raise SystemExit(1)


def slide_statuses(config: Experiment, folder: AnyPath) -> list[SlideStatus]:
    """The status of all slides, of whatever shard, in the manifest's order.

    Of a feature file only the header is read, which shows one that is cut short. Its
    checksum is compared when it is next used.
    """
    check_extraction(config)
    if hasattr(config.data, "mpp"):  # to fill it in, slides would be opened
        data = dataclasses.replace(config.data, mpp=None)
        config = dataclasses.replace(config, data=data)
    features = features_folder(config, folder)
    folders = [features / tiling.folder() for tiling in config.tilings()]
    tables = list(shards_folder(config, folder).glob("*/slides.csv"))
    if folders[0].is_dir():  # else the table of the run is of other settings
        tables += folder.glob("slides.csv")
    lines = (line for path in sorted(tables, key=_written) for line in read_csv(path))
    records = {line["slide_id"]: line for line in lines}  # the last of each slide
    statuses = []
    for name in (row.slide_id for row in slides_of(config)):
        record = records.get(name, {})
        if record.get("status") == "refused":
            statuses.append(SlideStatus(name, "refused", record["reason"]))
        else:
            files = [folder / f"{name}.h5" for folder in folders]
            statuses.append(_made(name, files))
    return statuses


def _made(name: str, files: list[pathlib.Path]) -> SlideStatus:
    """The status of a slide that is not refused, by its feature files."""
    for path in files:
        if not path.exists():
            return SlideStatus(name, "missing")
        try:
            feature_shape(path)
        except FeatureError as error:
            return SlideStatus(name, "damaged", f"{name}: {error}")
    return SlideStatus(name, "done")


def _written(path: pathlib.Path) -> int:
    return path.stat().st_mtime_ns
