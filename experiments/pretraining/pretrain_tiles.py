"""Labelled tiles in, an encoder of tiles out, as weights that say what made them.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/tiles.py:lc25000 --config.tiles=FOLDER

The folder of the run gets `encoder.safetensors`, for `--config.encoder.weights` of the
other experiments. Its header names the clusters that it has learnt from, and a cohort
with one of them among its test slides is refused. The same command resumes.

An encoder that learns without labels (`simclr.py`) is judged by a linear probe of its
features. `--config.beside=FILE` reports that of another encoder's, too.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from experiments.pretraining.linear_probe import probe, trunk_of
from experiments.pretraining.patch_camelyon import MPP, load_patch_camelyon
from experiments.pretraining.prepared import load_prepared
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_classifier import TileClassifier
from experiments.pretraining.tile_folder import Part, index_tiles, load_tiles
from experiments.pretraining.tile_judge import evaluator_for
from experiments.pretraining.tile_report import evaluate, text, write_predictions
from experiments.pretraining.tile_sets import TileSets, training_tiles
from wsi_jax import config_io
from wsi_jax.cli import errors_in_one_line, launch
from wsi_jax.locks import locked
from wsi_jax.nets import pretrained
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header
from wsi_jax.provenance import provenance
from wsi_jax.run.config import RunError, check_claim, claim, write_json
from wsi_jax.run.cost_account import open_account, write_account
from wsi_jax.run.fit_stage import StepAccount, fit_stage
from wsi_jax.run.progress import progress
from wsi_jax.run.run_experiment import OTHER_FOLDER
from wsi_jax.run.train import class_weights, correction
from wsi_jax.training.checkpoint import digest
from wsi_jax.training.compile import compile_method, make_mesh, split
from wsi_jax.training.flops import executed
from wsi_jax.training.loop import Train
from wsi_jax.types import Task

WEIGHTS = "encoder.safetensors"


@dataclasses.dataclass(kw_only=True)
class Pretrain:
    """What decides an encoder, but for its tiles.

    Attributes:
        run_dir: folder of the run; "" for runs/<name of the config file>.
        mpp: at which tiles are seen; the encoder is for grids of this `mpp`.
        groups: classes that are told apart among themselves when the test tiles are
            judged; () for one group of all classes. The encoder learns all at once.
        method: encoder and augmentation.
        train: for how long.
        beside: weights of another pre-training, whose encoder's linear probe on the
            same tiles is reported besides; "" for none.
    """

    run_dir: str = ""
    mpp: float = 1.0
    groups: tuple[tuple[str, ...], ...] = ()
    method: TileClassifier | SimCLR = dataclasses.field(default_factory=TileClassifier)
    train: Train = dataclasses.field(default_factory=Train)
    beside: str = ""

    def validate(self) -> None:
        """Refuses weights that are not there."""
        weights = self.method.encoder.weights
        if weights and not pathlib.Path(weights).is_file():
            raise RunError(f"--config.method.encoder.weights={weights}: no such file")


@dataclasses.dataclass(kw_only=True)
class PretrainFolder(Pretrain):
    """Of a folder of tiles with an index.csv: file, class, cluster.

    Attributes:
        tiles: the folder.
        part: of its clusters. Encoders for practice cohorts keep to the default.
        classes: in the order wanted, others left out; () takes all.
        tile_mpp: micrometres per pixel of the tiles. LC25000 has about 1.
        val: share of the clusters that validate.
        val_seed: of their draw.
    """

    tiles: str = ""
    part: Part = Part.encoder
    classes: tuple[str, ...] = ()
    tile_mpp: float = 1.0
    val: float = 0.15
    val_seed: int = 0

    def sets(self) -> TileSets:
        """The tiles, parted by cluster."""
        if not self.tiles:
            raise RunError("no tiles; add --config.tiles=FOLDER with an index.csv")
        index = index_tiles(
            self.tiles,
            part=self.part,
            classes=self.classes,
            val=self.val,
            seed=self.val_seed,
            seen=self.method.encoder.training_ids(),
        )
        return load_tiles(index, tile_mpp=self.tile_mpp, mpp=self.mpp)


@dataclasses.dataclass(kw_only=True)
class PretrainPatchCamelyon(Pretrain):
    """Of PatchCamelyon, as TensorFlow Datasets prepares it.

    Attributes:
        data_dir: of TensorFlow Datasets; "" for its own choice.
        most: tiles of each split; None for all, which take 9 GB of memory.
    """

    mpp: float = MPP
    data_dir: str = ""
    most: int | None = None

    def sets(self) -> TileSets:
        """The tiles in PatchCamelyon's own splits."""
        return load_patch_camelyon(self.data_dir or None, mpp=self.mpp, most=self.most)


@dataclasses.dataclass(kw_only=True)
class PretrainPrepared(Pretrain):
    """Of a cohort's tissue tiles, as `experiments.pretraining.prepare_tiles` wrote
    them.

    Attributes:
        tiles: the folder.
        most: tiles of each split; None for all, which are held in memory.
    """

    tiles: str = ""
    most: int | None = None

    def sets(self) -> TileSets:
        """The tiles in their cohort's splits, each with its slide's label."""
        if not self.tiles:
            raise RunError("no tiles; add --config.tiles=FOLDER, of prepare_tiles")
        return load_prepared(self.tiles, mpp=self.mpp, most=self.most)


def run(config: Pretrain, folder: pathlib.Path) -> pathlib.Path:
    """Does what is left of a pre-training.

    Returns:
        The path of its weights.

    Raises:
        ValueError: anything wrong with config or tiles, before training; or another
            process is at work in the folder.
        Stopped: by a signal; given again, the command goes on.
    """
    with contextlib.ExitStack() as stack:
        return resume(config, folder, stack)


def resume(
    config: Pretrain, folder: pathlib.Path, stack: contextlib.ExitStack
) -> pathlib.Path:
    """As `run`; `stack` is closed behind it, and with it the folder's lock."""
    config_io.validate(config)
    check_claim(folder, config)
    path = folder / WEIGHTS
    if (folder / "metrics.json").is_file():
        return path
    mesh = make_mesh()
    if config.train.batch < 1 or config.train.batch % mesh.size:
        raise RunError(
            f"--config.train.batch={config.train.batch} does not divide among "
            f"{mesh.size} devices; make it a multiple of them"
        )
    sets = config.sets()
    groups = config.groups or (sets.classes,)
    check_groups(groups, sets.classes)
    check_tiles(config, sets)
    beside = trunk_of(config.beside, config.mpp, sets) if config.beside else None
    stack.enter_context(locked(folder, OTHER_FOLDER))
    check_claim(folder, config)  # another run may have come before the lock
    claim(folder, config)

    account = folder / "cost.json"
    meter = stack.enter_context(open_account(account))
    tx = config.train.optimiser.make(config.train.steps)
    (stage,) = config.method.stages(Task(sets.classes), tx)
    plan = dataclasses.replace(config.train, **stage.overrides)
    method = compile_method(stage.method, mesh)
    labels, c = sets.train.label, len(sets.classes)
    weights, log_prior = class_weights(labels, c), correction(plan, labels, c)
    encoder = config.method.encoder
    judge = evaluator_for(stage, method, encoder, sets, mesh, plan.batch, log_prior)
    with progress("training", plan.steps) as advance:
        params = fit_stage(
            plan,
            method,
            lambda start: training_tiles(
                sets.train,
                weights if plan.class_weights else None,
                seed=plan.seed,
                batch_size=plan.batch,
                balanced=plan.balanced,
                start=start,
            ),
            judge.validate,
            folder / stage.name,
            mesh,
            lambda batch: split(batch, mesh),
            meter,
            advance,
            data={
                "training tiles": digest(sets.train[:2]),
                "validation tiles": digest(sets.val[:2]),
            },
        )
    save_encoder(path, params, config, sets, log_prior)
    test = StepAccount(meter, "test", executed, 0, {})
    p = judge.test(params)
    test.enter(0)
    meter.enter("test", tiles=len(p))
    write_account(account, meter)
    write_predictions(folder / "predictions.csv", sets, p)
    q = probe(beside, beside.params(), sets, mesh, plan.batch) if beside else None
    metrics = evaluate(sets, p, q, groups, plan.seed)
    write_json(folder / "metrics.json", metrics)
    return path


def save_encoder(
    path: pathlib.Path,
    params,
    config: Pretrain,
    sets: TileSets,
    log_prior: Sequence[float] = (),
) -> None:
    """Writes the encoder, its classifier where it has one, and what made them.

    The classifier's bias has `log_prior` in it: it says what the predictions say.
    """
    encoder = config.method.encoder
    made = {"config": config_io.to_plain(config)} | provenance()
    seen = tuple(sorted({*sets.seen, *encoder.training_ids()}))
    fc = {"fc": params["fc"]} if "fc" in params else {}
    if fc and log_prior:
        fc["fc"] = fc["fc"] | {"bias": fc["fc"]["bias"] + np.float32(log_prior)}
    origin = WeightsMetadata(encoder.describe(), sets.classes if fc else (), seen, made)
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
