"""Checks that stop a run before it costs anything: batches, cohort and slides."""

from collections.abc import Collection, Sequence

from wsi_jax.data.cohort import (
    SPLITS,
    Cohort,
    CohortError,
    in_split,
    read_manifest,
)
from wsi_jax.data.lint import Lint, lint
from wsi_jax.files import AnyPath
from wsi_jax.run.config import Experiment
from wsi_jax.run.run_folder import RunError, read_json, write_csv, write_json
from wsi_jax.run.slide_record import SlideRecord
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.stain import StainRange, stain_range, unfamiliar

MANIFEST, SLIDES = "manifest.csv", "slides.json"
# Columns of the manifest that decide how a run trains and tests.
DECISIVE = ("label", "patient_id", "split", "fold", "mpp")


def check_divides(name: str, size: int, devices: int) -> None:
    """Checks that a batch divides among the devices; `name` is its flag."""
    if size < 1:
        raise RunError(f"--config.{name}={size}: at least 1")
    if size % devices:
        raise RunError(
            f"--config.{name}={size} does not divide among {devices} devices; "
            "make it a multiple of them"
        )


def check_cohort(part: Cohort, pretrained_on: Sequence[str]) -> Lint:
    """Lints a cohort to train, validate and test on.

    Args:
        part: the cohort, as a fold splits it.
        pretrained_on: slides, patients and clusters that its encoder has learnt from.

    Raises:
        CohortError: a split is empty, or the cohort cannot be trained on.
    """
    for split in SPLITS:
        if not in_split(part, split).rows:
            raise CohortError(
                f"no slide in split {split!r}; give it a larger share, or name some in "
                "the manifest, or leave splits empty there to have them drawn"
            )
    return lint(part, pretrained_on)


def check_unchanged(path: AnyPath, cohort: Cohort) -> None:
    """Checks that the cohort is the one with which the run began, if it has begun.

    Raises:
        RunError: naming the first slide that is not as it was.
    """
    if not path.is_file():
        return
    decisive = lambda rows: {
        row.slide_id: {name: getattr(row, name) for name in DECISIVE} for row in rows
    }
    before = decisive(read_manifest(path, cohort.classes).rows)
    now = decisive(cohort.rows)
    for name in [*before, *now]:
        was, here = before.get(name), now.get(name)
        if was != here:
            fields = [f for f in DECISIVE if was and here and was[f] != here[f]]
            change = ", ".join(f"{f} {was[f]!r} is now {here[f]!r}" for f in fields)
            change = change or ("is gone" if was else "is new")
            raise RunError(
                f"{path.parent} began with another cohort: slide {name!r}: {change}. "
                "Name a new --config.run_dir, or put the cohort back; "
                "--config.features spares the encoding of the slides that stay"
            )


def check_same_slides(
    path: AnyPath, slides: Sequence[TiledSlide], settings: str
) -> None:
    """Checks that slides and tissue are those with which the run began, if it has.

    A slide that was refused may have been mended since.

    Raises:
        RunError: naming a slide that is not as it was.
    """
    now = {s.row.slide_id: s.fingerprint(settings) for s in slides if not s.reason}
    before = read_json(path) if path.is_file() else {}
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            raise RunError(
                f"{path.parent} began with another file or tissue of slide {name!r}; "
                "put it back, or name a new --config.run_dir"
            )
    write_json(path, before | now)


def check_slides(
    folder: AnyPath,
    config: Experiment,
    parts: list[Cohort],
    pretrained_on: Sequence[str],
    records: Sequence[SlideRecord],
) -> None:
    """Writes slides.csv; checks that enough slides are left, in each fold's `parts`.

    Raises:
        RunError: more were refused than the config allows.
        CohortError: the others are no cohort to train on.
    """
    write_slides(folder, records)
    reasons = {record.slide_id: record.reason for record in records if record.refusal}
    if len(reasons) > config.max_refused * len(records):
        listed = "\n".join(f"  - {reason}" for reason in reasons.values())
        raise RunError(
            f"{len(reasons)} of {len(records)} slides were refused, more than "
            f"--config.max_refused={config.max_refused:g}; mend them, or raise it:\n"
            f"{listed}"
        )
    for part in parts:
        check_cohort(without(part, reasons), pretrained_on)


def write_slides(folder: AnyPath, records: Sequence[SlideRecord]) -> None:
    """Writes slides.csv: what has become of each slide, and why."""
    write_csv(folder / "slides.csv", [record.columns() for record in records])


def without(part: Cohort, refused: Collection[str]) -> Cohort:
    """The cohort without some slides."""
    rows = [row for row in part.rows if row.slide_id not in refused]
    return part._replace(rows=tuple(rows))


def training_stain_range(records: Sequence[SlideRecord], part: Cohort) -> StainRange:
    """The stains of the slides that a fold trains on; `part` has no refused slides."""
    training = _training_ids(part)
    stains = [record.stain for record in records if record.slide_id in training]
    return stain_range(stain for stain in stains if stain is not None)


def note_stains(
    records: Sequence[SlideRecord],
    parts: Sequence[Cohort],
    ranges: Sequence[StainRange],
) -> None:
    """Notes which slides are stained like none that any fold trains on; `ranges` are
    the folds' stains."""
    folds = list(zip(map(_training_ids, parts), ranges, strict=True))
    for record in records:
        if record.refusal or record.stain is None:
            continue
        differences = [
            unfamiliar(record.stain, stains)
            for training, stains in folds
            if record.slide_id not in training
        ]
        if differences and all(differences):
            record.note(f"stained like no training slide: {differences[0]}")


def _training_ids(part: Cohort) -> set[str]:
    return {row.slide_id for row in in_split(part, "train").rows}
