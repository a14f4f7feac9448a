"""A finished run's folder and its practice cohort's, as benchmarks read them."""

import csv
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

import wsi_jax
from experiments.phantoms.synthetic import LESION
from wsi_jax.config_fields import flatten
from wsi_jax.evals.attention import localisation_metrics
from wsi_jax.evals.intervals import Difference, Interval
from wsi_jax.slides.slide import open_slide

Z = 1.959964  # of 95 % intervals
REPLICATES = 2000


def read_json(path: pathlib.Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_csv(path: pathlib.Path) -> list[dict]:
    """The lines of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Cohort:
    """A folder of practice slides, and how its certificate came out."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.config = read_json(folder / "cohort.json")["config"]

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

    @functools.cached_property
    def cohort(self) -> Cohort:
        data = self.made["config"]["data"]
        if "root" in data:
            return Cohort(pathlib.Path(data["root"]))
        return Cohort(pathlib.Path(data["manifest"]).parent)

    @functools.cached_property
    def test(self) -> dict:
        """Metrics on test slides."""
        metrics = read_json(self.folder / "metrics.json")
        return {n.removeprefix("test."): v for n, v in metrics.items() if "test." in n}

    @functools.cached_property
    def cost(self) -> dict:
        return read_json(self.folder / "cost.json")

    def lines(self, name: str) -> list[dict]:
        """The lines of one of its CSVs."""
        return read_csv(self.folder / name)

    def judged(self, *names: str) -> dict:
        """Test slides and metrics, each with its interval where it has one."""
        ends = [f"{name}{end}" for name in names for end in ("", "_lo", "_hi")]
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
        slides = [s for s in self.lines("manifest.csv") if s["split"] == "test"]
        for slide in [s for s in slides if s["label"] == "tumor"][:most]:
            path = pathlib.Path(slide["path"])
            path = path if path.is_absolute() else self.folder / path
            mpp = float(slide["mpp"]) if slide["mpp"] else None
            prediction = predictor.predict(path, mpp)
            mask = self.cohort.folder / "masks" / f"{slide['slide_id']}_mask.png"
            yield prediction.attention, lesion_share(mask, prediction) >= 0.5

    def localisation(self, most: int | None, *names: str) -> dict:
        """Means over tumour test slides of how well attention finds the lesion.

        Args:
            most: slides that are looked at; None for all.
            names: of `localisation_metrics`.
        """
        metrics = [
            localisation_metrics(attention, lesion)._asdict()
            for attention, lesion in self.attention_on_lesions(most)
            if lesion.any() and not lesion.all()
        ]
        values = np.array([[one[name] for name in names] for one in metrics])
        rng, n = np.random.default_rng(0), len(values)
        draws = rng.integers(0, n, (REPLICATES, n))
        low, high = np.percentile(values[draws].mean(1), [2.5, 97.5], axis=0)
        row = {"slides_with_lesions": len(values)}
        for i, name in enumerate(names):
            row[name] = float(values[:, i].mean())
            row |= {f"{name}_lo": float(low[i]), f"{name}_hi": float(high[i])}
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


def over_cohorts(
    values: Sequence[Interval | Difference], name: str = "auc_diff"
) -> dict[str, float]:
    """The mean over cohorts, with the interval of independent cohorts."""
    mean = float(np.mean([one.value for one in values]))
    errors = np.array([(one.hi - one.lo) / 2 / Z for one in values])
    half = Z * float(np.sqrt((errors**2).sum())) / len(values)
    ends = {name: mean, f"{name}_lo": mean - half, f"{name}_hi": mean + half}
    return {"cohorts": len(values)} | ends
