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


def test_a_streamed_step_is_all_its_calls_against_the_dense_net(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_tables, "RESULTS", tmp_path)
    row = ROW | {
        "method": "streaming_clam", "chip": "v5p", "temp_bytes": 2e9,
        "argument_bytes": 1e9, "optimal_s": 0.01, "bytes_accessed": 4e9,
    }  # fmt: skip
    calls = {"step_calls": 100, "seam_bytes": 5e9}
    make = lambda name, **more: (
        row | {"program": f"{name}, 8 x 64 px, {more.pop('p')}"} | more
    )
    record.write(
        tmp_path / "compiled_v5p.json",
        [
            make("streamed", p="forward", **calls),
            make("streamed", p="backward", bytes_accessed=9e9, optimal_s=0.03),
            make("dense", p="forward", bytes_accessed=2e9),
            make("dense", p="gradient", bytes_accessed=9e9, optimal_s=0.02),
        ],
    )
    line = compiled_tables.streaming().splitlines()[2]
    ratios, sizes = "2.00x | 1.00x | 2.00x", "0.2 / 4.0 s | 3.0 GB | 5.0 GB"
    assert line == f"| TPU v5p | 8 x 64 px | {ratios} | {sizes} |"
