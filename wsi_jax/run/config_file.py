"""Config files: `FILE` or `FILE:ARGUMENT`, and words for what is wrong with one.

A file has a function `get_config()`. Where one file serves several variants, it takes
the argument and picks one by `named_choice`.
"""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wsi_jax.config_fields import flatten, is_config, to_plain

# Class of a config -> the command that takes it.
COMMANDS = {
    "Experiment": "cohort",
    "Pretrain": "pretraining.pretrain_tiles",
    "PrepareTiles": "pretraining.prepare_tiles",
    "MakeCohort": "phantoms.make_cohort",
    "MakeTiles": "phantoms.make_tiles",
    "MakeBach": "phantoms.make_bach",
}


def named_choice(name: str, choices: Mapping[str, Any]) -> Any:
    """The choice of this name.

    Raises:
        ValueError: there is none; with the names that there are.
    """
    if name not in choices:
        hint = did_you_mean(nearest(name, list(choices)))
        raise ValueError(f"no {name!r} among {', '.join(choices)}{hint}")
    return choices[name]


def read_config(file: str, kind: str) -> Any:
    """The config of a file.

    Args:
        file: path, or path:argument.
        kind: name of the class, or of a base of it, that is wanted.

    Raises:
        ValueError: no such file, or none that makes a config of this kind.
    """
    name, colon, argument = file.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        beside = [os.fspath(other) for other in sorted(path.parent.glob("*.py"))]
        near = nearest(os.fspath(path), beside) or ", ".join(beside)
        raise ValueError(f"--config={file}: no such file{did_you_mean(near)}")
    try:
        get_config = runpy.run_path(name).get("get_config")
        if callable(get_config):
            config = get_config(*[argument] if colon else [])
    except Exception as error:  # a config file may raise whatever it likes
        raise ValueError(f"--config={file}: {_fault(error, name)}") from error
    if not callable(get_config):
        raise ValueError(
            f"--config={file}: no function get_config() in it; write one that returns "
            f"{_a(kind)}, or name a file of wsi_jax/configs"
        )
    kinds = [one.__name__ for one in type(config).__mro__]
    if not is_config(config) or kind not in kinds:
        returned = _a(kinds[0]) if is_config(config) else repr(config)
        commands = [COMMANDS[name] for name in kinds if name in COMMANDS]
        hint = f"; give it to python -m experiments.{commands[0]}" if commands else ""
        raise ValueError(
            f"--config={file}: get_config() returns {returned}, and this command takes "
            f"{_a(kind)}{hint}"
        )
    return config


def run_name(file: str) -> str:
    """Default name of a run's folder: "abmil", or "camelyon16_clam_mb" of a variant.

    Args:
        file: path, or path:argument, of its config; of a method of one's own the
            argument is "my_package.my_method:NAME", and the name "my_method_NAME".
    """
    name, _, argument = file.partition(":")
    module, colon, own = argument.partition(":")
    if colon:
        name, argument = module.rpartition(".")[2], own
    return "_".join(filter(None, (pathlib.Path(name).stem, argument)))


def has_field(config: Any, path: str) -> bool:
    """Whether a tree has a field: "train.steps"."""
    for name in path.split("."):
        if not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


def nearest_field(config: Any, path: str) -> str:
    """The field of this name elsewhere, or of a name like it, or all that there are."""
    fields = list(flatten(to_plain(config)))
    above, dot, last = path.rpartition(".")
    same = [name for name in fields if name.rpartition(".")[2] == last]
    if same:
        return f"--config.{same[0]}"
    level = config
    for name in filter(None, above.split(".")):
        level = getattr(level, name, None)
    if not dataclasses.is_dataclass(level):
        near = nearest(path, fields)
        return near and f"--config.{near}"
    names = [field.name for field in dataclasses.fields(level)]
    near = nearest(last, names)
    return f"--config.{above}{dot}{near}" if near else f"one of {', '.join(names)}"


def misfit(config: Any, path: str, message: str) -> str:
    """Why a field does not take a value, in plain words; `message` is the parser's."""
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


def rename_fields(
    message: str,
    names: Mapping[str, str],
    others: str = "{} (settled when the run was trained)",
) -> str:
    """A message with the fields of the config under the names they have elsewhere.

    Errors name a field as a command with a config does, `--config.data.mpp`. A command
    of other flags, or Python, renames those that it has.

    Args:
        message: text of an error.
        names: {"data.mpp": "--mpp", ...}.
        others: what is written of other fields, {} for the field.
    """

    def renamed(match):
        path, value = match[1], match[2] or ""
        if path in names:
            return names[path] + value
        return others.format(path + value)

    return re.sub(r"--config\.([\w.]*\w)(=[\w.-]*\w)?", renamed, message)


def nearest(name: str, names: Sequence[str]) -> str:
    """The name most like another; "" where none is."""
    return next(iter(difflib.get_close_matches(name, names, 1)), "")


def nearest_or_all(given: str, names: Sequence[str]) -> str:
    """The end of a message: the name that may have been meant, or all of them."""
    near = nearest(given, names)
    return did_you_mean(near) or f"; there are {', '.join(names)}"


def no_such_flag(given: str, flags: Iterable[str]) -> str:
    """Why a flag is refused, with the one that may have been meant."""
    names = sorted({flag for flag in flags if flag.startswith("--")})
    return f"{given}: no such flag{nearest_or_all(given, names)}"


def did_you_mean(near: str) -> str:
    """The end of a message; "" where there is nothing to suggest."""
    return f"; did you mean {near}?" if near else ""


def _fault(error: Exception, file: str) -> str:
    """What a config file raised, and on which of its lines."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    message, line = str(error), lines[-1] if lines else None
    if isinstance(error, SyntaxError):
        message, line = error.msg, error.lineno
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {' '.join(message.split())}"


def _a(kind: str) -> str:
    """With its article: "an Experiment"."""
    return f"an {kind}" if kind[0] in "AEIOU" else f"a {kind}"
