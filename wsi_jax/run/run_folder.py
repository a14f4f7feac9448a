"""The folder of a run: its config, its files, and what may go on in it."""

import csv
import io
import json
from typing import Any

from wsi_jax import __version__, config_fields
from wsi_jax.data.csv_table import escape_formula, unescape_formula
from wsi_jax.files import AnyPath, any_path, is_remote, replacing, write_text
from wsi_jax.provenance import config_hash, provenance

# Fields that may differ between two commands that are still the same run.
FREE = (
    *("run_dir", "reading", "max_refused", "heatmaps"),
    *("executor", "scheduler", "cluster", "shard"),
)
READABLE = 0, 2  # the first version whose run folders this one reads


class RunError(ValueError):
    """A run that cannot go on as asked; the message names the flag or the file."""


def check_version(version: str, path: AnyPath) -> None:
    """Checks that this version reads what another has written.

    Raises:
        RunError: naming the version that does, and what else to do.
    """
    if tuple(map(int, version.split(".")[:2])) < READABLE:
        raise RunError(
            f"{path} is of wsi_jax {version}, and {__version__} has other names for "
            f"what is in it: use it with wsi_jax=={version}, or train again in another "
            "folder (--config.run_dir)"
        )


def check_claim(folder: AnyPath, config: Any) -> None:
    """Checks that a folder holds no run, or one of this very config.

    Raises:
        RunError: listing the fields that differ, or naming an earlier version.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    record = read_json(path, "config")
    check_version(record.get("versions", {}).get("wsi_jax", "0.1.0"), folder)
    before = config_fields.with_defaults(record["config"])
    changed = config_fields.differences(_fixed(before), fixed_fields(config))
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        hint = ""
        if "features" in before and config.tilings():
            features = before["features"] or folder / "features"
            hint = f" (features are shared by --config.features={features})"
        raise RunError(
            f"{folder} holds a run of another config:\n{listed}\n"
            f"change it back, or name a new folder with --config.run_dir{hint}"
        )


def fixed_fields(config: Any) -> dict[str, Any]:
    """The fields that are the same in all commands of a run, fit for JSON."""
    return _fixed(config_fields.to_plain(config))


def _fixed(tree):
    return {name: value for name, value in tree.items() if name not in FREE}


def claim(folder: AnyPath, config: Any) -> None:
    """Makes the run's folder, unless it is made, with the config in it."""
    path = folder / "config.json"
    if not path.is_file():
        write_json(path, {"config": config_fields.to_plain(config)} | provenance())


def features_folder(config: Any, folder: AnyPath) -> AnyPath:
    """The folder of feature files, where a run extracts any.

    Raises:
        RunError: it would be in an object store.
    """
    features = any_path(config.features or folder / "features")
    if is_remote(features) and config.tilings():
        raise RunError(
            f"{features}: feature files (HDF5) cannot be in an object store: name a "
            "folder on a disk of this machine, or a mounted one, by --config.features"
        )
    return features


def hdf5_folder(config: Any, folder: AnyPath) -> AnyPath:
    """Where a run keeps HDF5 of its own: in its folder, or below that of its features
    if its own is in an object store."""
    if not is_remote(folder):
        return folder
    return features_folder(config, folder) / "runs" / config_hash(str(folder))


def read_json(path: AnyPath, *fields: str) -> dict[str, Any]:
    """An object that `write_json` wrote into a run's folder, with these objects in it.

    Raises:
        RunError: the file holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(part, dict) for part in (tree, *map(tree.get, fields))):
            raise ValueError(f"no object with {', '.join(fields) or 'names'}")
    except (ValueError, AttributeError) as error:
        raise RunError(
            f"{path}: damaged ({error}); put back what was there, or name a new folder "
            "for the run"
        ) from error
    return tree


def write_json(path: AnyPath, tree: Any) -> None:
    """Writes JSON under a temporary name, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(tree, indent=1) + "\n")


def write_csv(path: AnyPath, lines: list[dict]) -> None:
    """Writes dicts of one shape as CSV, whole; no spreadsheet computes its cells."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({name: escape_formula(v) for name, v in line.items()})


def read_csv(path: AnyPath) -> list[dict[str, str]]:
    """The lines of a file of `write_csv`, as text."""
    file = io.StringIO(path.read_bytes().decode("utf-8"), newline="")
    return [
        {name: unescape_formula(cell) for name, cell in line.items()}
        for line in csv.DictReader(file)
    ]
