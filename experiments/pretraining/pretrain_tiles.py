"""Trains an encoder of tiles, on labelled tiles or without labels.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/tiles.py:lc25000 --config.tiles=FOLDER

The folder of the run gets `encoder.safetensors`, for `--config.encoder.weights` of the
other experiments. Its header names the clusters that it has learnt from, and a cohort
with one of them among its test slides is refused. The same command resumes.

An encoder that learns without labels (`tiles.py:simclr`) is tested by a linear probe of
its features. `--config.beside=FILE` reports that of another encoder, too.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from experiments.pretraining.pretrain_config import Pretrain
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_evaluation import (
    Evaluator,
    earlier_encoder,
    evaluate,
    evaluator_for,
    linear_probe,
    text,
    write_predictions,
)
from experiments.pretraining.tile_sets import TileSets, training_tiles
from wsi_jax import config_fields
from wsi_jax.commands.config_command_line import errors_in_one_line, launch
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.locks import locked
from wsi_jax.nets import pretrained
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header
from wsi_jax.provenance import provenance
from wsi_jax.run.checks import check_divides
from wsi_jax.run.cohort_predictions import class_weights, prior_correction
from wsi_jax.run.cost_account import StepAccount, open_account, write_account
from wsi_jax.run.fit_stage import StageBatches, fit_stage
from wsi_jax.run.progress import progress
from wsi_jax.run.run_experiment import OTHER_FOLDER
from wsi_jax.run.run_folder import RunError, check_claim, claim, write_json
from wsi_jax.training.checkpoint import digest
from wsi_jax.training.compile import compile_method, split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Task

WEIGHTS = "encoder.safetensors"


def run(config: Pretrain, folder: pathlib.Path) -> pathlib.Path:
    """Does what is left of a pre-training; the path of its weights.

    Raises:
        ValueError: anything wrong with config or tiles, before training; or another
            process is at work in the folder.
        Stopped: by a signal; given again, the command goes on.
    """
    config_fields.validate(config)
    check_claim(folder, config)
    path, mesh = folder / WEIGHTS, make_mesh()
    if (folder / "metrics.json").is_file():
        return path
    check_divides("train.batch", config.train.batch, mesh.size)
    sets = config.sets()
    groups = config.groups or (sets.classes,)
    check_groups(groups, sets.classes)
    check_tiles(config, sets)
    other = earlier_encoder(config.beside, config.mpp, sets) if config.beside else None
    with locked(folder, OTHER_FOLDER):
        check_claim(folder, config)  # another run may have come before the lock
        claim(folder, config)
        with open_account(folder / "cost.json") as meter:
            params, evaluator, log_prior = train(config, sets, folder, mesh, meter)
            save_encoder(path, params, config, sets, log_prior)
            test = StepAccount(meter, "test")
            test.begin(0, {})
            p = evaluator.test(params)
            test.record(0)
            meter.record("test", tiles=len(p))
            write_account(folder / "cost.json", meter)
        write_predictions(folder / "predictions.csv", sets, p)
        q = None
        if other:
            q = linear_probe(other, other.params(), sets, mesh, config.train.batch)
        metrics = evaluate(sets, p, q, groups, config.train.seed)
        write_json(folder / "metrics.json", metrics)
    return path


def train(
    config: Pretrain, sets: TileSets, folder: pathlib.Path, mesh: Mesh, meter: Meter
) -> tuple[Any, Evaluator, Sequence[float]]:
    """Trains the encoder, from the last checkpoint in the folder.

    Its parameters, what tests it, and the log prior that is added to logits, if any.
    """
    tx = config.train.optimiser.make(config.train.steps)
    (stage,) = config.method.stages(Task(sets.classes), tx)
    plan = dataclasses.replace(config.train, **stage.overrides)
    method = compile_method(stage.method, mesh)
    labels, c = sets.train.label, len(sets.classes)
    weights, log_prior = class_weights(labels, c), prior_correction(plan, labels, c)
    encoder = config.method.encoder
    evaluator = evaluator_for(stage, method, encoder, sets, mesh, plan.batch, log_prior)
    batches = StageBatches(
        stream=lambda start: training_tiles(
            sets.train,
            weights if plan.class_weights else None,
            seed=plan.seed,
            batch_size=plan.batch,
            balanced=plan.balanced,
            start=start,
        ),
        put=lambda batch: split(batch, mesh),
        mesh=mesh,
        fingerprints={
            "training tiles": digest(sets.train[:2]),
            "validation tiles": digest(sets.val[:2]),
        },
    )
    with progress("training", plan.steps) as advance:
        params = fit_stage(
            plan, method, batches, evaluator.validate, folder / stage.name,
            account=StepAccount(meter, "training"), advance=advance,
        )  # fmt: skip
    return params, evaluator, log_prior


def save_encoder(
    path: pathlib.Path,
    params,
    config: Pretrain,
    sets: TileSets,
    log_prior: Sequence[float] = (),
) -> None:
    """Writes the encoder, its classifier where it has one, and their config.

    `log_prior` is added to the classifier's bias, so that it gives the predictions.
    """
    encoder = config.method.encoder
    made = {"config": config_fields.to_plain(config)} | provenance()
    ids = tuple(sorted({*sets.training_ids, *encoder.training_ids()}))
    fc = {"fc": params["fc"]} if "fc" in params else {}
    if fc and log_prior:
        fc["fc"] = fc["fc"] | {"bias": fc["fc"]["bias"] + np.float32(log_prior)}
    origin = WeightsMetadata(encoder.describe(), sets.classes if fc else (), ids, made)
    net = jax.device_get(params["encoder"]["params"] | fc)
    pretrained.save(path, net, to_header(origin))


def check_tiles(config: Pretrain, sets: TileSets) -> None:
    """The encoder can see tiles of this size."""
    side, patch = sets.train.pixels.shape[1], config.method.encoder.multiple_px
    if side % patch:
        raise RunError(
            f"tiles of {side} px, at --config.mpp={config.mpp:g}, do not divide into "
            f"patches of {patch} px; set another mpp, or --config.method.encoder.patch"
        )
    if isinstance(config.method, SimCLR):
        config.method.check_tiles(side)


def check_groups(groups, classes: tuple[str, ...]) -> None:
    """Every group has two classes or more, and there are tiles of each."""
    for group in groups:
        unknown = sorted(set(group) - set(classes))
        if unknown or len(set(group)) < 2:
            raise RunError(
                f"--config.groups has {group}: a group is two or more of {classes}"
            )


def main(config: Pretrain, name: str) -> None:
    """Does what is left of a pre-training, and prints its metrics."""
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(config.run_dir or f"runs/{name}")
    with errors_in_one_line(folder):
        weights = run(dataclasses.replace(config, run_dir=""), folder)
    print(text(json.loads((folder / "metrics.json").read_text())))
    print(f"weights: {weights}")


if __name__ == "__main__":
    launch(main, "Pretrain")
