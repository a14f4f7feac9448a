"""Predictions of a trained run on slides, one line and one heatmap a slide.

Only slides without a prediction are predicted, and those whose file, mpp, mask or run
has changed since: column `key` of predictions.csv.
"""

import csv
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.files import AnyPath, content_id
from wsi_jax.locks import locked
from wsi_jax.provenance import config_hash
from wsi_jax.run.config import Manifest, with_mpp
from wsi_jax.run.model_card import CARD
from wsi_jax.run.predict.ensemble import load
from wsi_jax.run.predict.slide_prediction import SlidePrediction
from wsi_jax.run.predict.slide_predictor import SlidePredictor, row_of_path
from wsi_jax.run.run_folder import RunError, read_csv, write_csv
from wsi_jax.slides.slide import SlideError

TABLES = (".csv", ".tsv")
TABLE, ENCODER = "predictions.csv", "encoder.safetensors"


class Options(NamedTuple):
    """How slides are predicted.

    Attributes:
        reading: threads, and the share of tiles that may be unreadable.
        at_once: slides zoomed into at once; methods that do not zoom ignore it.
        saliency: draw the gradient at a slide's pixels too.
    """

    reading: Reading = Reading()
    at_once: int = 16
    saliency: bool = False


def predict_slides(
    predictor: SlidePredictor,
    run: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    rows: Sequence[Row],
    options: Options,
) -> list[dict]:
    """Predicts the slides that have no prediction yet, and draws their heatmaps.

    Args:
        predictor: the run, opened by `open_run`.
        run: its folder or folders, as the table names it.
        out: folder of the table and the heatmaps.
        rows: slides of different names, from `find_rows`.
        options: how.

    Returns:
        The lines of predictions.csv.
    """
    check_names(rows)
    with locked(out, "name another --out"):
        return _predict(predictor, run, out, rows, options)


def _predict(predictor, run, out, rows, options):
    table, lines, todo = out / TABLE, {}, []
    for row in rows:
        key = prediction_key(predictor, row, options.reading.max_unreadable)
        lines[row.slide_id] = empty_line(predictor, row, run, key)
    before = read_predictions(table, list(next(iter(lines.values()))))
    for row in rows:
        line = lines[row.slide_id]
        pictures = [out / f"{row.slide_id}.png"]
        pictures += [saliency_path(row, out)] * options.saliency
        if line["key"] in before and all(path.is_file() for path in pictures):
            line |= before[line["key"]] | {"path": row.path}
        else:
            todo.append(row)
    done = {row.slide_id for row in rows} - {row.slide_id for row in todo}
    write = lambda: write_csv(table, [lines[name] for name in lines if name in done])
    results = predictor.predict_many(
        todo, reading=options.reading, at_once=options.at_once
    )
    for row, result in zip(todo, results, strict=True):
        lines[row.slide_id] |= draw(predictor, row, result, out, options.saliency)
        done.add(row.slide_id)
        write()
    if not todo:
        write()
    return list(lines.values())


def find_rows(given: Sequence[pathlib.Path], mpp: float | None) -> list[Row]:
    """The slides of files, folders and CSVs, in order.

    Args:
        given: their paths.
        mpp: um/px of slides for which neither a CSV nor the file says it.

    Raises:
        CohortError: a folder without slides, or a CSV that is none.
    """
    rows = []
    for path in given:
        if path.is_dir() or path.suffix.casefold() in TABLES:
            rows += Manifest(manifest=str(path)).slides()
        else:
            rows.append(row_of_path(path))
    return list(with_mpp(Cohort(tuple(rows), ()), mpp).rows)


def check_names(rows: Sequence[Row]) -> None:
    """Checks that every slide has a heatmap of its own.

    Raises:
        ValueError: naming the slides of one name.
    """
    count = Counter(row.slide_id.casefold() for row in rows)
    twice = [row.path for row in rows if count[row.slide_id.casefold()] > 1]
    if twice:
        raise ValueError(
            f"slides of one name would share a line and a picture: {', '.join(twice)}; "
            "predict them into different folders (--out)"
        )


def open_run(
    run: AnyPath | Sequence[AnyPath],
    saliency: bool = False,
    refuse_unfamiliar_stains: bool = False,
    all_devices: bool = False,
) -> SlidePredictor:
    """Opens a trained run, or several that predict together.

    Raises:
        FileNotFoundError, ValueError: why it predicts no slides, or has no saliency.
    """
    for folder in [run] if isinstance(run, os.PathLike) else run:
        if (folder / ENCODER).is_file() and not (folder / CARD).is_file():
            raise RunError(
                f"{folder} was trained on tiles and judges no slides, nor has it "
                f"pixels of them to show; its {ENCODER} makes features of tiles for a "
                "run on slides (--config.encoder.weights)"
            )
    predictor = load(
        run,
        refuse_unfamiliar_stains=refuse_unfamiliar_stains,
        all_devices=all_devices,
    )
    if saliency:
        predictor.check_saliency()
    return predictor


def prediction_key(predictor: SlidePredictor, row: Row, max_unreadable: float) -> str:
    """16 hex digits that change with anything that a prediction depends on.

    "" for files that cannot be read.
    """
    files = filter(None, (row.path, row.mask_path))
    try:
        content = [os.path.isfile(path) and content_id(path) for path in files]
    except OSError:
        return ""
    if not all(content):
        return ""
    settings = row.slide_id, row.mpp, max_unreadable
    return config_hash(predictor.digest, *settings, *content)


def empty_line(
    predictor: SlidePredictor,
    row: Row,
    run: AnyPath | Sequence[AnyPath],
    key: str,
) -> dict:
    """The line of predictions.csv of a slide without a prediction."""
    runs = [run] if isinstance(run, os.PathLike) else run
    ends = ("", "_low", "_high") if len(runs) > 1 else ("",)
    classes = {f"p_{name}{end}": "" for end in ends for name in predictor.classes}
    return {
        "slide_id": row.slide_id,
        "path": row.path,
        "prediction": "",
        **classes,
        "mpp": "",
        "tiles": 0,
        "reason": "",
        "run": ", ".join(map(str, runs)),
        "key": key,
    }


def read_predictions(table: AnyPath, columns: Sequence[str]) -> dict[str, dict]:
    """The lines with a prediction that a table of these columns has, by key."""
    try:
        lines = read_csv(table)
    except (FileNotFoundError, ValueError, csv.Error):
        return {}
    return {
        line["key"]: line
        for line in lines
        if list(line) == columns and line["prediction"]
    }


def draw(
    predictor: SlidePredictor,
    row: Row,
    result: SlidePrediction | SlideError,
    out: AnyPath,
    saliency: bool,
) -> dict:
    """Draws the heatmap of a slide; what its line of predictions.csv has of it."""
    try:
        if isinstance(result, SlideError):
            raise result
        result.heatmap(out / f"{row.slide_id}.png")
        if result.order is not None:
            write_csv(out / f"{row.slide_id}_zooms.csv", zoom_lines(result))
        if saliency:
            png, kwargs = (
                saliency_path(row, out),
                {"mpp": row.mpp, "mask": row.mask_path},
            )
            predictor.draw_saliency(row.path, png, result.label, **kwargs)
    except SlideError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        for ending in (".png", "_zooms.csv", "_saliency.png"):  # of one before
            (out / f"{row.slide_id}{ending}").unlink(missing_ok=True)
        return {"reason": str(error)}
    each = {f"p_{name}": f"{p:.9g}" for name, p in result.probabilities.items()}
    for name, ends in result.spread.items() if result.members else ():
        each |= {f"p_{name}_low": f"{ends[0]:.9g}", f"p_{name}_high": f"{ends[1]:.9g}"}
    print(result.title(), flush=True)
    if result.note:
        print(f"note: {row.slide_id}: {result.note}", file=sys.stderr, flush=True)
    return {
        "prediction": result.label,
        **each,
        "mpp": f"{result.mpp:.6g}",
        "tiles": result.tiles,
        "reason": result.note,
    }


def zoom_lines(prediction: SlidePrediction) -> list[dict]:
    """The tiles zoomed into, in order: corner and side in level-0 pixels."""
    size = f"{prediction.tile_px:.2f}"
    return [
        {"step": step, "y": y, "x": x, "size_px": size}
        for step, (y, x) in enumerate(prediction.yx[prediction.order].tolist(), 1)
    ]


def saliency_path(row: Row, out: AnyPath) -> AnyPath:
    """Where the gradient at a slide's pixels is drawn."""
    return out / f"{row.slide_id}_saliency.png"
