"""Config dataclasses as plain JSON and back, so that a run can be opened again."""

import dataclasses
import enum
import importlib
import re
from collections.abc import Mapping
from typing import Any

TYPE = "type"


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
    """A plain tree with the fields that its types have got since, at their defaults.

    A new field's default is what there was without it, so that a run of before goes on.
    """
    if isinstance(plain, list):
        return [with_defaults(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    known = {name: with_defaults(value) for name, value in plain.items()}
    try:
        kind = _find(plain[TYPE])
    except ValueError:
        return known
    if issubclass(kind, enum.Enum):
        return plain
    none = dataclasses.MISSING
    for field in dataclasses.fields(kind):
        made = field.default_factory
        value = field.default if made is none else made()
        if field.name not in known and value is not none:
            known[field.name] = to_plain(value)
    return known


def flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.optimiser.learning_rate": 2e-4, ...} of a plain tree, types left out."""
    if not isinstance(plain, dict):
        return {prefix: plain}
    if set(plain) == {TYPE, "name"}:
        return {prefix: plain["name"]}
    flat = {}
    for name, value in plain.items():
        if name != TYPE:
            flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def differences(before: Any, now: Any) -> list[str]:
    """One line for each field that two plain trees give different values or types."""
    before, now = _kinds(before) | flatten(before), _kinds(now) | flatten(now)
    absent = "(absent)"
    return [
        f"{name}: was {before.get(name, absent)!r}, is {now.get(name, absent)!r}"
        for name in sorted(before | now)
        if before.get(name, absent) != now.get(name, absent)
    ]


def _kinds(plain: Any, prefix: str = "") -> dict[str, str]:
    """{"method (type)": "ABMIL", ...}: two methods may have the same fields."""
    if not isinstance(plain, dict) or set(plain) == {TYPE, "name"}:
        return {}
    kinds = (
        {f"{prefix} (type)".strip(): plain[TYPE].rpartition(".")[2]}
        if TYPE in plain
        else {}
    )
    for name, value in plain.items():
        kinds |= _kinds(value, f"{prefix}.{name}" if prefix else name)
    return kinds


def validate(config: Any) -> None:
    """Calls `validate()` on every dataclass of a tree that has one, inmost first."""
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            validate(value)
    if hasattr(config, "validate"):
        config.validate()


def rename_fields(message: str, names: Mapping[str, str]) -> str:
    """A message with the fields of the config under the names they have elsewhere.

    Errors name a field as a command with a config does, `--config.data.mpp`. A command
    of other flags, or Python, renames those that it has; the others were settled when
    the run was trained.

    Args:
        message: of an error.
        names: {"data.mpp": "--mpp", ...}.
    """

    def renamed(match):
        path, value = match[1], match[2] or ""
        if path in names:
            return names[path] + value
        return f"{path}{value} (settled when the run was trained)"

    return re.sub(r"--config\.([\w.]*\w)(=[\w.-]*\w)?", renamed, message)


def _find(name):
    module, _, kind = name.rpartition(".")
    if module.split(".")[0] not in ("wsi_jax", "experiments"):
        raise ValueError(f"{name} is not a config of wsi_jax; was the file edited?")
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # one that it imports
            raise
        found = None
    is_config = dataclasses.is_dataclass(found) or (
        isinstance(found, type) and issubclass(found, enum.Enum)
    )
    if not is_config:
        raise ValueError(f"{name} is not a config of this version of wsi_jax")
    return found
