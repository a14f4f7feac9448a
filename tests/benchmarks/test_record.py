import json

import jax
import pytest

from benchmarks import device, record

ROWS = [{"net": "a", "seconds": 0.123456, "px": 224}, {"net": "b", "failed": None}]


def test_a_report_says_what_made_it(tmp_path):
    path = tmp_path / "report.json"
    record.write(path, ROWS[:1])
    record.write(path, ROWS)
    report = json.loads(path.read_text())
    assert list(report) == ["commit", "date", "machine", "versions", "rows"]
    assert report["rows"] == ROWS
    assert report["versions"]["jax"] == jax.__version__
    assert report["machine"]["device"] == jax.devices()[0].device_kind
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}])
def test_what_is_not_flat_and_finite_is_refused_and_nothing_lost(tmp_path, value):
    path = tmp_path / "report.json"
    record.write(path, ROWS)
    with pytest.raises(ValueError, match=r"not flat|JSON compliant"):
        record.write(path, [{"seconds": value}])
    assert json.loads(path.read_text())["rows"] == ROWS


def test_the_table_has_a_column_for_every_name():
    head, a, b = record.table(ROWS).splitlines()
    assert head.split() == ["net", "seconds", "px", "failed"]
    assert a.split() == ["a", "0.1235", "224"]
    assert b.split() == ["b", "-"]
    assert len(head) == len(a) == len(b)


def test_what_is_measured_stays_whatever_stops_the_rest(tmp_path, monkeypatch):
    def measure(args):
        assert (args.quick, args.folders) == (True, ["a", "b"])
        yield ROWS[0]
        raise KeyboardInterrupt

    path = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["it", "--out", str(path), "--quick", "a", "b"])
    with pytest.raises(KeyboardInterrupt):
        record.main("A benchmark.", measure, {"folders": {"nargs": "+"}})
    assert json.loads(path.read_text())["rows"] == ROWS[:1]


def test_calls_that_warm_up_do_not_count():
    ticks, calls = iter((0, 50, 100, 101, 200, 202)), []
    call = lambda: calls.append(None)
    assert device.seconds(call, 2, warm=1, clock=lambda: next(ticks)) == [1, 2]
    assert len(calls) == 3
