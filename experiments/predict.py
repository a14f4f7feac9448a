"""The verdict of a trained run on slide files, with heatmaps.

    python -m experiments.predict --run runs/demo --out verdicts slide.svs more.tif

Writes predictions.csv, one line a slide, and NAME.png beside it. A slide that cannot be
used has its reason there instead of a verdict, and the others go on.
"""

import argparse
import pathlib
import sys

from experiments.cohort import write_csv
from wsi_jax.run import Predictor, load
from wsi_jax.slides.slide import SlideError, known_stem


def line(predictor: Predictor, path: pathlib.Path, mpp: float | None, out) -> dict:
    """Predicts one slide and draws its heatmap; its line of predictions.csv."""
    classes = predictor.card.classes
    empty = {"slide_id": known_stem(path), "prediction": ""}
    empty |= {f"p_{name}": "" for name in classes} | {"tiles": 0, "reason": ""}
    try:
        verdict = predictor.predict(path, mpp)
    except SlideError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        return empty | {"reason": str(error)}
    verdict.heatmap(out / f"{verdict.slide_id}.png")
    each = {f"p_{name}": f"{p:.6f}" for name, p in verdict.probabilities.items()}
    said = {"prediction": verdict.label, "tiles": len(verdict.attention)}
    print(f"{verdict.slide_id}: {verdict.label}, {verdict.probabilities}", flush=True)
    return empty | said | each


def main() -> None:
    """Predicts every slide on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a trained run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder")
    parser.add_argument("--mpp", type=float, help="um/px of slides that do not say")
    parser.add_argument("slides", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    try:
        predictor = load(chosen.run)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    chosen.out.mkdir(parents=True, exist_ok=True)
    lines = [line(predictor, p, chosen.mpp, chosen.out) for p in chosen.slides]
    write_csv(chosen.out / "predictions.csv", lines)


if __name__ == "__main__":
    main()
