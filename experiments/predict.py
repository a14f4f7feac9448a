"""Predictions of a trained run on slides, with heatmaps; the same as `wsi-jax predict`.

    python -m experiments.predict --run runs/demo --out predictions slide.svs FOLDER

Slides are files, folders of them, and CSVs with the columns `path` and, if you like,
`slide_id`, `mpp` and `mask_path` (for a run with tissue.source=MASK).

Writes predictions.csv, one line a slide, and NAME.png beside it; of a run that zooms
also NAME_zooms.csv, the tiles zoomed into, in order; with `--saliency` also
NAME_saliency.png: the pixels that the prediction of a streamed run depends on. A slide
that cannot be used has its reason instead of a prediction, and the others go on; where
all are refused the exit status is 1. Given again, the command predicts only slides
without a prediction, or whose file, mpp, mask or run has changed since: column `key`.
"""

from wsi_jax.cli import run_command

if __name__ == "__main__":
    run_command("predict")
