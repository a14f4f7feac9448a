"""A run's metrics, one JSON object a line."""

import json
import os

from wsi_jax.files import Lines, any_path, write_text


class MetricsLog:
    """Appends {"step": ..., name: value, ...} to a file, resuming where a run resumes.

    Args:
        step: the step the run resumes from; later lines of a killed run are dropped,
            so that no step stands twice.
    """

    def __init__(self, path: str | os.PathLike, step: int = 0):
        lines = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
        self._lines = Lines(path)
        self.flush = self._lines.flush

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.add(json.dumps({"step": step, **metrics}))


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The lines of a metrics file; one cut short by a kill is left out."""
    path = any_path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
