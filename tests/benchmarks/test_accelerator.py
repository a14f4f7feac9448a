import itertools

import jax
import pytest

from benchmarks import accelerator, device
from wsi_jax.methods import mil
from wsi_jax.nets.conv_encoder import Depth


def check_rates(rows, passes, peaks):
    """Rates follow from seconds, and rows have the same columns."""
    assert [(row["dtype"], row["pass"]) for row in rows] == passes
    assert len({tuple(row) for row in rows}) == 1
    for row in rows:
        assert row["tiles_per_s"] == row["tiles"] / row["seconds"]
        assert row["mfu"] == row["flops"] / row["seconds"] / peaks[row["dtype"]]


def test_rows_of_a_pool():
    options = {"width": 8, "attention": 4}
    subject = accelerator.pool("abmil", mil.ABMIL, options, (16,))
    peaks = {"float32": 1e12, "bfloat16": 2e12}
    rows = list(accelerator.measure(subject, 1, peaks, "a guess"))
    dtypes = itertools.product(("float32", "bfloat16"), ("forward", "train"))
    check_rates(rows, list(dtypes), peaks)
    # The matmuls of the embedding, the attention's two layers and its logits, the
    # pooling and the classifier.
    forward = 2 * (16 * (1024 * 8 + 2 * 8 * 4 + 4 + 8) + 8 * 2)
    assert rows[0]["flops"] == forward
    assert rows[1]["flops"] > 1.9 * forward
    errors = [row["relative_error"] for row in rows]
    assert max(errors[:2]) < 1e-4 < min(errors[2:])
    assert max(errors[2:]) < 0.2


def test_rows_of_what_is_fed_from_the_host():
    peaks = {"bfloat16": 1e12}
    rows = list(accelerator.measure_fed("cpu", 1, peaks, "?"))
    check_rates(rows, [("bfloat16", "forward"), ("bfloat16", "from host")], peaks)
    # Tokens of 64 numbers, 17 a tile, in two blocks: the linear layers and the
    # attention; before them that of the patches.
    tile = 2 * (16 * 768 * 64 + 2 * (17 * 12 * 64**2 + 2 * 17**2 * 64))
    assert {row["flops"] for row in rows} == {8 * tile}
    assert all(0 < row["relative_error"] < 0.05 for row in rows)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_encoder_and_pool_is_measured(platform):
    full = {subject.name for subject in accelerator.subjects(platform, False)}
    assert full == {depth.name for depth in Depth} | accelerator.POOLS.keys()
    quick = accelerator.subjects(platform, True)
    assert full - {s.name for s in quick} <= {"resnet34", "resnet50"}
    assert all(len(subject.tiles) == 1 for subject in quick)


def test_an_accelerator_is_fed_a_large_one():
    name, encoder, px, _ = accelerator.fed("gpu")
    assert (name, px, encoder.width, encoder.depth) == ("vit_l16", 224, 1024, 24)


def test_encoders_classify_tile_by_tile():
    subject = accelerator.encoder(Depth.resnet18, 32, 4)
    method, bag = subject.make("float32", accelerator.KEEP, False), subject.batch(3)
    params = jax.eval_shape(method.init, jax.random.key(0), bag).params
    predict = jax.eval_shape(method.predict, params, bag, jax.random.key(0))
    assert predict.logits.shape == (3, 2)


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12)],
)
def test_peaks_go_by_the_longest_name(kind, bfloat16):
    peak = next(peak for name, peak in device.PEAKS.items() if kind.startswith(name))
    assert peak[0] == bfloat16
