"""What stops a run before it costs anything: its batches, cohort and slides."""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence

from wsi_jax.data.cohort import (
    SPLITS,
    Cohort,
    CohortError,
    in_split,
    read_manifest,
)
from wsi_jax.data.lint import Lint, lint
from wsi_jax.run.config import (
    Experiment,
    RunError,
    read_json,
    write_csv,
    write_json,
)
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.stain import StainRange, stain_of, stain_range, unfamiliar
from wsi_jax.types import Stage

MANIFEST, SLIDES = "manifest.csv", "slides.json"
# What of a slide decides how a run trains and judges.
DECISIVE = ("label", "patient_id", "split", "fold", "mpp")


def check_batches(config: Experiment, devices: int) -> None:
    """Both batches divide among the devices: better said now than after extraction."""
    if config.tilings():
        check_divides("encode_batch", config.encode_batch, devices)
    devices = config.input.devices(config.method, devices)
    check_divides("train.batch", config.train.batch, devices)


def check_divides(name: str, size: int, devices: int) -> None:
    """A batch divides among the devices; `name` is its flag."""
    if size < 1:
        raise RunError(f"--config.{name}={size}: at least 1")
    if size % devices:
        raise RunError(
            f"--config.{name}={size} does not divide among {devices} devices; "
            "make it a multiple of them"
        )


def check_plans(config: Experiment, stages: Sequence[Stage], devices: int) -> None:
    """What stages have of their own is as sound as what the run has."""
    for stage in stages:
        if not stage.overrides:
            continue
        own = dataclasses.replace(config, train=config.plan(stage))
        try:
            check_batches(own, devices)
        except RunError as error:
            raise RunError(f"stage {stage.name!r}: {error}") from error


def check_cohort(part: Cohort, seen: Sequence[str]) -> Lint:
    """Lints a cohort to train, choose and test on; its encoder has `seen` these."""
    for split in SPLITS:
        if not in_split(part, split).rows:
            raise CohortError(
                f"no slide in split {split!r}; give it a larger share, or name some in "
                "the manifest, or leave splits empty there to have them drawn"
            )
    return lint(part, seen)


def check_unchanged(path: pathlib.Path, cohort: Cohort) -> None:
    """The cohort is the one with which the run began, or the run begins now.

    Raises:
        RunError: naming the first slide that is not as it was.
    """
    if not path.is_file():
        return
    known = lambda rows: {
        row.slide_id: {name: getattr(row, name) for name in DECISIVE} for row in rows
    }
    before, now = known(read_manifest(path, cohort.classes).rows), known(cohort.rows)
    for name in [*before, *now]:
        was, here = before.get(name), now.get(name)
        if was != here:
            fields = [f for f in DECISIVE if was and here and was[f] != here[f]]
            told = ", ".join(f"{f} {was[f]!r} is now {here[f]!r}" for f in fields)
            told = told or ("is gone" if was else "is new")
            raise RunError(
                f"{path.parent} began with another cohort: slide {name!r}: {told}. "
                "Name a new --config.run_dir, or put the cohort back; "
                "--config.features spares the encoding of the slides that stay"
            )


def check_same_slides(
    path: pathlib.Path, found: list[TiledSlide], settings: str
) -> None:
    """The slides and their tissue are those with which the run began, or it begins.

    A slide that was refused may have been mended since.

    Raises:
        RunError: naming a slide that is not as it was.
    """
    now = {s.row.slide_id: s.fingerprint(settings) for s in found if not s.reason}
    before = read_json(path) if path.is_file() else {}
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            raise RunError(
                f"{path.parent} began with another file or tissue of slide {name!r}; "
                "put it back, or name a new --config.run_dir"
            )
    write_json(path, before | now)


def check_slides(
    folder: pathlib.Path,
    config: Experiment,
    parts: list[Cohort],
    seen: Sequence[str],
    slides: list[dict],
) -> set[str]:
    """Writes slides.csv; stops where too few slides are left. The ids of the others."""
    write_csv(folder / "slides.csv", slides)
    reasons = {s["slide_id"]: s["reason"] for s in slides if s["status"] == "refused"}
    if len(reasons) > config.max_refused * len(slides):
        listed = "\n".join(f"  - {reason}" for reason in reasons.values())
        raise RunError(
            f"{len(reasons)} of {len(slides)} slides were refused, more than "
            f"--config.max_refused={config.max_refused:g}; mend them, or raise it:\n"
            f"{listed}"
        )
    for part in parts:
        check_cohort(without(part, reasons), seen)
    return set(reasons)


def without(part: Cohort, refused: Collection[str]) -> Cohort:
    """The cohort without some slides."""
    rows = [row for row in part.rows if row.slide_id not in refused]
    return part._replace(rows=tuple(rows))


def learnt_stains(slides: Sequence[dict], part: Cohort) -> StainRange:
    """The stains of the slides that a fold trains on.

    Args:
        slides: rows of slides.csv.
        part: the cohort, as the fold splits it, without refused slides.
    """
    training = _training_ids(part)
    stains = [stain_of(s) for s in slides if s["slide_id"] in training]
    return stain_range(stain for stain in stains if stain is not None)


def note_stains(
    slides: Sequence[dict], parts: Sequence[Cohort], ranges: Sequence[StainRange]
) -> None:
    """Notes, in place, which slides are stained like none that any fold trains on.

    Args:
        slides: rows of slides.csv.
        parts: the cohort, as each fold splits it.
        ranges: the stains that each fold trains on.
    """
    folds = list(zip(map(_training_ids, parts), ranges, strict=True))
    for s in slides:
        stain = stain_of(s)
        if s["status"] == "refused" or stain is None:
            continue
        differences = [
            unfamiliar(stain, learnt)
            for training, learnt in folds
            if s["slide_id"] not in training
        ]
        if differences and all(differences):
            note = f"stained like no training slide: {differences[0]}"
            s["reason"] = "; ".join(filter(None, (s["reason"], note)))


def _training_ids(part: Cohort) -> set[str]:
    return {row.slide_id for row in in_split(part, "train").rows}
