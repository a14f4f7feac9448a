"""The commands on slides and runs: `wsi-jax predict`, `evaluate` and `compare`."""

import enum
import os
import pathlib
import sys
from typing import Annotated

import typer

from wsi_jax.files import any_path
from wsi_jax.run.interrupts import stoppable

# What the commands on slides call fields of a config, in errors.
PREDICT_FLAGS = {"data.mpp": "--mpp", "reading.max_unreadable": "--max-unreadable"}

PATH = {"parser": any_path, "metavar": "PATH"}  # gs://bucket/run, too


class Devices(enum.Enum):
    """Devices of this machine that predict a slide."""

    first = "first"
    all = "all"


Run = Annotated[
    list[os.PathLike],
    typer.Option(
        **PATH, help="folder of a trained run; given again, they predict together"
    ),
]
Out = Annotated[os.PathLike, typer.Option(**PATH, help="folder of the output")]
Mpp = Annotated[
    float | None, typer.Option(help="um/px of slides whose file and CSV have none")
]
MaxUnreadable = Annotated[
    float | None,
    typer.Option(
        show_default="0.1", help="share of a slide's tiles that may be unreadable"
    ),
]
RefuseStains = Annotated[
    bool,
    typer.Option(
        "--refuse-unfamiliar-stains",
        help="refuse slides stained like none that the run has learnt from",
    ),
]
AllDevices = Annotated[
    Devices, typer.Option(help="devices over which the tiles of a slide are split")
]
Together = Annotated[
    int, typer.Option(help="slides zoomed into at once, by methods that zoom")
]
Trust = Annotated[
    list[str], typer.Option(help="package of your own with the run's method")
]


@stoppable()
def predict(
    slides: Annotated[list[pathlib.Path], typer.Argument(help="files, folders, CSVs")],
    run: Run,
    out: Out,
    mpp: Mpp = None,
    max_unreadable: MaxUnreadable = None,
    refuse_unfamiliar_stains: RefuseStains = False,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="draw gradients at pixels too")
    ] = False,
    together: Together = 16,
    devices: AllDevices = Devices.first,
    trust: Trust = (),
):
    """Predict slides by a trained run: a table and heatmaps.

    Given again, only slides without a prediction are predicted.
    """
    from wsi_jax.commands.config_command_line import errors_in_one_line
    from wsi_jax.run.predict import predict_slides

    options = options_of(mpp, max_unreadable, together, saliency)
    with errors_in_one_line(out):
        rows = predict_slides.find_rows(slides, mpp)
        predictor = open_run(run, saliency, refuse_unfamiliar_stains, devices, trust)
        lines = predict_slides.predict_slides(predictor, run, out, rows, options)
    n, table = sum(bool(line["prediction"]) for line in lines), out / "predictions.csv"
    print(f"{n} of {len(lines)} slides have a prediction: {table}")
    if not n:
        raise SystemExit(1)


@stoppable()
def evaluate(
    run: Annotated[
        list[os.PathLike],
        typer.Argument(
            **PATH, help="folder of a trained run; several predict together"
        ),
    ],
    manifest: Annotated[str, typer.Option(help="CSV of slides: path, label, ...")],
    out: Annotated[
        os.PathLike | None,
        typer.Option(
            **PATH, show_default="RUN/external/MANIFEST", help="folder of the output"
        ),
    ] = None,
    mpp: Mpp = None,
    max_unreadable: MaxUnreadable = None,
    refuse_unfamiliar_stains: RefuseStains = False,
    together: Together = 16,
    devices: AllDevices = Devices.first,
    trust: Trust = (),
):
    """Validate a trained run on other labelled slides.

    The threshold is that of the run, never chosen anew. Given again, it goes on.

    Writes predictions.csv, metrics.json, report.html, and a heatmap of each slide.
    """
    from wsi_jax.commands.config_command_line import errors_in_one_line
    from wsi_jax.run.predict import external_validation

    if out is None and len(run) > 1:
        raise SystemExit("--out is missing: name a folder for what the runs predict")
    options = options_of(mpp, max_unreadable, together)
    with errors_in_one_line(out or run[0]):
        out = out or external_validation.default_folder(run[0], manifest)
        predictor = open_run(run, False, refuse_unfamiliar_stains, devices, trust)
        report = external_validation.validate_run(
            predictor, run, out, manifest, mpp, options
        )
    print((out / "metrics.txt").read_text())
    print(f"report: {report}")


def compare(
    runs: Annotated[
        list[os.PathLike], typer.Argument(**PATH, help="two or more folders")
    ],
):
    """Compare runs on the test slides that they share.

    The first is compared with each other one.

    Folders are those of `train` or `evaluate`.
    """
    from wsi_jax.commands.config_command_line import errors_in_one_line
    from wsi_jax.run.compare_runs import compare_runs

    with errors_in_one_line(runs[0]):
        print(compare_runs(runs))


def import_from_here() -> None:
    """Modules of the folder of the command can be imported, as by `python -m`."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def options_of(mpp, max_unreadable, together, saliency=False):
    """How slides are predicted, once the flags are in their bounds."""
    from wsi_jax.data.tile_batches import Reading
    from wsi_jax.run.predict.predict_slides import Options
    from wsi_jax.slides.mpp_metadata import SANE_MPP

    low, high = SANE_MPP
    if mpp is not None and not low <= mpp <= high:
        raise SystemExit(f"--mpp {mpp:g}: um/px, from {low:g} to {high:g}")
    if max_unreadable is None:
        max_unreadable = Reading.max_unreadable
    if not 0 <= max_unreadable <= 1:
        raise SystemExit(f"--max-unreadable {max_unreadable:g}: a share, 0 to 1")
    if together < 1:
        raise SystemExit(f"--together {together}: 1 or more")
    return Options(Reading(max_unreadable=max_unreadable), together, saliency)


def open_run(run, saliency, refuse_unfamiliar_stains, devices, trust):
    from wsi_jax import config_fields
    from wsi_jax.run.predict import predict_slides

    import_from_here()
    config_fields.PACKAGES.update(trust)
    try:
        predictor = predict_slides.open_run(
            run, saliency, refuse_unfamiliar_stains, devices is Devices.all
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    predictor.names = PREDICT_FLAGS
    return predictor
