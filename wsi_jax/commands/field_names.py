"""Refuses a misspelt field by the text of the code, before JAX is imported."""

import pathlib
import re
import sys
from collections.abc import Iterable

from wsi_jax.run.config_file import did_you_mean, nearest

PACKAGE = pathlib.Path(__file__).parent.parent


def check_names(file: str, paths: Iterable[str]) -> None:
    """Refuses a path with a name that no config has; any other may still be wrong.

    A config file that imports more than this package is not judged, as its fields may
    be declared anywhere.

    Args:
        file: path, or path:argument, of a config.
        paths: fields that are set, as "train.steps".

    Raises:
        SystemExit: naming the nearest field.
    """
    source = pathlib.Path(file.partition(":")[0])
    if file.count(":") > 1 or not source.is_file():  # a method by its import path
        return
    text = source.read_text(encoding="utf-8", errors="replace")
    imported = {*re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)}
    if imported - {PACKAGE.name, *sys.stdlib_module_names}:
        return
    files = (one.read_text(encoding="utf-8") for one in PACKAGE.rglob("*.py"))
    names = {name for one in files for name in _fields(one)}
    names |= {*re.findall(r"(\w+)\s*:", text)}
    for path in paths:
        parts = path.split(".")
        for i, part in enumerate(parts):
            if part not in names:
                near = nearest(part, sorted(names))
                meant = ".".join([*parts[:i], near, *parts[i + 1 :]])
                hint = did_you_mean(near and f"--config.{meant}")
                hint = hint or "; `wsi-jax show METHOD` prints all"
                raise SystemExit(f"--config.{path}: no such field{hint}")


def _fields(text: str) -> list[str]:
    """Names that the dataclasses of a file declare."""
    parts = text.split("\n\n\n")  # as the formatter leaves them
    classes = [part for part in parts if part.startswith("@dataclasses.dataclass")]
    return re.findall(r"\n    (\w+): ", "\n".join(classes))
