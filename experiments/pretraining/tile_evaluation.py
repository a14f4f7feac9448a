"""How an encoder of tiles is validated while it learns, and tested afterwards.

Test metrics stand beside those of a baseline of colours and gradients.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from sklearn import linear_model, pipeline, preprocessing

from experiments.pretraining.tile_sets import Tiles, TileSets, evaluation_tiles
from wsi_jax.config_fields import from_plain
from wsi_jax.evals.bootstrap import REPLICATES, bootstrap
from wsi_jax.evals.intervals import wilson
from wsi_jax.evals.metrics import log_loss
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.weights_metadata import read_weights_metadata
from wsi_jax.ops import class_prior
from wsi_jax.report import tables
from wsi_jax.run.cohort_predictions import validation_metrics
from wsi_jax.run.run_folder import RunError, write_csv
from wsi_jax.training.compile import compile_each, compile_encoder, split
from wsi_jax.types import Method, Stage

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OCTAVES = 3
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse ridge penalties to choose from
CHUNK = 256
SHOWN = {
    "accuracy": "encoder",
    "baseline_accuracy": "colours and gradients",
    "difference": "difference",
    "beside_accuracy": "the encoder beside",
    "beside_difference": "difference to it",
}


class Evaluator(NamedTuple):
    """Validation and test of one encoder.

    Attributes:
        validate: params -> metrics of the validation tiles.
        test: params -> probabilities [n c] of the test tiles.
    """

    validate: Callable[[Any], dict[str, float]]
    test: Callable[[Any], np.ndarray]


def evaluator_for(
    stage: Stage,
    method: Method,
    trunk: Trunk,
    sets: TileSets,
    mesh: Mesh,
    batch: int,
    log_prior: Sequence[float],
) -> Evaluator:
    """By the method's classifier; where it has none, by its own loss and a probe.

    Args:
        stage: the method's; its `validate` is set where it predicts no classes.
        method: the stage's, compiled.
        trunk: the encoder.
        sets: the tiles.
        mesh: the devices.
        batch: tiles at once.
        log_prior: number for each class, added to its logits; () for none.
    """
    each = lambda measure, tiles: each_tile(measure, tiles, mesh, batch)
    if stage.validate:
        measure = compile_each(stage.validate, mesh)

        def validate(params):
            metrics = each(lambda bag, key: measure(params, bag, key), sets.val)
            return {name: float(values.mean()) for name, values in metrics.items()}

        test = lambda params: linear_probe(trunk, params["encoder"], sets, mesh, batch)
        return Evaluator(validate, test)

    def predict(params, tiles):
        logits = each(lambda bag, key: method.predict(params, bag, key).logits, tiles)
        return class_prior.probabilities(logits, log_prior)

    def validate(params):
        p = predict(params, sets.val)
        return validation_metrics(sets.val.label, p, log_prior)

    return Evaluator(validate, lambda params: predict(params, sets.test))


def each_tile(measure: Callable, tiles: Tiles, mesh: Mesh, batch: int) -> Any:
    """What `measure(bag, key)` gives for each tile: a tree of arrays [n ...]."""
    bags = enumerate(evaluation_tiles(tiles, batch_size=batch))
    parts = [
        jax.device_get(measure(split(bag, mesh), jax.random.key(i))) for i, bag in bags
    ]
    whole = lambda *arrays: np.concatenate(arrays)[: len(tiles.label)]
    return jax.tree.map(whole, *parts)


def linear_probe(
    trunk: Trunk, params: Any, sets: TileSets, mesh: Mesh, batch: int
) -> np.ndarray:
    """Probabilities [n c] of the test tiles by regression on a frozen trunk's features.

    Tiles are whole and as they are, a `batch` at once.
    """
    encode = compile_encoder(trunk.make().apply, mesh)
    features = lambda bag, key: encode(params, bag.x)
    return regression(lambda tiles: each_tile(features, tiles, mesh, batch), sets)


def earlier_encoder(weights: str, mpp: float, sets: TileSets) -> Trunk:
    """The encoder of an earlier pre-training, as the header of its weights names it.

    Raises:
        RunError: no such file, not of a pre-training, for another mpp, or it has learnt
            from test tiles.
    """
    flag = f"--config.beside={weights}"
    if not pathlib.Path(weights).is_file():
        raise RunError(f"{flag}: no such file")
    metadata = read_weights_metadata(weights)
    config = metadata.made.get("config", {}) if metadata else {}
    if "method" not in config:
        raise RunError(f"{flag}: no weights of experiments.pretraining.pretrain_tiles")
    if config["mpp"] != mpp:
        raise RunError(
            f"{flag} is for {config['mpp']:g} um/px, and tiles are seen at {mpp:g}; "
            f"give weights for these, or --config.mpp={config['mpp']:g}"
        )
    shared = sorted(set(metadata.training_ids) & set(sets.test.cluster))
    if shared:
        raise RunError(
            f"{flag} has learnt from {len(shared)} clusters of test tiles, {shared[0]} "
            "among them; give weights that have not"
        )
    encoder = from_plain(config["method"]["encoder"])
    return dataclasses.replace(encoder, weights=weights)


def statistics(pixels: np.ndarray) -> np.ndarray:
    """Colours and gradients of tiles [n s s 3]: 39 numbers each, whatever their order.

    Mean, deviation and quantiles of each channel, and mean and deviation of the steps
    between neighbours of each channel in each of three octaves.
    """
    chunks = range(0, len(pixels), CHUNK)
    return np.concatenate([_statistics(pixels[i : i + CHUNK]) for i in chunks])


def _statistics(pixels):
    x = pixels.astype(np.float32) / 255
    parts = [x.mean((1, 2)), x.std((1, 2)), *np.quantile(x, QUANTILES, axis=(1, 2))]
    for _ in range(OCTAVES):
        down, right = (np.abs(np.diff(x, axis=axis)) for axis in (1, 2))
        parts.append(down.mean((1, 2)) + right.mean((1, 2)))
        parts.append(down.std((1, 2)) + right.std((1, 2)))
        half = x.shape[1] // 2
        x = x[:, : 2 * half, : 2 * half].reshape(-1, half, 2, half, 2, 3).mean((2, 4))
    return np.concatenate(parts, axis=1)


def regression(describe: Callable[[Tiles], np.ndarray], sets: TileSets) -> np.ndarray:
    """Probabilities [n c] of the test tiles by logistic regression on `describe`.

    Its penalty is chosen on the validation tiles, as an encoder is chosen.
    """
    train, val, test = map(describe, sets[:3])
    models = [
        pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(C=strength, max_iter=10_000),
        ).fit(train, sets.train.label)
        for strength in STRENGTHS
    ]
    loss = lambda model: log_loss(sets.val.label, model.predict_proba(val))
    return min(models, key=loss).predict_proba(test)


def only(sets: TileSets, group: Sequence[str]) -> TileSets:
    """The tiles of some classes, in the order of the group."""
    index = [sets.classes.index(name) for name in group]

    def pick(tiles: Tiles) -> Tiles:
        kept, label = np.nonzero(tiles.label[:, None] == index)
        pick_of = lambda names: tuple(names[i] for i in kept)
        return Tiles(
            tiles.pixels[kept],
            label.astype(np.int32),
            pick_of(tiles.cluster),
            pick_of(tiles.name),
        )

    return TileSets(*map(pick, sets[:3]), tuple(group), sets.training_ids)


def compare(
    tiles: Tiles, p: np.ndarray, q: np.ndarray, seed: int
) -> dict[str, float | int]:
    """Accuracy of two classifiers on the same tiles, and by how much the first leads.

    Args:
        tiles: labels and clusters, which are resampled for the intervals.
        p: probabilities [n c] of the classifier in question.
        q: those of the baseline.
        seed: seed of the bootstrap.
    """
    hits = {"accuracy": p.argmax(-1) == tiles.label}
    hits["baseline_accuracy"] = q.argmax(-1) == tiles.label
    hits = {name: hit.astype(np.float64) for name, hit in hits.items()}
    hits["difference"] = hits["accuracy"] - hits["baseline_accuracy"]

    def means(weights):
        total = weights.sum(-1)
        return {name: weights @ hit / total for name, hit in hits.items()}

    ends = bootstrap(
        means, tiles.cluster, tiles.label, seed=seed, replicates=REPLICATES
    )
    n_clusters = len(set(tiles.cluster))
    metrics = {"n": len(tiles.label), "n_clusters": n_clusters}
    for name, hit in hits.items():
        value, (lo, hi) = float(hit.mean()), ends[name]
        if name != "difference" and np.isclose(lo, hi, rtol=0, atol=1e-9):
            # All right, or all wrong: resampling repeats it.
            lo, hi = wilson(value, n_clusters)
        metrics |= {name: value, f"{name}_lo": float(lo), f"{name}_hi": float(hi)}
    return metrics


def group_name(group: Sequence[str]) -> str:
    """What its classes' names share up to an underscore: "colon" of colon_n, colon_aca.

    All names where they share nothing.
    """
    shared = {name.partition("_")[0] for name in group}
    return shared.pop() if len(shared) == 1 else "+".join(group)


def evaluate(
    sets: TileSets, p: np.ndarray, q: np.ndarray | None, groups, seed: int
) -> dict[str, float]:
    """Each group's accuracy on the test tiles beside that of the baseline.

    And beside that of another encoder, where its probabilities `q` are given.
    """
    metrics = {}
    for group in groups:
        index = [sets.classes.index(name) for name in group]
        mine = np.isin(sets.test.label, index)
        part = only(sets, group)
        within = lambda every, mine=mine, index=index: every[mine][:, index]
        baseline = regression(lambda tiles: statistics(tiles.pixels), part)
        values = compare(part.test, within(p), baseline, seed)
        if q is not None:
            other = compare(part.test, within(p), within(q), seed)
            new = lambda name: f"beside_{name.removeprefix('baseline_')}"
            about = ("baseline_accuracy", "difference")
            values |= {new(k): v for k, v in other.items() if k.startswith(about)}
        metrics |= {f"test.{group_name(group)}.{k}": v for k, v in values.items()}
    return metrics


def write_predictions(path: pathlib.Path, sets: TileSets, p: np.ndarray) -> None:
    """One line a test tile: its label, its prediction, each class's probability."""
    tiles, classes = sets.test, sets.classes
    lines = []
    for i, name in enumerate(tiles.name):
        line = {"file": name, "cluster": tiles.cluster[i]}
        line |= {"label": classes[tiles.label[i]], "prediction": classes[p[i].argmax()]}
        line |= {f"p_{c}": f"{v:.6f}" for c, v in zip(classes, p[i], strict=True)}
        lines.append(line)
    write_csv(path, lines)


def text(metrics: dict[str, float]) -> str:
    """The groups' accuracies in a few lines of plain text."""
    lines = ["accuracy on test tiles, 95 % intervals by cluster"]
    for group in [name.removesuffix(".n") for name in metrics if name.endswith(".n")]:
        shown = [name for name in SHOWN if f"{group}.{name}" in metrics]
        lines.append(f"  {group.removeprefix('test.')}")
        for name in shown:
            value = tables.interval(metrics, f"{group}.{name}")
            lines.append(f"    {SHOWN[name]:<22} {value}")
    return "\n".join(lines) + "\n"
