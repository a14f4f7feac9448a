"""The verdict of a trained run on slide files, with heatmaps.

    python -m experiments.predict --run runs/demo --out verdicts slide.svs more.tif

Writes predictions.csv, one line a slide, and NAME.png beside it; of a run that zooms
also NAME_zooms.csv, the tiles zoomed into, in order; with `--saliency` also
NAME_saliency.png: which pixels the verdict of a streamed run hangs on. A slide that
cannot be used has its reason there instead of a verdict, and the others go on. Stopped,
the same command goes on with the slides that have no verdict yet.
"""

import argparse
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence

from experiments.cohort import explain
from experiments.experiment import read_csv, write_csv
from experiments.pretrain_tiles import WEIGHTS as ENCODER
from experiments.stopping import stoppable
from wsi_jax.locks import LockedError, locked
from wsi_jax.run import CARD, Predictor, Verdict, load
from wsi_jax.slides.slide import SlideError, known_stem
from wsi_jax.types import Takes


def line(
    predictor: Predictor,
    path: pathlib.Path,
    verdict: Verdict | SlideError,
    mpp: float | None,
    out: pathlib.Path,
    saliency: bool,
) -> dict:
    """Draws what a verdict rests on; its line of predictions.csv."""
    classes = predictor.card.classes
    empty = {"slide_id": known_stem(path), "path": str(path), "prediction": ""}
    empty |= {f"p_{name}": "" for name in classes} | {"tiles": 0, "reason": ""}
    try:
        if isinstance(verdict, SlideError):
            raise verdict
        verdict.heatmap(out / f"{verdict.slide_id}.png")
        if verdict.order is not None:
            write_csv(out / f"{verdict.slide_id}_zooms.csv", zooms(verdict))
        if saliency:
            predictor.saliency(path, saliency_of(path, out), verdict.label, mpp)
    except SlideError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        return empty | {"reason": str(error)}
    each = {f"p_{name}": f"{p:.6f}" for name, p in verdict.probabilities.items()}
    said = {"prediction": verdict.label, "tiles": tiles(predictor, verdict)}
    print(f"{verdict.slide_id}: {verdict.label}, {verdict.probabilities}", flush=True)
    if verdict.note:
        print(f"note: {verdict.slide_id}: {verdict.note}", file=sys.stderr, flush=True)
    return empty | said | each | {"reason": verdict.note}


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


def saliency_of(path: pathlib.Path | str, out: pathlib.Path) -> pathlib.Path:
    """Where the gradient at a slide's pixels is drawn."""
    return out / f"{known_stem(path)}_saliency.png"


def earlier(table: pathlib.Path, run: pathlib.Path) -> dict[str, dict]:
    """The verdicts that this run gave before it was stopped, by path."""
    if not table.is_file() or table.stat().st_mtime < (run / CARD).stat().st_mtime:
        return {}
    mine = [
        one
        for one in read_csv(table)
        if one.get("run") == str(run) and one["prediction"]
    ]
    return {one["path"]: one for one in mine}


def check_names(slides: list[pathlib.Path]) -> None:
    """Every slide has a picture of its own."""
    count = Counter(known_stem(path).casefold() for path in slides)
    twice = [str(path) for path in slides if count[known_stem(path).casefold()] > 1]
    if twice:
        raise SystemExit(
            f"slides of one name would share a line and a picture: {', '.join(twice)}; "
            "predict them into different folders (--out)"
        )


def opened(run: pathlib.Path, saliency: bool) -> Predictor:
    """The run, or why it judges no slides."""
    if (run / ENCODER).is_file() and not (run / CARD).is_file():
        raise SystemExit(
            f"{run} was trained on tiles and judges no slides, nor has it pixels of "
            f"them to show; its {ENCODER} makes features of tiles for a run on slides "
            "(--config.encoder.weights)"
        )
    try:
        predictor = load(run)
        if saliency:
            predictor.check_saliency()
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    return predictor


def judge(
    predictor: Predictor, paths: Sequence[pathlib.Path], mpp: float | None, at_once: int
):
    """(path, verdict or why there is none) of each slide.

    Of a run that zooms several at once, lest the device wait for every single tile.
    """
    if predictor.card.method.takes is not Takes.zooms:
        at_once = 1
    for start in range(0, len(paths), at_once):
        some = paths[start : start + at_once]
        yield from zip(some, predictor.together(some, mpp), strict=True)


@stoppable()
def main() -> None:
    """Predicts every slide on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a trained run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder")
    parser.add_argument("--mpp", type=float, help="um/px of slides that do not say")
    parser.add_argument("--saliency", action="store_true", help="draw gradients too")
    parser.add_argument(
        "--together",
        type=int,
        default=16,
        help="slides zoomed into at once (methods that do not zoom ignore it)",
    )
    parser.add_argument("slides", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    if chosen.together < 1:
        parser.error(f"--together {chosen.together}: 1 or more")
    check_names(chosen.slides)
    out = chosen.out
    predictor = opened(pathlib.Path(chosen.run), chosen.saliency)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out, "name another --out"):
            predict_all(predictor, chosen)
    except (LockedError, OSError) as error:
        raise SystemExit(explain(error, out)) from error


def predict_all(predictor: Predictor, chosen: argparse.Namespace) -> None:
    """Writes predictions.csv, slide by slide; goes on where it was stopped."""
    run, out, slides = pathlib.Path(chosen.run), chosen.out, chosen.slides
    table = out / "predictions.csv"
    known = earlier(table, run)
    drawn = lambda path: not chosen.saliency or saliency_of(path, out).is_file()
    todo = [path for path in slides if str(path) not in known or not drawn(path)]
    write = lambda: write_csv(
        table, [known[str(path)] for path in slides if str(path) in known]
    )
    for path, verdict in judge(predictor, todo, chosen.mpp, chosen.together):
        one = line(predictor, path, verdict, chosen.mpp, out, chosen.saliency)
        known[str(path)] = one | {"run": str(run)}
        write()
    if not todo:
        write()


if __name__ == "__main__":
    main()
