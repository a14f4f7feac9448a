"""metrics.jsonl: every step once, whatever killed the run."""

import json

from wsi_jax.training.log import MetricsLog, read_metrics


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log(5, {"train.loss": 0.5})
    log(5, {"val.auc": 0.75})
    log(10, {"train.loss": 0.25})
    assert read_metrics(path) == [
        {"step": 5, "train.loss": 0.5},
        {"step": 5, "val.auc": 0.75},
        {"step": 10, "train.loss": 0.25},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (5, 10, 15, 20):
        log(step, {"loss": 1 / step})
    again = MetricsLog(path, 10)
    again(15, {"loss": 1 / 15})
    assert [line["step"] for line in read_metrics(path)] == [5, 10, 15]


def test_a_new_run_starts_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path)(5, {"loss": 1.0})
    MetricsLog(path)
    assert read_metrics(path) == []


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 5, "loss": 0.5})
    path.write_text(f"{whole}\n{whole[: len(whole) // 2]}")
    assert read_metrics(path) == [{"step": 5, "loss": 0.5}]
    MetricsLog(path, 5)(10, {"loss": 0.25})  # and does not swallow the next
    assert [line["step"] for line in read_metrics(path)] == [5, 10]


def test_no_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
