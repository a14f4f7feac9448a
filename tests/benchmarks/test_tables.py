"""What pages say in numbers is what stands in benchmarks/results."""

import json

import pytest

from benchmarks.run_folder import grouped
from benchmarks.tables import RESULTS, TABLES, filled, pages, render
from wsi_jax.provenance import provenance


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_tables_are_made_from_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text


def test_a_table_of_facts_needs_no_results():
    text = filled("a\n<!-- encoders -->\nold\n<!-- end -->\n")
    assert text.startswith("a\n<!-- encoders -->\n| name |")
    assert "| `uni` |" in text
    assert "old" not in text


def test_a_missing_value_is_an_empty_cell_and_an_empty_column_goes():
    columns = [["a", "{x:.1f}"], ["b", "{y:MB} of {z}"], ["c", "{gone}"]]
    rows = [{"x": 0.25, "y": 2e6, "z": 3}, {"x": 0.5, "y": None, "z": 1, "gone": None}]
    lines = render([{"columns": columns}], provenance() | {"rows": rows}).splitlines()
    assert lines[:4] == [
        "| a | b |",
        "| --- | --- |",
        "| 0.2 | 2 MB of 3 |",
        "| 0.5 |  |",
    ]


def test_every_run_of_needle_is_in_its_table():
    """Grouped by budget and learner, each seed with its interval, "all" last."""
    report = json.loads((RESULTS / "needle.json").read_text())
    text = render(TABLES["needle"], report)
    for row in report["rows"]:
        if "auc" in row:
            assert f"{row['auc']:.3f} ({row['auc_lo']:.3f} to" in text
        else:
            assert f"{row['auc_diff']:+.3f} ({row['auc_diff_lo']:+.3f} to" in text
    firsts = [line.split(" | ")[0] for line in text.splitlines() if " learnt |" in line]
    assert firsts == ["| 4", "| 16", "| 64"] * 2


def test_strategies_are_averaged_over_cohorts():
    report = json.loads((RESULTS / "zoom_runs.json").read_text())
    groups = grouped(report["rows"], "preset", "settings", "share", "way")
    mine = groups["needle", "ours", 0.2, "policy"]
    aucs = [r["auc"] for r in sorted(mine, key=lambda r: r["seed"])]
    lines = render(TABLES["zoom_runs"], report).splitlines()
    (line,) = (x for x in lines if x.startswith("| `needle` | ours | 20% | policy |"))
    assert f"| {sum(aucs) / len(aucs):.3f} (" in line
    assert f"| {', '.join(f'{auc:.2f}' for auc in aucs)} |" in line
