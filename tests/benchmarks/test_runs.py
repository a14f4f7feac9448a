"""Collected runs have the columns of the results that pages show."""

import json

import numpy as np
import pytest

from benchmarks.run_folder import ENDS, Run
from benchmarks.runs import KINDS
from benchmarks.tables import RESULTS
from experiments.configs import demo
from experiments.configs.phantom import (
    attention_pooling,
    attention_sampling,
    mil,
    streaming_clam,
)
from experiments.configs.pretrain import tiles
from wsi_jax.config_fields import to_plain
from wsi_jax.run.run_folder import write_csv, write_json

# By the JSON of results/: the kind of run, and a config.
CASES = {
    "practice": ("practice", demo.get_config),
    "phantoms": ("phantoms", mil.get_config),
    "streaming_runs": ("streaming_runs", streaming_clam.streamed),
    "needle": ("crops", attention_sampling.needle),
    "magnification": ("crops", attention_sampling.magnifications),
    "attention_pooling_runs": ("attention_pooling_runs", attention_pooling.get_config),
    "tile_encoders": ("tile_encoders", tiles.lc25000),
}
SCORES = "auc", "f1", "balanced_accuracy"
GROUP = "colon.accuracy", "colon.baseline_accuracy", "colon.difference"


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Name of the results, kind, and the folder of a run and of its cohort."""
    kind, make = CASES[request.param]
    config = make()
    plain, mpps = to_plain(config), getattr(config.method, "mpps", ())
    if "manifest" in (data := plain.get("data", {})):
        data["manifest"] = str(tmp_path / "slides.csv")
    elif data:
        data["root"] = str(tmp_path)
    made = {"config": plain, "commit": "c" * 40, "versions": {"jax": "0.10"}}
    made["machine"] = {"device": "cpu", "cpu": "CPU", "cores": 2}
    metrics = [f"{name}{end}" for name in (*SCORES, *GROUP) for end in ENDS]
    metrics += ["n", "colon.n", "colon.n_clusters", "inference.top.auc"]
    metrics += [f"mass.{mpp:g}" for mpp in mpps]
    costs = "slides", "tiles", "bytes_decoded", "wall_s", "peak_host_bytes"
    cohort = {"preset": "needle", "seed": 1, "tiles": "", "mpp": 1.0, "n_train": 4}
    probes = ("slide, fields pooled", 8.0), ("metadata only", None)
    row = {"auc": 0.5, "lo": 0.4, "hi": 0.6, "expected": "none", "ok": True}
    rows = [row | {"probe": probe, "mpp": mpp, "slides": 8} for probe, mpp in probes]
    line = {"step": 4, "val.log_loss": 0.6}
    line |= {f"train.mass.{mpp:g}": 0.5 for mpp in mpps}
    files = {
        "config": made,
        "metrics": {f"test.{name}": 0.5 for name in metrics},
        "cost": dict.fromkeys(costs, 8),
        "cohort": {"config": cohort},
        "certificate": {"rows": rows},
    }
    for name, tree in files.items():
        write_json(tmp_path / f"{name}.json", tree)
    slide = {"slide_id": "s", "status": "encoded", "split": "train", "tiles": 9}
    for name in ("slides.csv", "manifest.csv"):
        write_csv(tmp_path / name, [slide | {"height": 512, "width": 512}])
    for stage in ("train", "classifier"):
        (tmp_path / stage).mkdir()
        log = f"{json.dumps(line)}\n" * 2
        (tmp_path / stage / "metrics.jsonl").write_text(log)
    return request.param, kind, tmp_path


def results(name):
    """The rows of one run each."""
    report = json.loads((RESULTS / f"{name}.json").read_text())
    return [row for row in report["rows"] if "run_commit" in row]


def test_a_run_has_the_columns_of_its_results(case, monkeypatch):
    name, kind, folder = case
    pair = np.arange(4) / 6, np.arange(4) > 1
    monkeypatch.setattr(Run, "attention_on_lesions", lambda *_: iter([pair]))
    row = KINDS[kind]([Run(folder)], None)[0]
    runs, others = results(name), [n for n, (k, _) in CASES.items() if k == kind]
    assert set(row) <= {column for n in others for r in results(n) for column in r}
    assert set(row) >= {c for c in runs[0] if all(c in r for r in runs)}
    assert [column for column, value in row.items() if value is None] == []
