"""Attention sampling beside patch-all: seconds and AUC, from slide files on disk.

    python -m benchmarks.attention_sampling --out FILE --cohort cohorts/needle \
        --fields cohorts/bach --weights encoder.safetensors --runs runs/benchmark

Both read with the same threads, encode with the same trunk, held, and read the next
batch while one is learnt from. They are timed in batches of as many slides, and trained
as `attention_needle.py` and `patch_needle.py` say; how many crops are sampled is fixed.
`finest`: patch-all at the finest magnification. `every`: patch-all at each of three,
their seconds summed and the one that validation likes best; sampling then chooses among
the three, by the schedule of `phantom/attention_sampling.py`. `fields`: photographs of
2,048 x 1,536 px in four classes, and trunks that learn, where only time is measured.
Seconds are medians over batches; those of a verdict do not hold the search for tissue,
which is the same for both and stands beside.
"""

import copy
import csv
import dataclasses
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import record
from experiments import cohort as experiment
from experiments.bach import Bach
from experiments.configs.phantom import attention_needle, patch_needle
from experiments.configs.phantom import attention_sampling as magnifications
from experiments.configs.pretrain import detail
from experiments.experiment import Experiment, Manifest
from experiments.progress import progress
from experiments.sources import LookSource
from wsi_jax import pipeline
from wsi_jax.data.bach import MPP
from wsi_jax.data.cohort import Cohort
from wsi_jax.evals.cost import Meter
from wsi_jax.evals.intervals import delong_difference
from wsi_jax.nets.look import Overlook
from wsi_jax.train.compile import compile_method, make_mesh
from wsi_jax.types import Task

MPPS, CROPS = (1.0, 2.0, 4.0), 64
FIELD_PX, FIELD_STEM, FIELD_CROPS = 224, 16, 16
BATCH, BATCHES = 8, 6


class Cost(NamedTuple):
    """What one method takes.

    Attributes:
        train_s: seconds of a training step.
        infer_s: seconds of a slide's verdict.
        tiles: read of a slide in a training step, on average.
        judged: read of it for a verdict.
        tissue_s: seconds of the search for tissue, a slide.
        parts: seconds of a crop's reading, its forward pass, an overview's reading and
            the look at it.
    """

    train_s: float
    infer_s: float
    tiles: float
    judged: float
    tissue_s: float
    parts: tuple[float, float, float, float]


def sampled(weights: str, mpps: Sequence[float]) -> Experiment:
    """`CROPS` crops of each slide; a verdict is one draw of as many."""
    config = attention_needle.get_config()
    config.method = dataclasses.replace(
        config.method, mpps=tuple(mpps), crops=CROPS, draws=1, **trunk(weights)
    )
    if len(mpps) > 1:  # as the config in which one of several is learnt
        chosen = magnifications.get_config().method
        names = ("alone", "spread", "tells", "thaw")
        held = {name: getattr(chosen, name) for name in names}
        config.method = dataclasses.replace(config.method, **held)
    return config


def patch_all(weights: str, mpp: float) -> Experiment:
    """Every tile at one magnification, side by side."""
    config = patch_needle.get_config()
    config.method = dataclasses.replace(config.method, mpp=mpp, **trunk(weights))
    return abutting(config)


def trunk(weights: str) -> dict:
    """Of below a millisecond a tile: held where it knows something, or else trained."""
    made = dataclasses.replace(detail.get_config().method.encoder, weights=weights)
    return {"trunk": made} | ({} if weights else {"trunk_rate": 1.0})


def abutting(config: Experiment) -> Experiment:
    """With cells of the overview as wide as a tile."""
    um = config.method.tile_px * config.method.mpp
    config.grid.size_px = round(um / config.grid.mpp)
    return config


def timed(config: Experiment) -> Experiment:
    """In batches of as many slides, each read anew, as where they are many."""
    config = copy.deepcopy(config)
    config.train.batch, config.loading.cache_gib = BATCH, 0.0
    return config


def on_fields(config: Experiment, mpp: float | None = None) -> Experiment:
    """For photographs: tiles of 224 px, fewer crops, a trunk of as little work."""
    config.grid = dataclasses.replace(
        config.grid, mpp=8 * MPP, size_px=FIELD_PX // 8, min_tissue=0.0
    )
    trunk = dataclasses.replace(config.method.trunk, stem=FIELD_STEM, weights="")
    if mpp is None:
        mpps = tuple(MPP * m / MPPS[0] for m in config.method.mpps)
        config.method = dataclasses.replace(
            config.method, trunk=trunk, mpps=mpps, crop_px=FIELD_PX, crops=FIELD_CROPS
        )
        return config
    config.method = dataclasses.replace(
        config.method, trunk=trunk, mpp=mpp, tile_px=FIELD_PX
    )
    return abutting(config)


def cost(config: Experiment, part: Cohort, batches: int) -> Cost:
    """Measures a method on some slides; whatever is to be compiled is compiled before.

    Args:
        config: of the method.
        part: slides.
        batches: of a training, and of verdicts.
    """
    meter, config = Meter(), timed(config)
    part = part._replace(rows=part.rows[: BATCH * batches])
    found = pipeline.look(
        part.rows, config.tiling(), reading=config.reading, meter=meter,
        progress=progress,
    )  # fmt: skip
    mesh = make_mesh(jax.devices()[:1])
    source = LookSource(config, found, mesh)
    tx = config.train.optimiser.make(config.train.steps)
    (stage,) = config.stages(Task(part.classes), tx)
    method = compile_method(stage.method, mesh)
    state = method.init(jax.random.key(0), next(source.training(part, None, 0)))
    tiles, steps, verdicts = [], [], []
    for _ in range(2):  # the first time compiles
        steps.clear()
        stream = source.training(part, None, 0)
        began = time.perf_counter()
        for batch in itertools.islice(stream, batches):
            state, metrics = method.step(state, batch)
            jax.block_until_ready(metrics)
            steps.append(time.perf_counter() - began)
            began = time.perf_counter()
    for _ in range(2):
        verdicts.clear()
        began = time.perf_counter()
        for batch, _ in source.evaluation(part):
            said = method.predict(state.params, batch, jax.random.key(0))
            jax.block_until_ready(said.logits)
            tiles += said.counts["tiles"].tolist()
            verdicts.append(time.perf_counter() - began)
            began = time.perf_counter()
    return Cost(
        statistics.median(steps[1:]),
        statistics.median(verdicts[1:]) / BATCH,
        float(getattr(config.method, "crops", np.mean(tiles))),
        float(np.mean(tiles)),
        meter.as_dict()["span.survey.wall_s"] / len(part.rows),
        parts(config, source, part, state.params),
    )


def parts(config, source, part, params) -> tuple[float, float, float, float]:
    """Seconds of the cost model's parts, each alone: the least of three tries."""
    method, views = config.method, list(source.views(part))[:BATCH]
    n, mpp = 32, method.reads()[0]
    side = method.cells(config.grid.mpp, config.grid.size_px).crop_px
    rng = np.random.default_rng(0)

    def read():
        for view in views:
            for yx in rng.integers(0, np.array(view.shape) - 1, (n, 2)):
                view.crop((yx * config.grid.mpp / mpp).astype(int).tolist(), side, mpp)

    def overviews():
        for view in views:
            view.whole(config.grid.mpp)

    encode = jax.jit(method.trunk.make().apply)
    crops = np.zeros((n * BATCH, side, side, 3), np.uint8)
    net_look = lambda: 0
    if "look" in params:
        batch, _ = next(source.evaluation(part))
        cell = config.grid.size_px
        net = Overlook(
            cell, (1,) * len(method.mpps), method.attention, method.layers,
            method.relative,
        )  # fmt: skip
        attend = jax.jit(net.apply)
        net_look = lambda: attend(params["look"], batch.x.overview, batch.mask)
    forward = lambda: encode(params["trunk"], crops)
    return (
        least(read) / (n * BATCH),
        least(forward) / (n * BATCH),
        least(overviews) / BATCH if "look" in params else 0.0,
        least(net_look) / BATCH,
    )


def least(call) -> float:
    """Seconds of the quickest of three calls, after one that compiles."""
    jax.block_until_ready(call())
    tries = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(call())
        tries.append(time.perf_counter() - began)
    return min(tries)


def predicted(ours: Cost, theirs: Sequence[Cost], passes: int) -> dict[str, float]:
    """The cost model's ratios: reading, and three forward passes for a training step,
    one where the trunk is held; the look is one more, since it is drawn from before it
    is trained."""
    of = lambda c, tiles, times, look: (
        tiles * (c.parts[0] + times * c.parts[1]) + (c.parts[2] + look * c.parts[3])
    )
    step = lambda c: of(c, c.tiles, passes, 4)
    verdict = lambda c: of(c, c.judged, 1, 1)
    ratio = lambda seconds: sum(map(seconds, theirs)) / seconds(ours)
    return {
        "predicted_train_speedup": ratio(step),
        "predicted_infer_speedup": ratio(verdict),
    }


def speed(regime: str, ours: Cost, theirs: Sequence[Cost], passes: int) -> dict:
    """One row, without AUCs."""
    total = lambda name: sum(getattr(c, name) for c in theirs)
    whole = lambda c: c.infer_s + c.tissue_s
    return {
        "regime": regime,
        "crops": ours.tiles,
        "crops_verdict": ours.judged,
        "tiles": total("tiles"),
        "train_step_s": ours.train_s,
        "train_step_s_patch_all": total("train_s"),
        "infer_slide_s": ours.infer_s,
        "infer_slide_s_patch_all": total("infer_s"),
        "tissue_slide_s": ours.tissue_s,
        "train_speedup": total("train_s") / ours.train_s,
        "infer_speedup": total("infer_s") / ours.infer_s,
        "infer_speedup_with_tissue": sum(map(whole, theirs)) / whole(ours),
        **predicted(ours, theirs, passes),
        "read_crop_ms": 1e3 * ours.parts[0],
        "forward_crop_ms": 1e3 * ours.parts[1],
        "read_overview_ms": 1e3 * ours.parts[2],
        "look_ms": 1e3 * ours.parts[3],
    }


def trained(config: Experiment, run: pathlib.Path) -> tuple[np.ndarray, float]:
    """(probability of the second class on the test slides, best validation score)."""
    experiment.run(config, run)
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        lines = sorted(csv.DictReader(file), key=lambda line: line["slide_id"])
    lines_of = (run / "train" / "metrics.jsonl").read_text().splitlines()
    looks = [json.loads(line) for line in lines_of]
    best = min(one["val.log_loss"] for one in looks if "val.log_loss" in one)
    name = f"p_{config.data.classes[1]}"
    return np.array([float(line[name]) for line in lines]), -best


def compared(ours: np.ndarray, theirs: np.ndarray, positive: np.ndarray) -> dict:
    """Both AUCs, and the paired 95 % interval of their difference."""
    gap = delong_difference(positive, ours, theirs)
    area = lambda scores: float(delong_difference(positive, scores, -scores).value)
    return {
        "n_test": len(positive),
        "auc": (1 + area(ours)) / 2,
        "auc_patch_all": (1 + area(theirs)) / 2,
        "auc_diff": gap.value,
        "auc_diff_lo": gap.lo,
        "auc_diff_hi": gap.hi,
    }


def overview_only(folder: pathlib.Path) -> dict:
    """AUC of an overview alone, from the cohort's certificate."""
    rows = json.loads((folder / "certificate.json").read_text())["rows"]
    row = next(
        r for r in rows if r["probe"] == "slide, fields pooled" and r["mpp"] == 8
    )
    return {
        "auc_overview_only": row["auc"],
        "auc_overview_only_lo": row["lo"],
        "auc_overview_only_hi": row["hi"],
    }


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("--cohort", required=True, type=pathlib.Path)
    parser.add_argument("--fields", type=pathlib.Path, help="photographs, as BACH's")
    parser.add_argument("--weights", default="", help="of the trunk")
    parser.add_argument("--runs", type=pathlib.Path, help="trains there, for AUCs")
    parser.add_argument(
        "--every", action="store_true", help="trains at each magnification, too"
    )
    parser.add_argument("--seed", type=int, default=0, help="of these runs")
    chosen = parser.parse_args()
    batches, rows = (3 if chosen.quick else BATCHES), []

    data = Manifest(
        manifest=str(chosen.cohort / "slides.csv"), classes=("normal", "tumor")
    )
    ours = {
        "finest": sampled(chosen.weights, MPPS[:1]),
        "every": sampled(chosen.weights, MPPS),
    }
    theirs = [patch_all(chosen.weights, mpp) for mpp in MPPS]
    for config in (*ours.values(), *theirs):
        config.data, config.train.seed = data, chosen.seed
    cohort = data.cohort()
    test = cohort._replace(rows=tuple(r for r in cohort.rows if r.split == "test"))
    costs = [cost(config, test, batches) for config in theirs]
    for name, config in ours.items():
        against = costs[:1] if name == "finest" else costs
        passes = 1 if chosen.weights else 3
        rows.append(speed(name, cost(config, test, batches), against, passes))
    # Timed before anything is trained, which may share the machine.
    if chosen.fields:
        fields = Bach(root=str(chosen.fields), folds=0, complete=False).cohort()
        mpps = [MPP * mpp / MPPS[0] for mpp in MPPS]
        costs = [cost(on_fields(patch_all("", m), m), fields, batches) for m in mpps]
        for name, count in (("finest", 1), ("every", 3)):
            config = on_fields(sampled("", MPPS[:count]))
            against = costs[:count]
            rows.append(
                speed(f"fields, {name}", cost(config, fields, batches), against, 3)
            )
    if chosen.runs:
        positive = sorted((r.slide_id, r.label) for r in test.rows)
        positive = np.array([label == "tumor" for _, label in positive])
        several = len(MPPS) if chosen.every else 1
        found = [
            trained(config, chosen.runs / f"patch_all_{mpp:g}")
            for config, mpp in zip(theirs[:several], MPPS, strict=False)
        ]
        best = max(range(several), key=lambda i: found[i][1])
        judged = list(ours.items()) if chosen.every else [("finest", ours["finest"])]
        for row, (name, config) in zip(rows, judged, strict=False):
            scores, _ = trained(config, chosen.runs / f"sampled_{name}")
            of = 0 if name == "finest" else best
            row |= compared(scores, found[of][0], positive)
            row |= {"patch_all_mpp": MPPS[of]} | overview_only(chosen.cohort)
    record.write(chosen.out, rows)
    print(record.table(rows))


if __name__ == "__main__":
    main()
