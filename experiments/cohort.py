"""Slides and labels in, a run folder out: any cohort, any method.

    python -m experiments.cohort --config experiments/configs/cohort/abmil.py \
        --config.data.manifest=my_slides.csv

The same command resumes a run that was stopped, and prints the report of a finished
one. Any field of the config can be set from the command line: --config.grid.mpp=0.25.
"""

import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags, logging

from experiments import commandline, reporting
from experiments.experiment import Experiment, RunError, check_claim, claim, write_json
from experiments.progress import progress
from experiments.training import Predicted, train
from wsi_jax import configs, pipeline
from wsi_jax.data.cohort import SPLITS, Cohort, CohortError, in_split
from wsi_jax.data.lint import Lint, format_counts, lint
from wsi_jax.data.space import is_full
from wsi_jax.data.splits import use_fold
from wsi_jax.evals.cost import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.evals.summary import summarise
from wsi_jax.train.compile import make_mesh


def run(config: Experiment, folder: pathlib.Path) -> pathlib.Path:
    """Does what is left of a run.

    Returns:
        The path of its report.

    Raises:
        ValueError: anything wrong with config, cohort or slides, before training.
    """
    configs.validate(config)
    check_claim(folder, config)
    report = folder / "report.html"
    if report.is_file():
        return report
    mesh = make_mesh()
    check_batches(config, mesh.size)
    cohort = config.data.cohort()
    parts = [use_fold(cohort, fold) for fold in range(config.data.folds)] or [cohort]
    seen = config.encoder.seen()
    found = [check_cohort(part, seen) for part in parts]
    print(format_counts(found[0]), flush=True)  # of folds, the first stands for all
    claim(folder, config)

    account = folder / "cost.json"
    earlier = json.loads(account.read_text()) if account.is_file() else None
    meter = Meter(device_bytes=device_bytes, earlier=earlier)
    features = pathlib.Path(config.features or folder / "features")
    slides = pipeline.extract(
        cohort.rows,
        config.tiling(),
        features,
        mesh=mesh,
        batch=config.encode_batch,
        reading=config.reading,
        meter=meter,
        progress=progress,
        sheet=folder / "tissue.png",
    )
    write_json(account, meter.as_dict())
    write_csv(folder / "slides.csv", slides)
    refused = {s["slide_id"]: s["reason"] for s in slides if s["status"] == "refused"}
    for s in slides:
        if s["reason"] and s["slide_id"] not in refused:
            note = f"note: {s['slide_id']}: {s['reason']}"
            print(note, file=sys.stderr, flush=True)
    check_refused(refused, len(slides), config.max_refused)

    tested, thresholds = [], []
    for i, part in enumerate(parts):
        usable = [row for row in part.rows if row.slide_id not in refused]
        part = part._replace(rows=tuple(usable))
        check_cohort(part, seen)
        inside = folder / f"fold_{i}" if len(parts) > 1 else folder
        files = features / config.tiling().folder()
        called, threshold = train(config, part, files, inside, mesh, meter, progress)
        tested.append(called)
        thresholds.append(threshold)
    metrics, verdicts = evaluate(config, cohort, tested, thresholds)
    write_json(account, meter.as_dict())
    write_predictions(folder / "predictions.csv", verdicts, cohort)
    write_json(folder / "metrics.json", metrics)
    reporting.write(
        folder, config, cohort, slides, verdicts, metrics, meter.as_dict(), progress
    )
    return report


def evaluate(
    config: Experiment,
    cohort: Cohort,
    tested: list[list[Predicted]],
    thresholds: list[float | None],
) -> tuple[dict[str, float], list[Predicted]]:
    """Metrics of the test slides, and one verdict on each.

    Of several folds: where each tested its own slides, they are put together; where all
    tested the same ones, the mean probability decides. Both at the folds' mean
    threshold.
    """
    threshold = None if thresholds[0] is None else float(np.mean(thresholds))
    by_slide: dict[str, list[Predicted]] = {}
    for called in tested:
        for one in called:
            by_slide.setdefault(one.row.slide_id, []).append(one)
    verdicts = []
    for several in by_slide.values():
        p = np.mean([one.probabilities for one in several], 0)
        attention = np.mean([one.attention for one in several], 0)
        called = int(decide(p[None], threshold)[0])
        verdicts.append(
            several[0]._replace(probabilities=p, called=called, attention=attention)
        )
    labels = np.array([cohort.classes.index(v.row.label) for v in verdicts])
    found = summarise(
        labels,
        np.stack([v.probabilities for v in verdicts]),
        cohort.classes,
        seed=config.train.seed,
        patients=[v.row.patient_id for v in verdicts],
        sites=[v.row.site for v in verdicts],
        threshold=threshold,
    )
    return {f"test.{name}": value for name, value in found.items()}, verdicts


def check_batches(config: Experiment, devices: int) -> None:
    """Both batches divide among the devices: better said now than after extraction."""
    sizes = {"encode_batch": config.encode_batch, "train.batch": config.train.batch}
    for name, size in sizes.items():
        if size < 1 or size % devices:
            raise RunError(
                f"--config.{name}={size} does not divide among {devices} devices; "
                "make it a multiple of them"
            )


def check_cohort(part: Cohort, seen: Sequence[str]) -> Lint:
    """Lints a cohort to train, choose and test on; its encoder has `seen` these."""
    for split in SPLITS:
        if not in_split(part, split).rows:
            raise CohortError(
                f"no slide in split {split!r}; name some in the manifest, or leave "
                "splits empty there to have them drawn"
            )
    return lint(part, seen)


def check_refused(refused: dict[str, str], n: int, share: float) -> None:
    """Says which slides were refused; stops above a share of them."""
    for reason in refused.values():
        print(f"refused: {reason}", file=sys.stderr, flush=True)
    if len(refused) > share * n:
        raise RunError(
            f"{len(refused)} of {n} slides were refused (above), more than "
            f"--config.max_refused={share:g}; mend them, or raise it"
        )


def write_csv(path: pathlib.Path, lines: list[dict]) -> None:
    """Writes dicts of one shape as CSV, whole."""
    whole = path.with_name(f".{path.name}")
    with open(whole, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    whole.replace(path)


def write_predictions(path, verdicts: list[Predicted], cohort: Cohort) -> None:
    """One line a test slide: who it is, what it is called, each class's probability."""
    lines = []
    for v in verdicts:
        who = {
            name: getattr(v.row, name) for name in ("slide_id", "patient_id", "site")
        }
        said = {"label": v.row.label, "prediction": cohort.classes[v.called]}
        each = zip(cohort.classes, v.probabilities, strict=True)
        lines.append(who | said | {f"p_{name}": f"{p:.6f}" for name, p in each})
    write_csv(path, lines)


def device_bytes() -> int | None:
    """Peak bytes on the busiest device; None where it does not tell."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks, default=None)


def main(argv) -> None:
    """Runs the config on the command line; an error of the user's is one message."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config, file = flags.FLAGS.config, flags.FLAGS["config"].config_filename
    folder = pathlib.Path(
        config.run_dir or pathlib.Path("runs") / pathlib.Path(file).stem
    )
    config = dataclasses.replace(config, run_dir="")
    try:
        report = run(config, folder)
    except (ValueError, ArithmeticError, OSError) as error:
        raise SystemExit(explain(error, folder)) from error
    print((folder / "metrics.txt").read_text())
    print(f"report: {report}")


def explain(error: Exception, folder: pathlib.Path) -> str:
    """An error of the user's, or of the user's disk, as one message."""
    if is_full(error):
        where = getattr(error, "filename", None) or folder
        return (
            f"{where}: no space left on its disk. Free some and give the same command "
            "again: it goes on from where it was"
        )
    return f"{type(error).__name__}: {error}"


def launch() -> None:
    """Parses the command line and runs `main`."""
    commandline.launch(main)


if __name__ == "__main__":
    launch()
