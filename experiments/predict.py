"""The verdict of a trained run on slides, with heatmaps.

    python -m experiments.predict --run runs/demo --out verdicts slide.svs FOLDER my.csv

Slides are files, folders of them, and CSVs with the columns `path` and, if you like,
`slide_id`, `mpp` and `mask_path` (for a run with tissue.source=MASK).

Writes predictions.csv, one line a slide, and NAME.png beside it; of a run that zooms
also NAME_zooms.csv, the tiles zoomed into, in order; with `--saliency` also
NAME_saliency.png: which pixels the verdict of a streamed run hangs on. A slide that
cannot be used has its reason there instead of a verdict, and the others go on; where
all are refused the exit status is 1. Given again, the command judges only slides
without a verdict, or whose file, mpp, mask or run has changed since: column `key`.
"""

import argparse
import csv
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from experiments.cohort import explain
from experiments.pretraining.pretrain_tiles import WEIGHTS as ENCODER
from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.features import config_hash
from wsi_jax.data.tiles import Reading
from wsi_jax.files import content_id
from wsi_jax.locks import locked
from wsi_jax.run.config import Manifest, read_csv, with_mpp, write_csv
from wsi_jax.run.predictor import CARD, Predictor, Verdict, as_row, load
from wsi_jax.run.stopping import stoppable
from wsi_jax.slides.resolution import SANE_MPP
from wsi_jax.slides.slide import SlideError
from wsi_jax.types import Takes

TABLES = (".csv", ".tsv")
# This command's flags for fields of a config.
FLAGS = {"data.mpp": "--mpp", "reading.max_unreadable": "--max-unreadable"}


def find_rows(given: Sequence[pathlib.Path], mpp: float | None) -> list[Row]:
    """The slides of files, folders and CSVs, in order.

    Args:
        given: paths of them.
        mpp: of those for which neither a CSV nor the file tells one.

    Raises:
        CohortError: a folder without slides, or a CSV that is none.
    """
    rows = []
    for path in given:
        if path.is_dir() or path.suffix.casefold() in TABLES:
            rows += Manifest(manifest=str(path)).slides()
        else:
            rows.append(as_row(path))
    return list(with_mpp(Cohort(tuple(rows), ()), mpp).rows)


def key_of(predictor: Predictor, row: Row, max_unreadable: float) -> str:
    """16 hex digits that change with anything that a verdict hangs on; "" for files
    that cannot be read."""
    files = filter(None, (row.path, row.mask_path))
    try:
        content = [os.path.isfile(path) and content_id(path) for path in files]
    except OSError:
        return ""
    if not all(content):
        return ""
    settings = row.slide_id, row.mpp, max_unreadable
    return config_hash(predictor.digest, *settings, *content)


def blank(predictor: Predictor, row: Row, run: pathlib.Path, key: str) -> dict:
    """The line of predictions.csv of a slide without a verdict."""
    classes = {f"p_{name}": "" for name in predictor.card.classes}
    return {
        "slide_id": row.slide_id,
        "path": row.path,
        "prediction": "",
        **classes,
        "mpp": "",
        "tiles": 0,
        "reason": "",
        "run": str(run),
        "key": key,
    }


def line(
    predictor: Predictor,
    row: Row,
    verdict: Verdict | SlideError,
    out: pathlib.Path,
    saliency: bool,
) -> dict:
    """Draws what a verdict rests on; what its line of predictions.csv has of it."""
    try:
        if isinstance(verdict, SlideError):
            raise verdict
        verdict.heatmap(out / f"{row.slide_id}.png")
        if verdict.order is not None:
            write_csv(out / f"{row.slide_id}_zooms.csv", zooms(verdict))
        if saliency:
            how = {"mpp": row.mpp, "mask": row.mask_path}
            png = saliency_of(row, out)
            predictor.saliency(row.path, png, verdict.label, **how)
    except SlideError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        for ending in (".png", "_zooms.csv", "_saliency.png"):  # of a verdict before
            (out / f"{row.slide_id}{ending}").unlink(missing_ok=True)
        return {"reason": str(error)}
    each = {f"p_{name}": f"{p:.6f}" for name, p in verdict.probabilities.items()}
    print(f"{row.slide_id}: {verdict.label}, {verdict.probabilities}", flush=True)
    if verdict.note:
        print(f"note: {row.slide_id}: {verdict.note}", file=sys.stderr, flush=True)
    return {
        "prediction": verdict.label,
        **each,
        "mpp": f"{verdict.mpp:.6g}",
        "tiles": tiles(predictor, verdict),
        "reason": verdict.note,
    }


def zooms(verdict: Verdict) -> list[dict]:
    """The tiles zoomed into, in order: corner and side in level-0 pixels."""
    size = f"{verdict.tile_px:.2f}"
    return [
        {"step": step, "y": y, "x": x, "size_px": size}
        for step, (y, x) in enumerate(verdict.yx[verdict.order].tolist(), 1)
    ]


def tiles(predictor: Predictor, verdict: Verdict) -> int:
    """How many a verdict rests on; of a run that zooms, at both resolutions."""
    method, n = predictor.card.method, len(verdict.attention)
    if method.takes is not Takes.zooms:
        return n
    zoomed = n if verdict.order is None else len(verdict.order)
    return n + method.children**2 * zoomed


def saliency_of(row: Row, out: pathlib.Path) -> pathlib.Path:
    """Where the gradient at a slide's pixels is drawn."""
    return out / f"{row.slide_id}_saliency.png"


def earlier(table: pathlib.Path, names: Sequence[str]) -> dict[str, dict]:
    """The lines with a verdict that a table of these columns has, by key."""
    try:
        lines = read_csv(table)
    except (FileNotFoundError, ValueError, csv.Error):
        return {}
    return {
        one["key"]: one for one in lines if list(one) == names and one["prediction"]
    }


def check_names(rows: Sequence[Row]) -> None:
    """Every slide has a picture of its own."""
    count = Counter(row.slide_id.casefold() for row in rows)
    twice = [row.path for row in rows if count[row.slide_id.casefold()] > 1]
    if twice:
        raise SystemExit(
            f"slides of one name would share a line and a picture: {', '.join(twice)}; "
            "predict them into different folders (--out)"
        )


def opened(
    run: pathlib.Path, saliency: bool, refuse_unfamiliar_stains: bool = False
) -> Predictor:
    """The run, or why it judges no slides."""
    if (run / ENCODER).is_file() and not (run / CARD).is_file():
        raise SystemExit(
            f"{run} was trained on tiles and judges no slides, nor has it pixels of "
            f"them to show; its {ENCODER} makes features of tiles for a run on slides "
            "(--config.encoder.weights)"
        )
    try:
        predictor = load(run, refuse_unfamiliar_stains=refuse_unfamiliar_stains)
        if saliency:
            predictor.check_saliency()
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    predictor.names = FLAGS
    return predictor


def judge(
    predictor: Predictor, rows: Sequence[Row], at_once: int, reading: Reading
) -> Iterator[tuple[Row, Verdict | SlideError]]:
    """Each slide and its verdict, or why there is none.

    Of a run that zooms several at once, lest the device wait for every single tile.
    """
    if predictor.card.method.takes is not Takes.zooms:
        at_once = 1
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        yield from zip(some, predictor.together(some, reading=reading), strict=True)


def predict(
    predictor: Predictor,
    run: pathlib.Path,
    out: pathlib.Path,
    rows: Sequence[Row],
    reading: Reading,
    at_once: int,
    saliency: bool,
) -> list[dict]:
    """Judges the slides that have no verdict yet; the lines of predictions.csv."""
    table, lines = out / "predictions.csv", {}
    for row in rows:
        key = key_of(predictor, row, reading.max_unreadable)
        lines[row.slide_id] = blank(predictor, row, run, key)
    before = earlier(table, list(next(iter(lines.values()))))
    todo = []
    for row in rows:
        one = lines[row.slide_id]
        drawn = [out / f"{row.slide_id}.png", *[saliency_of(row, out)] * saliency]
        if one["key"] in before and all(path.is_file() for path in drawn):
            one |= before[one["key"]] | {"path": row.path}
        else:
            todo.append(row)
    done = {row.slide_id for row in rows} - {row.slide_id for row in todo}
    write = lambda: write_csv(table, [lines[name] for name in lines if name in done])
    for row, verdict in judge(predictor, todo, at_once, reading):
        lines[row.slide_id] |= line(predictor, row, verdict, out, saliency)
        done.add(row.slide_id)
        write()
    if not todo:
        write()
    return list(lines.values())


def check_flags(chosen: argparse.Namespace) -> None:
    """Refuses numbers that mean nothing, in one line."""
    low, high = SANE_MPP
    if chosen.mpp is not None and not low <= chosen.mpp <= high:
        raise SystemExit(f"--mpp {chosen.mpp:g}: um/px, from {low:g} to {high:g}")
    if not 0 <= chosen.max_unreadable <= 1:
        raise SystemExit(f"--max-unreadable {chosen.max_unreadable:g}: a share, 0 to 1")
    if chosen.together < 1:
        raise SystemExit(f"--together {chosen.together}: 1 or more")


@stoppable()
def main() -> None:
    """Predicts every slide on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a trained run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder")
    parser.add_argument(
        "--mpp",
        type=float,
        help="um/px of slides whose file and CSV tell none",
    )
    parser.add_argument(
        "--max-unreadable",
        type=float,
        default=Reading.max_unreadable,
        help="share of a slide's tiles that may be unreadable before it is refused",
    )
    parser.add_argument(
        "--refuse-unfamiliar-stains",
        action="store_true",
        help="refuse slides stained like none that the run has learnt from",
    )
    parser.add_argument("--saliency", action="store_true", help="draw gradients too")
    parser.add_argument(
        "--together",
        type=int,
        default=16,
        help="slides zoomed into at once (methods that do not zoom ignore it)",
    )
    parser.add_argument(
        "slides", nargs="+", type=pathlib.Path, help="files, folders and CSVs"
    )
    chosen = parser.parse_args()
    check_flags(chosen)
    reading = Reading(max_unreadable=chosen.max_unreadable)
    run, out, saliency = pathlib.Path(chosen.run), chosen.out, chosen.saliency
    try:
        rows = find_rows(chosen.slides, chosen.mpp)
        check_names(rows)
        predictor = opened(run, saliency, chosen.refuse_unfamiliar_stains)
        how = {"at_once": chosen.together, "saliency": saliency}
        with locked(out, "name another --out"):
            lines = predict(predictor, run, out, rows, reading, **how)
    except (ValueError, OSError) as error:
        raise SystemExit(explain(error, out)) from error
    n = sum(bool(one["prediction"]) for one in lines)
    print(f"{n} of {len(lines)} slides have a verdict: {out / 'predictions.csv'}")
    if not n:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
