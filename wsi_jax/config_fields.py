"""Checks config dataclasses, and converts them to plain JSON and back.

A dataclass may have `bounds`, {field: (least, most)} of numbers that are not just 0 or
more, and a method `validate()` for other checks.
"""

import dataclasses
import enum
import importlib
import inspect
import math
import numbers
import re
import types
import typing
from typing import Any, NamedTuple

TYPE = "type"
POSITIVE = math.ulp(0.0)  # the least number above 0
SEED = 0, 2**32 - 1
COUNT = 1, math.inf
PACKAGES = {"wsi_jax"}  # whose configs a run's folder may name; add your own


class FieldError(ValueError):
    """A field with an invalid value; `validate` puts its path before the reason.

    Args:
        field: name of the field, or its path below the dataclass that raises.
        reason: what is wrong, and the mend.
    """

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def to_plain(value: Any) -> Any:
    """A tree of config dataclasses as JSON; each names its type."""
    if dataclasses.is_dataclass(value):
        kind = type(value)
        named = {TYPE: f"{kind.__module__}.{kind.__qualname__}"}
        fields = dataclasses.fields(value)
        return named | {f.name: to_plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, enum.Enum):
        kind = type(value)
        return {TYPE: f"{kind.__module__}.{kind.__qualname__}", "name": value.name}
    if isinstance(value, tuple | list):
        return [to_plain(part) for part in value]
    return value


def from_plain(plain: Any) -> Any:
    """The tree that `to_plain` wrote; sequences come back as tuples.

    Raises:
        ValueError: a type that is not a config of this package.
    """
    if isinstance(plain, list):
        return tuple(from_plain(part) for part in plain)
    if not isinstance(plain, dict):
        return plain
    kind = _find(plain[TYPE])
    fields = {name: from_plain(v) for name, v in plain.items() if name != TYPE}
    return kind[fields["name"]] if issubclass(kind, enum.Enum) else kind(**fields)


def with_defaults(plain: Any) -> Any:
    """A plain tree with fields that were added to its types later, at their defaults.

    A new field's default means what there was without it, so that old runs go on.
    """
    if isinstance(plain, list):
        return [with_defaults(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    tree = {name: with_defaults(value) for name, value in plain.items()}
    try:
        kind = _find(plain[TYPE])
    except ValueError:
        return tree
    if issubclass(kind, enum.Enum):
        return plain
    none = dataclasses.MISSING
    for field in dataclasses.fields(kind):
        made = field.default_factory
        value = field.default if made is none else made()
        if field.name not in tree and value is not none:
            tree[field.name] = to_plain(value)
    return tree


def flatten(plain: Any, prefix: str = "", types: bool = False) -> dict[str, Any]:
    """{"train.optimiser.learning_rate": 2e-4, ...} of a plain tree.

    With `types` also {"method (type)": "ABMIL", ...}, as two may have the same fields.
    """
    if not isinstance(plain, dict):
        return {prefix: plain}
    if set(plain) == {TYPE, "name"}:
        return {prefix: plain["name"]}
    flat = {}
    if types and TYPE in plain:
        flat[f"{prefix} (type)".strip()] = plain[TYPE].rpartition(".")[2]
    for name, value in plain.items():
        if name != TYPE:
            flat |= flatten(value, f"{prefix}.{name}" if prefix else name, types)
    return flat


def differences(before: Any, now: Any) -> list[str]:
    """One line for each field that two plain trees give different values or types."""
    before, now = flatten(before, types=True), flatten(now, types=True)
    absent = "(absent)"
    return [
        f"{name}: was {before.get(name, absent)!r}, is {now.get(name, absent)!r}"
        for name in sorted(before | now)
        if before.get(name, absent) != now.get(name, absent)
    ]


class Field(NamedTuple):
    """A field of a config.

    Attributes:
        path: "train.optimiser.learning_rate".
        type: what it takes, in words; of a part the name of its class.
        default: its value in this config, as text; of a part "".
        meaning: from the docstring of its class.
    """

    path: str
    type: str
    default: str
    meaning: str


def describe(config: Any, prefix: str = "") -> list[Field]:
    """All fields of a tree, each part before its own fields; parts have no default."""
    hints, rows = typing.get_type_hints(type(config)), []
    meaning = _meanings(type(config))
    for name in (field.name for field in dataclasses.fields(config)):
        path, value = prefix + name, getattr(config, name)
        kind, default = _words(hints[name]), str(getattr(value, "name", value))
        if is_config(value):
            kind, default = type(value).__name__, ""
        rows.append(Field(path, kind, default, meaning.get(name, "")))
        rows += describe(value, f"{path}.") if is_config(value) else []
    return rows


def _meanings(kind: type) -> dict[str, str]:
    """{field: meaning} from `Attributes:` of a class's docstring and its bases'."""
    entry = r"^ {4}(\w[\w, ]*): (.+(?:\n {5,}.+)*)"  # "train, val: shares, ..."
    meanings = {}
    for one in reversed(kind.__mro__):
        _, _, text = inspect.cleandoc(one.__doc__ or "").partition("\nAttributes:\n")
        for names, meaning in re.findall(entry, text, re.MULTILINE):
            meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return meanings


def check_types(config: Any, path: str = "config") -> None:
    """Checks that every field of a tree holds what its annotation promises.

    Raises:
        ValueError: naming the field by its flag; no number may be infinite or NaN.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not _fits(value, hint):
            raise ValueError(f"--{path}.{field.name}={value!r}: not {_wanted(hint)}")
        if is_config(value):
            check_types(value, f"{path}.{field.name}")


def validate(config: Any, path: str = "config") -> None:
    """Checks types, then bounds and `validate()` of a tree, innermost first.

    Args:
        config: the tree.
        path: name of the tree on the command line.

    Raises:
        ValueError: naming the field by its flag, and the mend.
    """
    check_types(config, path)
    _validate(config, path)


def is_config(value: Any) -> bool:
    """Whether a value is a dataclass, not the class of one."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _validate(config, path):
    for field in dataclasses.fields(config):
        if is_config(value := getattr(config, field.name)):
            _validate(value, f"{path}.{field.name}")
    try:
        if hasattr(config, "validate"):
            config.validate()
        _check_bounds(config)
    except FieldError as error:
        value = config
        for name in error.field.split("."):
            value = getattr(value, name)
        raise ValueError(f"--{path}.{error.field}={value}: {error.reason}") from None


def _check_bounds(config):
    bounds = getattr(config, "bounds", {})
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            continue
        least, most = bounds.get(field.name, (0, math.inf))
        if not least <= value <= most:
            above = "above 0" if least == POSITIVE else f"{least:g} or more"
            raise FieldError(
                field.name, above if most == math.inf else f"from {least} to {most}"
            )


def _fits(value, hint) -> bool:
    """Whether a value is of a type; whole numbers count as floats."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        # The command line makes numbers of (0,1), where names are wanted.
        parts = [str | float if part is str else part for part in parts]
        return len(parts) == len(value) and all(map(_fits, value, parts))
    if hint is Any or origin is not None:
        return True
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
    return isinstance(value, hint)


def _wanted(hint) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_wanted, parts))
    if origin is tuple:
        return f"several in brackets, as (1, 2), each {_wanted(parts[0])}"
    if dataclasses.is_dataclass(hint):
        return f"{hint.__name__}(...) in the config file"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    words = {int: "a whole number", float: "a finite number", bool: "True or False"}
    words |= {str: "text in quotes", type(None): "None"}
    return words.get(hint, str(hint))


def _words(hint) -> str:
    """A type in few words, for a table."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_words, parts))
    if origin is tuple:
        return f"({', '.join('...' if p is ... else _words(p) for p in parts)})"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(hint.__members__)
    words = {int: "whole number", float: "number", bool: "True | False", str: "text"}
    words |= {type(None): "None"}
    return words.get(hint) or getattr(hint, "__name__", str(hint))


def _find(name):
    """The config class or enum of this full name."""
    module, _, kind = name.rpartition(".")
    package = module.partition(".")[0]
    if package not in PACKAGES:
        raise ValueError(
            f"{name} is not a config of wsi_jax; was the file edited? If it is of your "
            f"own, add --trust {package}"
        )
    try:
        config = getattr(importlib.import_module(module), kind, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # one that it imports
            raise
        config = None
    is_enum = isinstance(config, type) and issubclass(config, enum.Enum)
    if not (is_enum or dataclasses.is_dataclass(config)):
        raise ValueError(f"{name} is not a config of this version of wsi_jax")
    return config
