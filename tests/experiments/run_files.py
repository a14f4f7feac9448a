"""Files that runs leave, read back and edited."""

import csv
import json


def table(path):
    """The lines of a CSV."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def by_slide(path):
    """The lines of a CSV, by slide."""
    return {line["slide_id"]: line for line in table(path)}


def write_table(path, rows, fields=None):
    """Writes dicts as a CSV: all fields of the first, or some."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields or list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_json(path):
    """The object of a JSON file."""
    return json.loads(path.read_text())


def edit(path, **fields):
    """Replaces fields of a JSON file."""
    path.write_text(json.dumps(read_json(path) | fields))


def times(paths):
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def outputs(folder):
    """What must be the same, byte for byte, whatever happened meanwhile."""
    names = "metrics.json", "predictions.csv"
    return [(folder / name).read_bytes() for name in names]
