"""The verdict of a trained run on slide files, with heatmaps.

    python -m experiments.predict --run runs/demo --out verdicts slide.svs more.tif

Writes predictions.csv, one line a slide, and NAME.png beside it; with `--saliency` also
NAME_saliency.png: which pixels the verdict of a streamed run hangs on. A slide that
cannot be used has its reason there instead of a verdict, and the others go on. Stopped,
the same command goes on with the slides that have no verdict yet.
"""

import argparse
import csv
import pathlib
import sys
from collections import Counter

from experiments.cohort import explain
from experiments.experiment import write_csv
from wsi_jax.run import CARD, Predictor, load
from wsi_jax.slides.slide import SlideError, known_stem


def line(
    predictor: Predictor, path: pathlib.Path, mpp: float | None, out, saliency: bool
) -> dict:
    """Predicts one slide and draws its heatmap; its line of predictions.csv."""
    classes = predictor.card.classes
    empty = {"slide_id": known_stem(path), "path": str(path), "prediction": ""}
    empty |= {f"p_{name}": "" for name in classes} | {"tiles": 0, "reason": ""}
    try:
        verdict = predictor.predict(path, mpp)
        verdict.heatmap(out / f"{verdict.slide_id}.png")
        if saliency:
            predictor.saliency(path, saliency_of(path, out), verdict.label, mpp)
    except SlideError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        return empty | {"reason": str(error)}
    each = {f"p_{name}": f"{p:.6f}" for name, p in verdict.probabilities.items()}
    said = {"prediction": verdict.label, "tiles": len(verdict.attention)}
    print(f"{verdict.slide_id}: {verdict.label}, {verdict.probabilities}", flush=True)
    if verdict.note:
        print(f"note: {verdict.slide_id}: {verdict.note}", file=sys.stderr, flush=True)
    return empty | said | each | {"reason": verdict.note}


def saliency_of(path: pathlib.Path | str, out: pathlib.Path) -> pathlib.Path:
    """Where the gradient at a slide's pixels is drawn."""
    return out / f"{known_stem(path)}_saliency.png"


def earlier(table: pathlib.Path, run: pathlib.Path) -> dict[str, dict]:
    """The verdicts that this run gave before it was stopped, by path."""
    if not table.is_file() or table.stat().st_mtime < (run / CARD).stat().st_mtime:
        return {}
    with open(table, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    mine = [one for one in lines if one.get("run") == str(run) and one["prediction"]]
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


def main() -> None:
    """Predicts every slide on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a trained run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder")
    parser.add_argument("--mpp", type=float, help="um/px of slides that do not say")
    parser.add_argument("--saliency", action="store_true", help="draw gradients too")
    parser.add_argument("slides", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    check_names(chosen.slides)
    run = pathlib.Path(chosen.run)
    try:
        predictor = load(run)
        if chosen.saliency:
            predictor.check_saliency()
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = chosen.out / "predictions.csv"
    known, lines = earlier(table, run), []
    try:
        for path in chosen.slides:
            one = known.get(str(path))
            drawn = not chosen.saliency or saliency_of(path, chosen.out).is_file()
            if one is None or not drawn:
                one = line(predictor, path, chosen.mpp, chosen.out, chosen.saliency)
                one |= {"run": str(run)}
            lines.append(one)
            write_csv(table, lines)
    except OSError as error:
        raise SystemExit(explain(error, chosen.out)) from error


if __name__ == "__main__":
    main()
