"""The `wsi-jax` command, and how any command here reads `--config FILE`.

    wsi-jax list
    wsi-jax train --method abmil --manifest slides.csv --config.train.steps=1000
    wsi-jax predict --run runs/abmil --out predictions slide.svs FOLDER more.csv

Fields of a config are set by `--config.a.b=value`, which ml_collections parses.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from absl import app as absl_app
from absl import flags, logging
from ml_collections import config_flags

from wsi_jax import configs
from wsi_jax.config_fields import check_types
from wsi_jax.data.disk_space import is_full
from wsi_jax.data.tile_batches import Reading
from wsi_jax.run import extract_command, predict_slides, run_experiment
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import (
    did_you_mean,
    has_field,
    misfit,
    nearest_field,
    read_config,
    run_name,
)
from wsi_jax.run.interrupts import stoppable
from wsi_jax.slides.mpp_metadata import SANE_MPP

NO_CONFIG = "no config; add --config FILE, a file with get_config()"
# The predict command's flags for fields of a config.
PREDICT_FLAGS = {"data.mpp": "--mpp", "reading.max_unreadable": "--max-unreadable"}

app = typer.Typer(
    help=__doc__.splitlines()[0],
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
WITH_CONFIG = {"allow_extra_args": True, "ignore_unknown_options": True}
Method = Annotated[str, typer.Option(help="a name that `wsi-jax list` prints")]
Manifest = Annotated[str, typer.Option(help="CSV of slides: path, label, ...")]


@app.command(context_settings=WITH_CONFIG)
def train(context: typer.Context, method: Method = "", manifest: Manifest = ""):
    """Train a method on slides and labels; the same command resumes a stopped run.

    Instead of --method, --config FILE takes a config file; --config.train.steps=100
    sets a field of either.
    """
    _launch_method(run_training, context, method, manifest)


@app.command(context_settings=WITH_CONFIG)
def extract(context: typer.Context, method: Method = "", manifest: Manifest = ""):
    """Make the features that a method trains on, and train nothing.

    The manifest may be a folder of slides. Flags are those of `train`.
    """
    _launch_method(run_extraction, context, method, manifest)


@app.command(name="list")
def list_methods():
    """List the methods that `--method` knows."""
    methods = configs.methods()
    width = max(map(len, methods))
    for name, summary in methods.items():
        print(f"{name:<{width}}  {summary}")


@app.command()
@stoppable()
def predict(
    slides: Annotated[list[pathlib.Path], typer.Argument(help="files, folders, CSVs")],
    run: Annotated[pathlib.Path, typer.Option(help="folder of a trained run")],
    out: Annotated[pathlib.Path, typer.Option(help="folder of the predictions")],
    mpp: Annotated[
        float | None, typer.Option(help="um/px of slides whose file and CSV have none")
    ] = None,
    max_unreadable: Annotated[
        float, typer.Option(help="share of a slide's tiles that may be unreadable")
    ] = Reading.max_unreadable,
    refuse_unfamiliar_stains: Annotated[
        bool,
        typer.Option(
            "--refuse-unfamiliar-stains",
            help="refuse slides stained like none that the run has learnt from",
        ),
    ] = False,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="draw gradients at pixels too")
    ] = False,
    together: Annotated[
        int, typer.Option(help="slides zoomed into at once, by methods that zoom")
    ] = 16,
):
    """Predict slides by a trained run: a table, and a heatmap of each slide."""
    low, high = SANE_MPP
    if mpp is not None and not low <= mpp <= high:
        raise SystemExit(f"--mpp {mpp:g}: um/px, from {low:g} to {high:g}")
    if not 0 <= max_unreadable <= 1:
        raise SystemExit(f"--max-unreadable {max_unreadable:g}: a share, 0 to 1")
    if together < 1:
        raise SystemExit(f"--together {together}: 1 or more")
    options = predict_slides.Options(
        Reading(max_unreadable=max_unreadable), together, saliency
    )
    with errors_in_one_line(out):
        rows = predict_slides.find_rows(slides, mpp)
        predictor = _open_run(run, saliency, refuse_unfamiliar_stains)
        lines = predict_slides.predict_slides(predictor, run, out, rows, options)
    n, table = sum(bool(line["prediction"]) for line in lines), out / "predictions.csv"
    print(f"{n} of {len(lines)} slides have a prediction: {table}")
    if not n:
        raise SystemExit(1)


def _open_run(run, saliency, refuse_unfamiliar_stains):
    try:
        predictor = predict_slides.open_run(run, saliency, refuse_unfamiliar_stains)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    predictor.names = PREDICT_FLAGS
    return predictor


def run_command(name: str) -> None:
    """Runs one command of `wsi-jax` on this process's command line."""
    command = typer.main.get_command(app).commands[name]
    command(prog_name=f"wsi-jax {name}")


def run_training(config: Experiment, name: str) -> None:
    """Does what is left of a run, and prints its metrics.

    Args:
        config: everything that decides the run.
        name: name of its folder in runs/, unless the config names one.
    """
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(config.run_dir or f"runs/{name}")
    with errors_in_one_line(folder):
        report = run_experiment.run(dataclasses.replace(config, run_dir=""), folder)
    print((folder / "metrics.txt").read_text())
    print(f"report: {report}")


def run_extraction(config: Experiment, name: str) -> None:
    """Makes the features of a run, and prints what became of its slides."""
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(config.run_dir or f"runs/{name}")
    with errors_in_one_line(folder):
        records = extract_command.run(config, folder)
    extract_command.print_summary(records, folder, config.max_refused)


@contextlib.contextmanager
def errors_in_one_line(folder: str | os.PathLike) -> Iterator[None]:
    """Within the block an error of the user's ends the process with one message.

    Args:
        folder: folder of the output, to be named where its disk is full.
    """
    try:
        yield
    except (ValueError, ArithmeticError, OSError) as error:
        raise SystemExit(error_message(error, folder)) from error


def error_message(error: Exception, folder: str | os.PathLike) -> str:
    """An error of the user's, or of the user's disk, as one message."""
    if is_full(error):
        where = getattr(error, "filename", None) or folder
        return (
            f"{where}: no space left on its disk. Free some and give the same command "
            "again: it goes on from where it was"
        )
    if isinstance(error, OSError) and error.filename:
        reasons = {
            IsADirectoryError: "is a folder, and a file is wanted; name another",
            NotADirectoryError: "is below a file, and a folder is wanted; name another",
            FileExistsError: "is a file, and a folder is wanted; name another",
            FileNotFoundError: "is not there; mend the path",
            PermissionError: "may not be read or written; ask for the right, or name "
            "another",
        }
        return f"{error.filename}: {reasons.get(type(error), error.strerror)}"
    name = type(error).__name__
    return str(error) if name == "ValueError" else f"{name}: {error}"


def launch(
    main: Callable[[Any, str], None] = run_training,
    kind: str = "Experiment",
) -> None:
    """Reads a config from the command line, and runs `main`.

    Args:
        main: (config, name of its file and variant) -> None.
        kind: name of the class, or of a base of it, that get_config() must return.
    """
    config_flags.DEFINE_config_file("config", help_string="a file with get_config()")
    read = functools.partial(parse, kind=kind)
    absl_app.run(stoppable()(_on_config(main)), flags_parser=read)


def _on_config(main: Callable[[Any, str], None]) -> Callable[[Sequence[str]], None]:
    """`main` on the config that the command line has set."""
    flag = lambda: flags.FLAGS["config"]
    return lambda argv: main(flag().value, run_name(flag().config_filename))


def _launch_method(main, context, method, manifest):
    argv = [context.command_path, *context.args]
    if method:
        try:  # the file comes before its fields
            argv.insert(1, f"--config={configs.config_path(method)}")
        except ValueError as error:
            raise SystemExit(f"--method={method}: {error}") from error
    if manifest:
        argv.append(f"--config.data.manifest={manifest}")
    sys.argv = argv  # where ml_collections reads values of fields
    launch(main)


def parse(argv: Sequence[str], kind: str = "Experiment") -> list[str]:
    """Parses the command line; arguments as `launch`.

    Raises:
        SystemExit: no such file, field or flag, a file without a config of this kind,
            or a value of another type; the message names the mend.
    """
    file, overrides = _config_file(argv), _overrides(argv)
    try:
        config = read_config(file, kind) if file else None
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if overrides and not file:
        raise SystemExit(NO_CONFIG)
    for path in overrides:
        if not has_field(config, path):
            hint = did_you_mean(nearest_field(config, path))
            raise SystemExit(f"--config.{path}: no such field{hint}")
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        message = " ".join(str(error).split())
        for path in sorted(overrides, key=len):
            if re.search(rf"\bconfig\.{path}[ =]", message):
                raise SystemExit(misfit(config, path, message)) from error
        raise SystemExit(message) from error
    if not file:
        raise SystemExit(NO_CONFIG)
    if left[1:]:
        example = "--config.train.steps=100"
        raise SystemExit(f"{left[1]}: not a flag; write {example}")
    try:
        check_types(flags.FLAGS.config)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return left


def _config_file(argv) -> str:
    """The last value of --config; "" where there is none."""
    file = ""
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        name, given, value = arg.partition("=")
        if name in ("--config", "-config"):
            file = value if given else after
    return file


def _overrides(argv) -> list[str]:
    """The fields that are set: "train.steps"."""
    names = [arg.partition("=")[0].lstrip("-") for arg in argv if arg.startswith("-")]
    names = [name.removeprefix("no") for name in names]  # --noconfig.train.balanced
    return [n.removeprefix("config.") for n in names if n.startswith("config.")]
