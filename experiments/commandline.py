"""--config FILE --config.a.b=value, or one line that says what is wrong with it."""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from wsi_jax.config_io import check_types, flatten, is_config, to_plain
from wsi_jax.run.stopping import stoppable

EXAMPLE = "--config.train.steps=100"


def launch(main: Callable[[list[str]], None], kind: str = "Experiment") -> None:
    """Reads `flags.FLAGS.config`, or says in one line why not, and runs `main`.

    Args:
        main: of the command.
        kind: name of the class, or of a base of it, that get_config() must return.
    """
    config_flags.DEFINE_config_file("config", help_string="a file with get_config()")
    app.run(stoppable()(main), flags_parser=functools.partial(parse, kind=kind))


def parse(argv: Sequence[str], kind: str = "Experiment") -> list[str]:
    """Parses the command line; arguments as `launch`.

    Raises:
        SystemExit: no such file, field or flag, a file without a config of this kind,
            or a value of another type; the message names the mend.
    """
    file, overrides = _file(argv), _overrides(argv)
    if file:
        config = _read(file, kind)
        for path in overrides:
            if not _has(config, path):
                hint = _hint(_near_field(config, path))
                raise SystemExit(f"--config.{path}: no such field{hint}")
    elif overrides:
        raise SystemExit("no config; add --config FILE, a file with get_config()")
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        message = " ".join(str(error).split())
        for path in sorted(overrides, key=len):
            if re.search(rf"\bconfig\.{path}[ =]", message):
                raise SystemExit(_misfit(config, path, message)) from error
        raise SystemExit(message) from error
    if not file:
        raise SystemExit("no config; add --config FILE, a file with get_config()")
    if left[1:]:
        raise SystemExit(f"{left[1]}: not a flag; write {EXAMPLE}")
    try:
        check_types(flags.FLAGS.config)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return left


def _file(argv) -> str:
    """The last value of --config; "" where there is none."""
    file = ""
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        name, given, value = arg.partition("=")
        if name in ("--config", "-config"):
            file = value if given else after
    return file


def _read(file: str, kind: str) -> Any:
    """What get_config() of a file returns, of the right kind."""
    name, colon, argument = file.partition(":")  # behind a colon: for get_config
    path = pathlib.Path(name)
    if not path.is_file():
        beside = [os.fspath(other) for other in sorted(path.parent.glob("*.py"))]
        near = _near(os.fspath(path), beside) or ", ".join(beside)
        raise SystemExit(f"--config={file}: no such file{_hint(near)}")
    try:
        get_config = runpy.run_path(name).get("get_config")
        if callable(get_config):
            config = get_config(*[argument] if colon else [])
    except Exception as error:  # a config file may raise whatever it likes
        raise SystemExit(f"--config={file}: {_fault(error, name)}") from error
    if not callable(get_config):
        raise SystemExit(
            f"--config={file}: no function get_config() in it; write one that returns "
            f"{_a(kind)}, or name a file of experiments/configs"
        )
    kinds = [one.__name__ for one in type(config).__mro__]
    if not is_config(config) or kind not in kinds:
        returned = _a(kinds[0]) if is_config(config) else repr(config)
        raise SystemExit(
            f"--config={file}: get_config() returns {returned}, and this command takes "
            f"{_a(kind)}{_other_command(config)}"
        )
    return config


def _fault(error: Exception, file: str) -> str:
    """What a config file raised, and on which of its lines."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    told, line = str(error), lines[-1] if lines else None
    if isinstance(error, SyntaxError):
        told, line = error.msg, error.lineno
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {' '.join(told.split())}"


def _a(kind: str) -> str:
    """With its article: "an Experiment"."""
    return f"an {kind}" if kind[0] in "AEIOU" else f"a {kind}"


def _other_command(config) -> str:
    """A hint at the command that takes a config; "" where it is not known."""
    commands = {"Experiment": "cohort", "Pretrain": "pretrain_tiles"}
    commands |= {"MakeCohort": "make_cohort", "PrepareTiles": "prepare_tiles"}
    commands |= {"MakeTiles": "make_tiles", "MakeBach": "make_bach"}
    kinds = [one.__name__ for one in type(config).__mro__]
    names = [commands[kind] for kind in kinds if kind in commands]
    return f"; give it to python -m experiments.{names[0]}" if names else ""


def _overrides(argv) -> list[str]:
    """The fields that are set: "train.steps"."""
    names = [arg.partition("=")[0].lstrip("-") for arg in argv if arg.startswith("-")]
    names = [name.removeprefix("no") for name in names]  # --noconfig.train.balanced
    return [n.removeprefix("config.") for n in names if n.startswith("config.")]


def _has(config: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


def _misfit(config: Any, path: str, message: str) -> str:
    """Why a field does not take a value, in plain words; `message` is absl's."""
    flag = f"--config.{path}"
    value = functools.reduce(getattr, path.split("."), config)
    if is_config(value):
        field = next(iter(flatten(to_plain(value))), "FIELD")
        return (
            f"{flag}: {_a(type(value).__name__)} is exchanged in the config file; set "
            f"its fields here, as {flag}.{field}=VALUE"
        )
    message = message.removeprefix("flag ")
    given, _, reason = message.partition(": ")
    kinds = {"invalid literal for int": "whole number", "could not": "number"}
    wanted = [kind for start, kind in kinds.items() if reason.startswith(start)]
    return f"{given}: not a {wanted[0]}; write one, as {flag}=3" if wanted else message


def _near_field(config: Any, path: str) -> str:
    """The field of this name elsewhere, or of a name like it, or all that there are."""
    known = list(flatten(to_plain(config)))
    above, dot, last = path.rpartition(".")
    same = [name for name in known if name.rpartition(".")[2] == last]
    if same:
        return f"--config.{same[0]}"
    level = config
    for name in filter(None, above.split(".")):
        level = getattr(level, name, None)
    if not dataclasses.is_dataclass(level):
        near = _near(path, known)
        return near and f"--config.{near}"
    names = [field.name for field in dataclasses.fields(level)]
    near = _near(last, names)
    return f"--config.{above}{dot}{near}" if near else f"one of {', '.join(names)}"


def _near(name: str, known: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(name, known, 1)), "")


def _hint(near: str) -> str:
    return f"; did you mean {near}?" if near else ""
