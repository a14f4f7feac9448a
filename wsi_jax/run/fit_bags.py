"""Multiple instance learning on arrays: no slide, no file, no run folder."""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from wsi_jax import config_fields
from wsi_jax.data.bag_store import BagStore
from wsi_jax.data.cohort import Cohort, Row, in_split
from wsi_jax.data.splits import Split, assign_splits
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.methods.mil import ABMIL, Pool
from wsi_jax.ops.class_prior import probabilities
from wsi_jax.run.cohort_predictions import Model, class_weights, prior_correction
from wsi_jax.run.config import Experiment
from wsi_jax.run.fields_from_python import errors_in_python, with_fields
from wsi_jax.run.inputs import FeatureInput
from wsi_jax.run.inputs.features import padded_bag
from wsi_jax.training.compile import compile_method, split
from wsi_jax.training.loop import Train, fit
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import bucket

Array = np.ndarray | jax.Array


class BagPrediction(NamedTuple):
    """What a model says of a bag.

    Attributes:
        label: the predicted class, as it was given.
        probabilities: probability of each class.
        attention: [n], attention on each of the bag's vectors; it sums to 1.
    """

    label: Any
    probabilities: dict[Any, float]
    attention: Float[np.ndarray, " n"]


class BagModel:
    """A model that `fit_bags` has trained.

    Attributes:
        classes: the labels, sorted; of two the second is positive.
        threshold: threshold on its probability, chosen on the bags of validation; None
            with more than two classes, where the likeliest wins.
        metrics: of the bags of validation, which also chose the step that was kept.
        history: (step, metrics) of training and validation, in order.
        validation: indices of the bags of validation.
        params: parameters of the method.
    """

    def __init__(
        self,
        classes: Sequence[Any],
        model: Model,
        threshold: float | None,
        metrics: dict[str, float],
        history: list[tuple[int, dict[str, float]]],
        validation: list[int],
    ):
        self.classes, self.threshold = tuple(classes), threshold
        self.metrics, self.history, self.validation = metrics, history, validation
        self.params, self._model = model.params, model

    def __repr__(self):
        shown = ", ".join(f"{k} {self.metrics[k]:.3f}" for k in ("auc", "log_loss"))
        method, n = type(self._model.input.method).__name__, len(self.validation)
        classes = ", ".join(map(str, self.classes))
        return f"BagModel({method}, {classes}; on {n} bags of validation: {shown})"

    def predict(self, bag: Array) -> BagPrediction:
        """The prediction of a bag [n d].

        Raises:
            ValueError: a bag of another shape, without vectors, or not finite.
        """
        model, x = self._model, _checked("bag", bag, (self._model.input.dim,))
        padded = padded_bag(x, bucket(len(x), model.input.loading.min_bucket))
        output = jax.device_get(
            model.method.predict(
                model.params, split(padded, model.input.mesh), jax.random.key(0)
            )
        )
        p = probabilities(output.logits, model.log_prior)
        label = self.classes[int(decide(p, self.threshold)[0])]
        named = dict(zip(self.classes, p[0].tolist(), strict=True))
        return BagPrediction(label, named, output.attention[0, : len(x)])


def fit_bags(
    bags: Sequence[Array],
    labels: Sequence[Any] | np.ndarray,
    method: Pool | None = None,
    *,
    seed: int = 0,
    val: float = 0.2,
    patients: Sequence[Any] | np.ndarray | None = None,
    **train: Any,
) -> BagModel:
    """Trains a pool of feature vectors on bags with a label each, in memory.

        model = wsi_jax.fit_bags(bags, labels, wsi_jax.ABMIL(), seed=0, steps=500)
        label, probabilities, attention = model.predict(bags[0])

    As in a run, a part of the bags validates, drawn by patient and stratified by label:
    it chooses the step that is kept, ends the training and sets the threshold.

    Args:
        bags: of each slide the vectors [n d] of its tiles.
        labels: of each bag; whatever sorts.
        method: ABMIL(), CLAM(), Mean() or Max(), with their fields; None for ABMIL().
        seed: of the parameters, the order of the bags and the bags of validation.
        val: share of the bags of validation.
        patients: of each bag; bags of one are never on both sides. None: each its own.
        train: fields of `training.loop.Train`: steps=500, optimiser={...}.

    Raises:
        ValueError: bags and labels that disagree, a bag that is not finite, too few
            bags of a class, or a field that is none.
    """
    with errors_in_python():
        method = method or ABMIL()
        if not isinstance(method, Pool):
            raise ValueError(f"method={method!r}: ABMIL(), CLAM(), Mean() or Max()")
        config = Experiment(method=method)
        config.train = with_fields(Train(seed=seed), train)
        config_fields.validate(config.method, "config.method")
        config_fields.validate(config.train)
        return _fit(config, *_cohort(bags, labels, patients, val, seed))


class _ArrayBags(BagStore):
    """Bags that are in memory."""

    def __init__(self, arrays, targets, weights, loading):
        rows = [(arrays[0].shape[1:], arrays[0].dtype)]
        lengths = [len(array) for array in arrays]
        self._arrays = arrays
        super().__init__([""] * len(arrays), targets, weights, lengths, rows, loading)

    def read(self, slide):
        return (self._arrays[slide],)

    def pack(self, x):
        return x


class _ArrayInput(FeatureInput):
    """Batches of bags in memory; a row's id is the index of its bag."""

    def __init__(self, config, arrays):
        mesh = make_mesh(jax.local_devices()[:1])
        super().__init__(config.method, config.tiling(), mesh, config)
        self._arrays, self.loading = arrays, config.loading

    def _open(self, rows, targets, weights):
        arrays = [self._arrays[int(row.slide_id)] for row in rows]
        return _ArrayBags(arrays, targets, weights, self.loading)

    def free_memory(self):
        super().free_memory()
        self._arrays = []


def _cohort(bags, labels, patients, val, seed):
    """Checked arrays, the labels' own values, and a cohort with its splits."""
    labels = np.asarray(labels)
    patients = np.arange(len(bags)) if patients is None else np.asarray(patients)
    if not len(bags) == len(labels) == len(patients):
        raise ValueError(
            f"{len(bags)} bags, {len(labels)} labels and {len(patients)} patients: "
            "give one label, and one patient or none at all, for each bag"
        )
    if labels.ndim != 1 or any(label is None or label != label for label in labels):
        raise ValueError("labels: one number or text of each bag, none of them missing")
    classes = np.unique(labels).tolist()
    if len(classes) < 2:
        raise ValueError(f"labels are all {classes}: two classes or more are needed")
    for label in classes:
        if len(np.unique(patients[labels == label])) < 2:
            raise ValueError(
                f"all bags of class {label!r} are of one patient: two are needed, one "
                "to train and one to validate"
            )
    if not isinstance(val, numbers.Real) or not 0 < val < 1:
        raise ValueError(f"val={val!r}: a share of the bags, between 0 and 1")
    width = np.shape(bags[0])[-1:]
    arrays = [_checked(f"bags[{i}]", bag, width) for i, bag in enumerate(bags)]
    kind = np.result_type(*arrays)
    rows = (
        Row(str(i), "", str(label), str(patient), "")
        for i, (label, patient) in enumerate(
            zip(labels.tolist(), patients, strict=True)
        )
    )
    cohort = Cohort(tuple(rows), tuple(map(str, classes)))
    share = Split(train=1 - val, val=val, test=0.0, seed=seed)
    arrays = [array.astype(kind, copy=False) for array in arrays]
    return arrays, classes, assign_splits(cohort, share)


def _checked(name, bag, width):
    """A bag as float32, or float16 where it is that; `width` is (d,)."""
    x = np.asarray(bag)
    x = x if x.dtype == np.float16 else x.astype(np.float32)
    if x.ndim != 2 or not len(x) or x.shape[1:] != width:
        wanted = f"[n {width[0]}]" if width else "[n d]"
        raise ValueError(f"{name} has shape {x.shape}, and {wanted} is wanted, n >= 1")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has numbers that are not finite; leave them out")
    return x


def _fit(config: Experiment, arrays, classes, cohort: Cohort) -> BagModel:
    """Trains the method's one stage, and keeps what is best on validation."""
    plan, source = config.train, _ArrayInput(config, arrays)
    train, val = in_split(cohort, "train"), in_split(cohort, "val")
    tx = plan.optimiser.make(plan.steps)
    (stage,) = config.method.stages(cohort.task, tx)
    weights, c = None, len(classes)
    if plan.class_weights:
        weights = class_weights(train.targets, c)
    log_prior = prior_correction(plan, train.targets, c)
    method = compile_method(stage.method, source.mesh)
    model_of = lambda params: Model(method, params, source, log_prior)
    stream = lambda: map(source.put, source.training_batches(train, plan, 0, weights))
    state = method.init(jax.random.key(plan.seed), next(stream()))
    history, kept = [], {}
    fit(
        method,
        state,
        stream(),
        plan,
        log=lambda step, metrics: history.append((step, metrics)),
        save=lambda *_: None,
        validate=lambda params: model_of(params).metrics(val),
        # Copies: the next step is given the state to write over.
        keep=lambda _, params: kept.update(params=jax.tree.map(jnp.copy, params)),
    )
    if not kept:
        raise ValueError(
            f"validation never had a {plan.monitor.removeprefix('-')} that is a number;"
            " choose another monitor"
        )
    model = model_of(kept["params"])
    validation = [int(row.slide_id) for row in val.rows]
    threshold, metrics = model.threshold(val), model.metrics(val)
    source.free_memory()
    return BagModel(classes, model, threshold, metrics, history, validation)
