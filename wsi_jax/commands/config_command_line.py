"""How a command reads `--config FILE` and `--config.a.b=value`, and runs on it.

    python -m experiments.camelyon16 --config FILE --config.train.steps=100

Fields are parsed by ml_collections, flags by absl. A wrong word ends the process with
one line, before JAX is imported where it can be known before.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from absl import app as absl_app
from absl import flags, logging
from ml_collections import config_flags

from wsi_jax.commands.field_names import check_names
from wsi_jax.config_fields import check_types
from wsi_jax.files import any_path
from wsi_jax.run.config_file import (
    did_you_mean,
    has_field,
    misfit,
    nearest,
    nearest_field,
    no_such_flag,
    read_config,
    run_name,
)
from wsi_jax.run.interrupts import stoppable

NO_CONFIG = "no config; add --config FILE, a file with get_config()"
FLAGS_HELP = """--config FILE       a file with get_config()
--config.a.b=VALUE  sets a field of it"""


def run_training(config: Any, name: str) -> None:
    """Does what is left of a run, and prints its metrics.

    Args:
        config: the Experiment, everything that decides the run.
        name: name of its folder in runs/, unless the config names one.
    """
    from wsi_jax.run import run_experiment
    from wsi_jax.training.processes import ending_together, is_first

    logging.set_verbosity(logging.WARNING)
    folder = config.run_dir or f"runs/{name}"
    with ending_together(), errors_in_one_line(folder):
        folder = any_path(folder)
        report = run_experiment.run(dataclasses.replace(config, run_dir=""), folder)
    if is_first():
        print((folder / "metrics.txt").read_text())
        print(f"report: {report}")


def run_extraction(config: Any, name: str) -> None:
    """Makes the features of a run, and prints what became of its slides.

    Arguments as `run_training`.
    """
    from wsi_jax.run.extract import extract_command

    logging.set_verbosity(logging.WARNING)
    folder = config.run_dir or f"runs/{name}"
    with errors_in_one_line(folder):
        folder = any_path(folder)
        records = extract_command.run(config, folder)
    extract_command.print_summary(records, folder, config)


def run_status(config: Any, name: str, command: str) -> None:
    """Prints how far an extraction is, and the `command` that goes on with it.

    Arguments as `run_training`; exits with 1 where slides are left to do.
    """
    from wsi_jax.run.extract.extraction_status import print_status

    folder = config.run_dir or f"runs/{name}"
    with errors_in_one_line(folder):
        print_status(config, any_path(folder), command)


@contextlib.contextmanager
def errors_in_one_line(
    folder: str | os.PathLike, rename: Callable[[str], str] = str
) -> Iterator[None]:
    """Within the block an error of the user's ends the process with one message.

    Args:
        folder: folder of the output, to be named where its disk is full.
        rename: puts a message into the words of a command without a config.
    """
    try:
        yield
    except (ValueError, ArithmeticError, OSError) as error:
        raise SystemExit(rename(error_message(error, folder))) from error


def error_message(error: Exception, folder: str | os.PathLike) -> str:
    """An error of the user's, or of the user's disk, as one message."""
    from wsi_jax.data.disk_space import is_full
    from wsi_jax.slides.file_faults import is_transient

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
        reason = reasons.get(type(error), error.strerror)
        if error.errno == errno.EROFS:
            reason = "may only be read; name another folder"
        elif is_transient(error):
            reason += "; see that its disk answers, and give the same command again"
        return f"{error.filename}: {reason}"
    name = type(error).__name__
    return str(error) if name == "ValueError" else f"{name}: {error}"


def launch(
    main: Callable[[Any, str], None] = run_training,
    kind: str = "Experiment",
) -> None:
    """Reads a config from the command line, and runs `main`; with --help, says how.

    Args:
        main: (config, name of its file and variant) -> None.
        kind: name of the class, or of a base of it, that get_config() must return.
    """
    if {"--help", "-h"} & {*sys.argv[1:]}:
        text = sys.modules["__main__"].__doc__.strip()
        text = re.sub(r"(?<=\S) {8}", " \\\n        ", text)  # a joined line
        print(f"{text}\n\n{FLAGS_HELP}")
        return
    config_flags.DEFINE_config_file("config", help_string="a file with get_config()")
    read = functools.partial(parse, kind=kind)
    absl_app.run(stoppable()(_on_config(main)), flags_parser=read)


def _on_config(main: Callable[[Any, str], None]) -> Callable[[Sequence[str]], None]:
    """`main` on the config that the command line has set."""
    flag = lambda: flags.FLAGS["config"]
    return lambda argv: main(flag().value, run_name(flag().config_filename))


def parse(argv: Sequence[str], kind: str = "Experiment") -> list[str]:
    """Parses the command line; arguments as `launch`.

    Raises:
        SystemExit: no such file, field or flag, a file without a config of this kind,
            or a value of another type; the message names the mend.
    """
    check_flags(argv[1:])
    file, overrides = _config_file(argv), _overrides(argv)
    check_names(file, overrides)
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
        named = any(path.endswith(".weights") for path in overrides)
        if named and kind == "Experiment":
            from wsi_jax.run.adopt_encoders import adopt_encoders

            adopt_encoders(flags.FLAGS.config, overrides)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return left


def check_flags(words: Iterable[str], also: Iterable[str] = ()) -> None:
    """Refuses flags that are neither of a config nor of absl.

    Args:
        words: of the command line.
        also: flags that the command has besides, to be suggested.

    Raises:
        SystemExit: naming the nearest flag.
    """
    for word in words:
        name, _, rest = word.partition("=")[0].lstrip("-").partition(".")
        if word == "--":
            return
        if not word.startswith("-") or name in ("config", "noconfig", "help", "h", "?"):
            continue
        absl_flags = {*flags.FLAGS, *(f"no{flag}" for flag in flags.FLAGS)}
        if re.match(r"-[\d.]", word) or (name in absl_flags and not rest):
            continue
        given = word.partition("=")[0]
        if rest:  # a field, as --confg.train.steps or --train.steps
            path = rest if nearest(name, ["config", "noconfig"]) else f"{name}.{rest}"
            raise SystemExit(f"{given}: no such flag; did you mean --config.{path}?")
        raise SystemExit(no_such_flag(given, ["--config", *also]))


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
