"""A run's metrics, one JSON object a line."""

import json
import pathlib

from wsi_jax.files import write_text


class MetricsLog:
    """Appends {"step": ..., name: value, ...} to a file, resuming where a run resumes.

    Args:
        step: the step the run resumes from; later lines of a killed run are dropped,
            so that no step stands twice.
    """

    def __init__(self, path: str | pathlib.Path, step: int = 0):
        self._path = pathlib.Path(path)
        lines = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_text(self._path, "".join(map(_line, lines)))

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(_line({"step": step, **metrics}))


def read_metrics(path: str | pathlib.Path) -> list[dict]:
    """The lines of a metrics file; one cut short by a kill is left out."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _line(metrics: dict) -> str:
    return json.dumps(metrics) + "\n"
