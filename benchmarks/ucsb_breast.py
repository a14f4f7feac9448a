"""The classic small MIL cohort: 58 breast images, leaving one tissue microarray out.

    python -m benchmarks.ucsb_breast --data FOLDER \
        --out benchmarks/results/ucsb_breast.json

FOLDER holds handcrafted_bags.npz (X [tiles d], bag [tiles], names and y [images]) and
labels.csv (file, tma, core) of the UCSB Bio-Segmentation Benchmark (Gelasca et al.
2008). Pool, weight decay and length of training are chosen by leaving cores out of the
training arrays; so is the penalty of the opponent, a logistic regression on each
image's mean and deviation of the same features, in the same folds. AUCs count pairs of
images of one array (the array of benign images alone has none); intervals by core.
"""

import csv
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import linear_model, pipeline, preprocessing

from benchmarks import record
from benchmarks.nested_cv import Nested, nested
from wsi_jax.evals.intervals import delong, delong_difference
from wsi_jax.methods.mil import ABMIL, Mean, Pool
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.types import Bag, Task

SEEDS = 3
STEPS = (100, 300)
DECAYS = (1e-2, 1.0)
STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # inverse ridge penalties
SIZE = {"width": 32, "standardise": True}
POOLS = {
    "mean": Mean(**SIZE),
    "ABMIL": ABMIL(attention=16, **SIZE),
}


def read(folder: pathlib.Path) -> tuple[Bag, list[str], list[str]]:
    """All images as one padded batch, and the array and the core of each."""
    with np.load(folder / "handcrafted_bags.npz", allow_pickle=False) as file:
        x, bag, label, names = (file[name] for name in ("X", "bag", "y", "names"))
    with open(folder / "labels.csv", newline="", encoding="utf-8") as lines:
        about = {row["file"]: row for row in csv.DictReader(lines)}
    count = np.bincount(bag)
    mask = np.arange(count.max()) < count[:, None]
    padded = np.zeros((*mask.shape, x.shape[1]), np.float32)
    padded[mask] = x[np.argsort(bag, kind="stable")]
    batch = Bag(padded, mask, label.astype(np.int32), np.ones(len(label), np.float32))
    return batch, *([about[name][key] for name in names] for key in ("tma", "core"))


def pools(bags: Bag, pool: Pool, optimiser: Optimiser, steps: int):
    """A learner: a pool trained on whole batches, its logit averaged over SEEDS."""
    tx = optimiser.make(steps)
    (stage,) = pool.stages(Task(("benign", "malignant")), tx)
    method = stage.method

    def one(train, key):
        count = jnp.stack([(train & (bags.target == c)).sum() for c in (0, 1)])
        each = train.sum() / (2 * jnp.maximum(count, 1))
        weight = jnp.where(train, each[bags.target], 0)
        # Features are standardised, too, by the training images alone.
        batch = bags._replace(mask=bags.mask & train[:, None], weight=weight)
        state = method.init(key, batch)
        step = lambda state, _: (method.step(state, batch)[0], None)
        state, _ = jax.lax.scan(step, state, None, steps)
        logits = method.predict(state.params, bags, key).logits
        return logits[:, 1] - logits[:, 0]

    # Folds and seeds alike train side by side, as rows of weights and keys.
    seeds = jax.vmap(one, (None, 0))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    folds = jax.jit(jax.vmap(lambda train: seeds(train, keys).mean(0)))
    return lambda train: np.asarray(folds(jnp.asarray(train)))


def regressions(bags: Bag, strength: float):
    """A learner: logistic regression on each image's mean and deviation."""
    tiles = [x[mask] for x, mask in zip(bags.x, bags.mask, strict=True)]
    pooled = np.stack([np.concatenate([x.mean(0), x.std(0)]) for x in tiles])

    def learn(train):
        model = pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(
                C=strength, class_weight="balanced", max_iter=10_000
            ),
        )
        fit = lambda row: model.fit(pooled[row], bags.target[row])
        return np.stack([fit(row).decision_function(pooled) for row in train])

    return learn


def row(name: str, result: Nested, bags: Bag, array, core, **more) -> dict:
    """One row of the table."""
    value, lo, hi = delong(bags.target == 1, result.scores, core, groups=array)
    chosen = ", ".join(f"{group}: {choice}" for group, choice in result.chosen.items())
    auc = {"auc": value, "auc_lo": lo, "auc_hi": hi}
    return {"learner": name, "n": len(core)} | auc | more | {"chosen": chosen}


def rows(args: record.Arguments) -> list[dict]:
    """Pools and the regression, each chosen by inner folds; their difference."""
    bags, array, core = read(args.data)
    ours = {
        f"{name}, decay {decay:g}, {steps} steps": pools(
            bags, POOLS[name], Optimiser(learning_rate=1e-3, weight_decay=decay), steps
        )
        for name in (("mean",) if args.quick else POOLS)
        for decay in DECAYS
        for steps in STEPS
    }
    theirs = {f"ridge {1 / s:g}": regressions(bags, s) for s in STRENGTHS}
    a, b = (nested(learners, bags.target, array, core) for learners in (ours, theirs))
    gap = delong_difference(bags.target == 1, a.scores, b.scores, core, groups=array)
    difference = {"difference": gap.value, "lo": gap.lo, "hi": gap.hi}
    return [
        row("pools", a, bags, array, core, **difference),
        row("logistic regression", b, bags, array, core),
    ]


if __name__ == "__main__":
    data = {"required": True, "metavar": "FOLDER", "type": pathlib.Path}
    record.main(__doc__, rows, {"--data": data})
