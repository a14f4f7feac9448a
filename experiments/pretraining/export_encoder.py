"""The trunk of a run that was trained end to end, as an encoder of tiles.

    python -m experiments.pretraining.export_encoder \
        --run runs/fine_only --out encoder.safetensors

For `--config.encoder.weights` and `--config.method.trunk.weights` of other runs. The
file names the slides that it has learnt from, and a cohort with one of them, with its
patient or its clusters, among its test slides is refused.
"""

import argparse
import json
import pathlib

import jax

from wsi_jax.config_fields import from_plain
from wsi_jax.data.cohort import Cohort, read_manifest
from wsi_jax.nets import pretrained
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header
from wsi_jax.run.checks import MANIFEST
from wsi_jax.run.config import Experiment
from wsi_jax.run.inputs import input_of
from wsi_jax.run.predict.predictor import load


class ExportError(ValueError):
    """A run without a trunk of its own; the message says so."""


def export(run: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the trunk of a trained run.

    Raises:
        ExportError: its method trains no trunk, or it is one fold of several.
        FileNotFoundError: it is not trained, or the weights are gone that it began
            with.
    """
    predictor = load(run)
    method = predictor.card.method
    if not hasattr(method, "trunk"):
        raise ExportError(
            f"{run}: {type(method).__name__} pools features and trains no trunk; its "
            f"encoder is {predictor.card.tiling.encoder.weights or 'a random one'}"
        )
    if not (run / MANIFEST).is_file():
        raise ExportError(
            f"{run}: one fold of several, whose test slides others have learnt from; "
            "train a run without --config.data.folds"
        )
    cohort = read_manifest(run / MANIFEST, predictor.card.classes)
    record = json.loads((run / "config.json").read_text())
    # The weights that it began with have learnt, too.
    parts = {name: from_plain(record["config"][name]) for name in ("encoder", "method")}
    trunks = Experiment(**parts).trunks.values()
    before = (name for trunk in trunks for name in trunk.training_ids())
    names = tuple(sorted({*before, *training_ids(cohort)}))
    mpps = input_of(method).mpps(method, predictor.card.tiling.grid)
    made = record | {"config": {"mpp": min(mpps)}}
    origin = WeightsMetadata(method.trunk.describe(), cohort.classes, names, made)
    # Of a scorer and a judge, the judge's.
    params = predictor.params.get("judge", predictor.params)
    net = jax.device_get(params["trunk"]["params"])
    pretrained.save(out, net, to_header(origin))


def training_ids(cohort: Cohort) -> tuple[str, ...]:
    """Names of what it learnt from and was chosen on: clusters, or slides and patients.

    Practice cohorts name their slides alike; it is their clusters that differ.
    """
    names = set()
    for row in cohort.rows:
        if row.split != "test":
            whose = (row.slide_id, row.patient_id)
            names.update(row.cluster.split(";") if row.cluster else whose)
    return tuple(sorted(names - {""}))


def main() -> None:
    """Exports what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=pathlib.Path, help="a trained run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="safetensors")
    chosen = parser.parse_args()
    try:
        export(chosen.run, chosen.out)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(chosen.out)


if __name__ == "__main__":
    main()
