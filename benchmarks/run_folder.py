"""A finished run's folder and its practice cohort's, as benchmarks read them."""

import functools
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

import wsi_jax
from experiments.phantoms.cohort_folder import made_with
from experiments.phantoms.synthetic import LESION
from wsi_jax.config_fields import flatten
from wsi_jax.data.cohort import read_manifest
from wsi_jax.evals.attention import localisation_metrics
from wsi_jax.evals.intervals import Difference, Interval
from wsi_jax.run.run_folder import read_csv, read_json
from wsi_jax.slides.slide import open_slide
from wsi_jax.training.log import read_metrics

REPLICATES = 2000
ENDS = ("", "_lo", "_hi")


class Cohort:
    """A folder of practice slides, and how its certificate came out."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.config = folder, made_with(folder)

    @property
    def source(self) -> str:
        """What its slides are made of."""
        return "real tiles" if self.config["tiles"] else "drawn"

    def certificate(self) -> list[dict]:
        """Rows of its certificate; none where it has none."""
        path = self.folder / "certificate.json"
        return read_json(path)["rows"] if path.is_file() else []

    def about(self) -> dict:
        """Preset and seed; how many rows of its certificate hold."""
        about = {name: self.config[name] for name in ("preset", "seed")}
        if rows := self.certificate():
            for kind in ("signal", "none"):
                held = [row["ok"] for row in rows if row["expected"] == kind]
                about |= {kind: len(held), f"{kind}_held": sum(held)}
        return about


class Run:
    """A finished run's folder.

    Attributes:
        folder: where it lies.
        config: {dotted name of a field: value}.
        commit: at which it was made.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.made = read_json(folder / "config.json")
        self.config, self.commit = flatten(self.made["config"]), self.made["commit"]

    @property
    def method(self) -> str:
        """Name of its method's config."""
        return self.made["config"]["method"]["type"].rpartition(".")[2]

    @functools.cached_property
    def cohort(self) -> Cohort:
        """Where its slides are from."""
        manifest = pathlib.Path(self.config.get("data.manifest", ""))
        return Cohort(pathlib.Path(self.config.get("data.root", manifest.parent)))

    @functools.cached_property
    def test(self) -> dict:
        """Metrics on test slides."""
        metrics = read_json(self.folder / "metrics.json")
        return {n.removeprefix("test."): v for n, v in metrics.items() if "test." in n}

    @functools.cached_property
    def cost(self) -> dict:
        """What it took, whole."""
        return read_json(self.folder / "cost.json")

    def lines(self, name: str) -> list[dict]:
        """The lines of one of its CSVs."""
        return read_csv(self.folder / name)

    def log(self, stage: str) -> list[dict]:
        """Lines of the metrics of a stage's training; none of a stage that it lacks."""
        return read_metrics(self.folder / stage / "metrics.jsonl")

    def metrics(self, *names: str) -> dict:
        """Test slides and metrics, each with its interval where it has one."""
        ends = [f"{name}{end}" for name in names for end in ENDS]
        return {name: self.test[name] for name in ("n", *ends) if name in self.test}

    def scores(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which test slides are tumours, and {strategy: probability that they are}.

        In the order of their names; "" is the run's own strategy.
        """
        lines = sorted(self.lines("predictions.csv"), key=lambda x: x["slide_id"])
        end = "p_tumor"
        columns = [n for n in lines[0] if n == end or n.endswith(f".{end}")]
        positive = np.array([line["label"] == "tumor" for line in lines])
        return positive, {
            name.removesuffix(end).rstrip("."): np.array(
                [float(line[name]) for line in lines]
            )
            for name in columns
        }

    def attention_on_lesions(
        self, most: int | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Attention [n] on tumour test slides; which cells are lesion by half [n]."""
        predictor = wsi_jax.load(self.folder)
        rows = read_manifest(self.folder / "manifest.csv").rows
        tumours = (r for r in rows if (r.split, r.label) == ("test", "tumor"))
        for row in itertools.islice(tumours, most):
            prediction = predictor.predict(row.path, row.mpp)
            mask = self.cohort.folder / "masks" / f"{row.slide_id}_mask.png"
            yield prediction.attention, lesion_share(mask, prediction) >= 0.5

    def localisation(self, most: int | None, *names: str) -> dict:
        """Means over tumour test slides of how well attention finds the lesion.

        Args:
            most: slides that are used; None for all.
            names: metrics of `localisation_metrics`.
        """
        metrics = [
            localisation_metrics(attention, lesion)._asdict()
            for attention, lesion in self.attention_on_lesions(most)
            if lesion.any() and not lesion.all()
        ]
        values = np.array([[one[name] for name in names] for one in metrics])
        rng, n = np.random.default_rng(0), len(values)
        draws = rng.integers(0, n, (REPLICATES, n))
        ends = np.percentile(values[draws].mean(1), [2.5, 97.5], axis=0)
        row = {"slides_with_lesions": n}
        for name, *value in zip(names, values.mean(0), *ends, strict=True):
            row |= interval(name, value)
        return row


def lesion_share(mask: pathlib.Path, prediction) -> np.ndarray:
    """The share of each cell [n] that is lesion."""
    with Image.open(mask) as image:
        lesion = np.asarray(image) == LESION
    with open_slide(prediction.path, prediction.mpp) as slide:
        scale = np.array(lesion.shape) / slide.shape
    start = np.floor(prediction.yx * scale).astype(int)
    stop = np.ceil((prediction.yx + prediction.tile_px) * scale).astype(int)
    boxes = zip(start, stop, strict=True)
    return np.array([lesion[y:v, x:w].mean() for (y, x), (v, w) in boxes])


def interval(name: str, ends: Sequence[float]) -> dict[str, float]:
    """The three columns of a value, its lower and its upper end."""
    return {f"{name}{end}": float(v) for end, v in zip(ENDS, ends, strict=False)}


def over_cohorts(
    values: Sequence[Interval | Difference], name: str = "auc_diff"
) -> dict[str, float]:
    """The mean over cohorts, with the interval of independent cohorts."""
    mean = float(np.mean([one.value for one in values]))
    half = math.hypot(*((one.hi - one.lo) / 2 for one in values)) / len(values)
    return {"cohorts": len(values)} | interval(name, (mean, mean - half, mean + half))


def grouped(rows: Sequence[Mapping], *names: str) -> dict[tuple, list[Any]]:
    """Rows by the values of some of their names, in the order of the first of each."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups
