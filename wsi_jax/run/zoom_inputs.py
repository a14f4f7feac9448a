"""For methods that zoom: features of tiles and of their children, and batches of both.

Once a stage has distilled what children say, batches are of that instead.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.distilled import DistilledBags, is_distilled, write_distilled
from wsi_jax.data.features import config_hash, read_coords
from wsi_jax.data.two_level_bags import TwoLevelBags, pair
from wsi_jax.evals.cost import Meter
from wsi_jax.run import extract as extraction
from wsi_jax.run.config import Experiment
from wsi_jax.run.inputs import FeatureSource, Tiles
from wsi_jax.training.checkpoint import digest
from wsi_jax.training.flops import executed


def extract(
    config: Experiment,
    rows: Sequence[Row],
    folder: pathlib.Path,
    *,
    mesh: Mesh,
    check: Callable[[list[dict]], None],
    sheet: pathlib.Path,
    **how: Any,
) -> tuple[list[dict], "ZoomSource"]:
    """Features of tiles and of their children; arguments as `pipeline.extract`.

    Returns:
        What became of each slide, and where batches come from.
    """
    how |= {"batch": config.encode_batch}
    tiles, finer = (extraction.Ready(tiling, mesh) for tiling in config.tilings())
    low = extraction.extract(rows, tiles, folder, check=check, sheet=sheet, **how)
    judge = lambda high: check(both(low, high))
    high = extraction.extract(rows, finer, folder, check=judge, **how)
    slides = both(low, high)
    source = ZoomSource(config, folder / tiles.folder, folder / finer.folder, mesh)
    for row, one in zip(rows, slides, strict=True):
        if one["status"] != "refused" and not source.count(row):
            one["status"] = "refused"
            told = f"{row.slide_id}: no tile of which all children could be read"
            one["reason"] = f"{told}; {one['reason']}"
    return slides, source


def both(low: list[dict], high: list[dict]) -> list[dict]:
    """A line of slides.csv for each slide: refused where its tiles or children are."""
    lines = []
    for one, below in zip(low, high, strict=True):
        refused = "refused" in (one["status"], below["status"])
        status = "refused" if refused else one["status"]
        reasons = dict.fromkeys(filter(None, (one["reason"], below["reason"])))
        lines.append(one | {"status": status, "reason": "; ".join(reasons)})
    return lines


class ZoomSource(FeatureSource):
    """Features of tiles and of their children, from HDF5 files.

    Args:
        config: of the run.
        low: folder of the features of tiles.
        high: folder of those of their children.
        mesh: over whose devices batches are split.
    """

    def __init__(
        self, config: Experiment, low: pathlib.Path, high: pathlib.Path, mesh: Mesh
    ):
        super().__init__(config, low, mesh)
        self._high, self._k = high, config.method.children

    def count(self, row: Row) -> int:
        """Tiles of a slide that were read with all their children."""
        return len(self._kept(row)[0])

    def tiles(self, row, slide):
        del slide
        rows, low = self._kept(row)
        grid = self._config.grid
        return Tiles(low.yx[rows], grid.size_px, grid.mpp)

    def distilled(
        self,
        parts: Sequence[Cohort],
        distil: Callable,
        params: Any,
        folder: pathlib.Path,
        advance: Callable,
        meter: Meter,
        unit: str,
    ) -> "DistilledSource":
        """The same slides once a stage has distilled them; what is missing is made.

        What other parameters or other features have made is made anew.

        Args:
            parts: of the cohort: each slide is in one.
            distil: (params, batch, key) -> x, compiled.
            params: of the trained stage.
            folder: of the files.
            advance: of a progress bar.
            meter: is charged.
            unit: of the meter, of which each part has one.
        """
        self._known.clear()  # what children say is not wanted in training any more
        made_by, expected = digest(params), {}
        path_of = lambda name: folder / f"{name}.h5"
        for number, part in enumerate(parts):
            names = [row.slide_id for row in part.rows]
            prints = [config_hash(made_by, p) for p in self._bags(part).fingerprints]
            expected |= dict(zip(names, prints, strict=True))
            todo = {n for n in names if not is_distilled(path_of(n), expected[n])}
            advance(len(names) - len(todo), before=True)
            if not todo:
                continue
            # All batches, for what a slide gives may hang, in the last digit, on those
            # beside it.
            order, own = iter(names), f"{unit}/{number}"
            meter.begin(own)
            for batch, lengths in self.evaluation(part):
                before = executed()
                x = jax.device_get(distil(params, self.put(batch), jax.random.key(0)))
                spent = executed()
                meter.enter(own, **{name: spent[name] - before[name] for name in spent})
                for i, (n, name) in enumerate(zip(lengths, order, strict=False)):
                    if name in todo:
                        one = jax.tree.map(lambda a, i=i, n=n: a[i, :n], x)
                        write_distilled(path_of(name), one, expected[name])
                        advance(1)
        self._known.clear()
        return DistilledSource(self, folder, expected)

    def _open(self, rows, labels, weights):
        low = [self._path(row) for row in rows]
        high = [self._high / path.name for path in low]
        return TwoLevelBags(low, high, self._k, labels, weights, self._config.loading)

    def _kept(self, row):
        """Rows of a slide's tiles that count, and where all of its tiles lie."""
        path = self._path(row)
        low = read_coords(path)
        return pair(low, read_coords(self._high / path.name), self._k)[0], low


class DistilledSource(ZoomSource):
    """Features of tiles, and what a stage has distilled from their children.

    Args:
        source: of what it was distilled from.
        folder: of the files.
        fingerprints: of each slide's, by its name.
    """

    def __init__(self, source: ZoomSource, folder: pathlib.Path, fingerprints: dict):
        super().__init__(source._config, source._files, source._high, source.mesh)
        self._folder, self._fingerprints = folder, fingerprints

    def _open(self, rows, labels, weights):
        names = [row.slide_id for row in rows]
        return DistilledBags(
            [self._folder / f"{name}.h5" for name in names],
            [self._fingerprints[name] for name in names],
            labels,
            weights,
            self._config.loading,
        )
