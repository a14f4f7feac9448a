"""Fields of a config set from Python, and errors in the words of Python."""

import contextlib
import copy
import dataclasses
import enum
import os
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from wsi_jax.config_fields import check_types, is_config
from wsi_jax.run.config_file import did_you_mean, nearest_field


def with_fields(config: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a config with some of its fields set.

    Args:
        config: tree of config dataclasses.
        fields: {"train.steps": 100}, or {"train": {"steps": 100}}, or both. Enums may
            be given by name, paths as any path, sequences as lists.

    Raises:
        ValueError: no such field, or a value of another type; the nearest is named.
    """
    config = copy.deepcopy(config)
    for path, value in _leaves(fields):
        *above, last = path.split(".")
        part = config
        for name in above:
            part = getattr(part, name, None)
        names = [f.name for f in dataclasses.fields(part)] if is_config(part) else []
        if last not in names:
            hint = did_you_mean(nearest_field(config, path))
            raise ValueError(f"--config.{path}: no such field{hint}")
        hint = typing.get_type_hints(type(part))[last]
        setattr(part, last, _converted(value, hint))
    check_types(config)
    return config


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all fields, mappings gone through."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _converted(value, hint):
    """A value as its field has it: a member of an enum, a text, a tuple."""
    kinds = typing.get_args(hint) or (hint,)
    enums = [k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)]
    for kind in enums:
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(value) if isinstance(value, list) else value


@contextlib.contextmanager
def errors_in_python() -> Iterator[None]:
    """Within the block errors call fields by their paths, not by a command's flags."""
    try:
        yield
    except (ValueError, ArithmeticError, OSError) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (in_python(error.args[0]),)
        raise


def in_python(message: str) -> str:
    """A message about flags, `--config.train.steps=0`, in Python's words."""
    message = message.replace("--config.data.manifest", "manifest")
    message = re.sub(r"--noconfig\.([\w.]*\w)", r"\1=False", message)
    return message.replace("--config.", "")
