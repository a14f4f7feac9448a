"""metrics.jsonl: every step once, whatever killed the run."""

import json

from wsi_jax.training.log import MetricsLog, read_metrics


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path)
    lines = [{"step": step, "loss": 1 / step} for step in (5, 10, 15, 20)]
    for line in lines:
        log(line["step"], {"loss": line["loss"]})
    assert read_metrics(path) == lines
    MetricsLog(path, 10)(15, {"loss": 1 / 15})
    assert read_metrics(path) == lines[:3]
    MetricsLog(path)  # a new run
    assert read_metrics(path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 5, "loss": 0.5})
    path.write_text(f"{whole}\n{whole[: len(whole) // 2]}")
    assert read_metrics(path) == [{"step": 5, "loss": 0.5}]
    MetricsLog(path, 5)(10, {"loss": 0.25})  # and does not swallow the next
    assert [line["step"] for line in read_metrics(path)] == [5, 10]
