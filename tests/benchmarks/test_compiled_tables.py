import pytest

from benchmarks import compiled_tables, record

ROW = {
    "method": "clam_sb", "program": "step", "devices": 1, "hbm_share": 0.126,
    "roofline_s": 0.0012, "roofline_mfu": 0.54, "cycles_s": 0.0034, "optimal_s": None,
}  # fmt: skip


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_tables, "RESULTS", tmp_path)
    gpu = ROW | {"chip": "h200", "cycles_s": None}
    error = "RESOURCE_EXHAUSTED: 17 GB of 16 GB"
    refused = {"method": "clam_sb", "program": "step", "chip": "v5e", "devices": 1}
    eight = ROW | {"chip": "v5e", "devices": 8}
    record.write(tmp_path / "compiled_h200.json", [gpu])
    record.write(tmp_path / "compiled_v5e.json", [refused | {"error": error}, eight])


@pytest.mark.usefixtures("results")
def test_a_program_that_does_not_fit_says_why():
    text = compiled_tables.memory()
    assert text.startswith("| program | TPU v5e, 16 GB | H200, 141 GB |\n")
    assert "| clam sb: step | no | 13% |" in text
    assert "- TPU v5e, clam sb: step: RESOURCE_EXHAUSTED: 17 GB of 16 GB" in text


@pytest.mark.usefixtures("results")
def test_times_are_the_least_and_the_compilers_own_and_the_share_of_the_peak():
    lines = compiled_tables.seconds().splitlines()
    assert lines[2] == "| clam sb: step |  | 1.2 ms, 54% |"
    assert lines[3] == "| clam sb: step, 8 devices | 1.2 / 3.4 ms, 54% |  |"
