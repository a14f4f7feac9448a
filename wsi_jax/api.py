"""What a notebook calls: the commands of `wsi-jax` as functions."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from wsi_jax import configs
from wsi_jax.files import AnyPath, any_path
from wsi_jax.run import run_experiment
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import read_config, run_name
from wsi_jax.run.extract import extract_command
from wsi_jax.run.fields_from_python import errors_in_python, with_fields
from wsi_jax.run.finished_run import Run
from wsi_jax.run.predict.ensemble import Ensemble
from wsi_jax.run.predict.ensemble import load as load_runs
from wsi_jax.run.predict.predict_paths import predict_paths
from wsi_jax.run.predict.slide_prediction import SlidePrediction, SlidePredictions
from wsi_jax.run.predict.slide_predictor import SlidePredictor
from wsi_jax.run.run_folder import features_folder

AnyRun = str | os.PathLike | Run | SlidePredictor


def train(
    method: str | os.PathLike | Experiment,
    /,
    *,
    manifest: str | os.PathLike = "",
    run_dir: str | os.PathLike = "",
    **fields: Any,
) -> Run:
    """Trains a method on slides and labels, as `wsi-jax train` does.

    The same call resumes a training that was stopped, and gives a finished one back.

        wsi_jax.train("abmil", manifest="slides.csv", encoder={"weights": "r50.st"})
        wsi_jax.train("quick", manifest="slides.csv", **{"train.steps": 1000})

    Args:
        method: a name that `wsi-jax list` prints, a config file, or an Experiment.
        manifest: CSV of slides: path, label, ...
        run_dir: folder of the run; "" for runs/NAME, of the method's or file's name.
        fields: fields of the config, by dotted names or as nested dicts.

    Raises:
        ValueError: anything wrong with fields, cohort or slides, before training.
    """
    with errors_in_python():
        config, folder = _experiment(method, manifest, run_dir, fields)
        run_experiment.run(config, folder)
        return Run(folder)


class Extraction(NamedTuple):
    """Features that were made of slides.

    Attributes:
        folder: folder of the run that made them.
        features: folders of SLIDE_ID.h5, one for each resolution that the method reads.
        slides: what became of each slide, as slides.csv in `folder` has it.
    """

    folder: AnyPath
    features: tuple[pathlib.Path, ...]
    slides: list[dict[str, Any]]

    def __repr__(self):
        n = sum(slide["status"] != "refused" for slide in self.slides)
        where = ", ".join(map(str, self.features))
        return f"Extraction({n} of {len(self.slides)} slides have features: {where})"


def extract(
    method: str | os.PathLike | Experiment,
    /,
    *,
    manifest: str | os.PathLike = "",
    run_dir: str | os.PathLike = "",
    **fields: Any,
) -> Extraction:
    """Makes the features that a method trains on, as `wsi-jax extract` does.

    Args:
        method: as in `train`.
        manifest: a folder of slides, or a CSV; labels are not needed.
        run_dir: as in `train`.
        fields: as in `train`.

    Raises:
        ValueError: anything wrong with fields, cohort or workers.
    """
    with errors_in_python():
        config, folder = _experiment(method, manifest, run_dir, fields)
        records = extract_command.run(config, folder)
    run_experiment.print_reasons(records)
    features = features_folder(config, folder)
    folders = tuple(features / tiling.folder() for tiling in config.tilings())
    return Extraction(folder, folders, [record.columns() for record in records])


def load(
    run: AnyRun | Sequence[AnyRun],
    *,
    refuse_unfamiliar_stains: bool = False,
    all_devices: bool = False,
) -> SlidePredictor:
    """Opens a trained run: `wsi_jax.load("runs/demo").predict("slide.svs")`.

    Several runs of one config, its folds or seeds, predict together: probabilities are
    averaged, the label is decided at the mean of their thresholds.

    Args:
        run: its folder, or what `train` gave back; or several of them.
        refuse_unfamiliar_stains: refuse a slide that is stained like none that the run
            has learnt from (fluorescence, say); otherwise its prediction has a note.
        all_devices: split the tiles of a slide over all devices of this machine.

    Raises:
        FileNotFoundError: a folder without a trained model.
        ValueError: damaged files, or runs of other classes or tiles than the first.
    """
    if isinstance(run, SlidePredictor) and not refuse_unfamiliar_stains:
        return run
    several = isinstance(run, Sequence) and not isinstance(run, str)
    folders = []
    for one in run if several else [run]:
        if isinstance(one, Ensemble):
            folders += one.members
        else:
            folders += one.models if isinstance(one, Run) else [one]
    with errors_in_python():
        return load_runs(
            folders,
            refuse_unfamiliar_stains=refuse_unfamiliar_stains,
            all_devices=all_devices,
        )


def predict(
    run: AnyRun | Sequence[AnyRun],
    slides: str | os.PathLike | Sequence[str | os.PathLike],
    mpp: float | None = None,
) -> SlidePrediction | SlidePredictions:
    """Predicts slides by a trained run, or by several together; nothing is written.

    Args:
        run: as in `load`, or what it gave back.
        slides: file of one slide; or a folder, a CSV, or several of all these.
        mpp: um/px of slides for which neither a CSV nor the file says it.

    Returns:
        The prediction of one slide; of several a list, where `refused` has the reason
        of each slide that has none.

    Raises:
        SlideError: why one slide has no prediction.
        CohortError: a folder without slides, or a CSV that is none.
    """
    predictor = load(run)
    with errors_in_python():
        return predict_paths(predictor, slides, mpp)


def _experiment(method, manifest, run_dir, fields) -> tuple[Experiment, pathlib.Path]:
    """The config, and the folder of its run."""
    logging.set_verbosity(logging.WARNING)
    if isinstance(method, Experiment):
        config, name = method, ""
    else:
        file = os.fspath(method)
        is_file = file.partition(":")[0].endswith(".py")
        file = file if is_file else configs.config_path(file)
        config, name = read_config(file, "Experiment"), run_name(file)
    fields = dict(fields)
    if manifest:
        fields["data.manifest"] = os.fspath(manifest)
    config = with_fields(config, fields)
    folder = run_dir or config.run_dir or (name and f"runs/{name}")
    if not folder:
        raise ValueError("an Experiment has no name: add run_dir=FOLDER")
    return dataclasses.replace(config, run_dir=""), any_path(folder)
