"""--config FILE --config.a.b=value, or one line that says what is wrong with it."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from wsi_jax.configs import flatten, to_plain


def launch(main: Callable[[list[str]], None]) -> None:
    """Reads `flags.FLAGS.config`, or says in one line why not, and runs `main`."""
    config_flags.DEFINE_config_file("config", help_string="a file with get_config()")
    app.run(main, flags_parser=parse)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line.

    Raises:
        SystemExit: no such file, field or flag, or a value of another type; the message
            names the nearest that there is.
    """
    file = _file(argv)
    if file:
        _check_file(file)
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        raise SystemExit(str(error)) from error
    except (KeyError, AttributeError) as error:
        config = ConfigFileFlagParser("config").parse(file)
        for path in _overrides(argv):
            if not _has(config, path):
                hint = _hint(_near_field(config, path))
                raise SystemExit(f"--config.{path}: no such field{hint}") from error
        raise
    if not file:
        raise SystemExit("no config; add --config FILE, a file with get_config()")
    if left[1:]:
        raise SystemExit(f"{left[1]}: not a flag; write --config.train.steps=100")
    return left


def _file(argv) -> str:
    """The value of --config; "" where there is none."""
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        name, given, value = arg.partition("=")
        if name in ("--config", "-config"):
            return value if given else after
    return ""


def _check_file(file):
    path = pathlib.Path(file.partition(":")[0])  # behind a colon: for get_config
    if not path.is_file():
        beside = [os.fspath(other) for other in sorted(path.parent.glob("*.py"))]
        near = _near(os.fspath(path), beside) or ", ".join(beside)
        raise SystemExit(f"--config={file}: no such file{_hint(near)}")


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
