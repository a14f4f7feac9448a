"""What the command that examines a machine finds, and how it says to mend it."""

import jax
import pytest

from wsi_jax.cli import app
from wsi_jax.run import doctor
from wsi_jax.slides import sample_tiff


def test_a_machine_that_runs_these_tests_has_nothing_to_mend(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "SIDE_PX", 512)
    with pytest.raises(SystemExit) as stop:
        app(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert not stop.value.code, [one for one in lines if one.startswith(doctor.MEND)]
    text = " ".join(" ".join(lines).split())
    assert f"jax {jax.__version__}" in text
    assert f"cpu 0: {jax.local_devices()[0].device_kind}" in text
    for name in sample_tiff.COMPRESSIONS:
        assert f"{name} by " in text
    assert "tiles of 256 px decoded a second" in text


@pytest.mark.parametrize(
    ("gpus", "tpus", "message"),
    [
        ([("H200", "580.65.06")], [], "H200 (driver 580.65.06), JAX sees none: pip in"),
        ([("H200", "580.65.06")], [], 'pip install "jax[cuda13]=='),
        ([("V100", "535.1")] * 2, [], "2 x V100 (driver 535.1), JAX sees none: pip i"),
        ([("V100", "535.1")], [], 'pip install "jax[cuda12]=='),
        ([("K80", "470.1")], [], "update the driver to 525 or newer"),
        ([], ["/dev/accel0"], 'JAX sees no TPU: pip install "jax[tpu]=='),
    ],
)
def test_devices_that_jax_does_not_see_are_named_with_the_mend(
    monkeypatch, gpus, tpus, message
):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (line,) = doctor.unseen_devices(gpus, tpus)
    assert line.startswith(doctor.MEND)
    assert message in line


def test_a_setting_that_hides_devices_is_named_first(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (line,) = doctor.unseen_devices([("H200", "580.1")], [])
    assert line == "mend: JAX_PLATFORMS=cpu hides other devices: unset it"
    assert list(doctor.unseen_devices([], [])) == []


def test_packages_that_are_missing_are_named(monkeypatch):
    whole = dict.fromkeys(doctor.provenance.PACKAGES, "1")
    for gone, message in {
        ("tifffile",): ["mend: tifffile is not installed: pip install tifffile"],
        ("tensorflow",): [],  # the other name of tensorflow-cpu
        ("tensorflow-cpu",): [],
        ("tensorflow-cpu", "tensorflow"): [
            "mend: tensorflow-cpu is not installed: pip install tensorflow-cpu"
        ],
    }.items():
        left = {name: v for name, v in whole.items() if name not in gone}
        assert list(doctor.missing(left)) == message
