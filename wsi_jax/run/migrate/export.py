"""A trained fold in CLAM's forms: weights of its model, and attention by tile.

model.safetensors       the state of CLAM_SB
SLIDE.csv               x,y,attention, of each test slide
SLIDE_blockmap.h5       coords, attention_scores: what CLAM draws heatmaps from
"""

import pathlib

import jax
import numpy as np
import optax

from wsi_jax.data.cohort import read_manifest
from wsi_jax.data.features import read_coords
from wsi_jax.data.hdf5 import write_whole
from wsi_jax.nets.export_clam_weights import save_clam
from wsi_jax.run.cohort_predictions import Model
from wsi_jax.run.config import Experiment
from wsi_jax.run.inputs import FeatureInput
from wsi_jax.run.model_card import CARD, WEIGHTS, read_card
from wsi_jax.run.run_folder import read_csv, write_csv
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method, replicate
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Task


def export_fold(run: pathlib.Path, config: Experiment, out: pathlib.Path) -> None:
    """Writes the weights of a run, and its attention on each test slide.

    Args:
        run: folder of the trained run.
        config: its config; the features are precomputed.
        out: folder of the files.
    """
    card, mesh = read_card(run / CARD), make_mesh(jax.local_devices()[:1])
    files = pathlib.Path(config.precomputed)
    source = FeatureInput.from_config(config, mesh, files)
    (stage,) = config.stages(Task(card.classes), optax.identity())
    like = jax.eval_shape(
        stage.method.init, jax.random.key(0), source.template(card.dim)
    )
    params, _ = Checkpoints(run / stage.name / WEIGHTS).restore(like.params)
    net = jax.device_get(params)
    out.mkdir(parents=True, exist_ok=True)
    save_clam(out / "model.safetensors", net["params"], card.log_prior)
    predicted = {line["slide_id"] for line in read_csv(run / "predictions.csv")}
    part = read_manifest(config.data.manifest, card.classes)
    rows = [row for row in part.rows if row.slide_id in predicted]
    part = part._replace(rows=tuple(rows))
    method = compile_method(stage.method, mesh, source.read_crops)
    model = Model(method, replicate(params, mesh), source, card.log_prior)
    for row, (_, attention, *_) in zip(part.rows, model.predict(part), strict=True):
        xy = read_coords(files / f"{row.slide_id}.h5").yx[:, ::-1]
        _write_attention(out, row.slide_id, xy, attention.astype(np.float32))


def _write_attention(out, name, xy, attention) -> None:
    write_csv(
        out / f"{name}.csv",
        [
            {"x": int(x), "y": int(y), "attention": f"{a:.6g}"}
            for (x, y), a in zip(xy, attention, strict=True)
        ],
    )

    def write_datasets(f):
        f.create_dataset("coords", data=xy.astype(np.int32))
        f.create_dataset("attention_scores", data=attention[:, None])

    write_whole(out / f"{name}_blockmap.h5", write_datasets)
