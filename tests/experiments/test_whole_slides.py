"""Whole slides to a prediction: trained, reported, opened again, drawn."""

import numpy as np
import pytest
from PIL import Image
from run_files import by_slide, read_json
from words import with_field

import wsi_jax
from experiments.camelyon16 import Camelyon16
from wsi_jax import cli
from wsi_jax.data.cohort import CohortError, Row
from wsi_jax.methods.mil import ABMIL
from wsi_jax.methods.streaming_clam import Augment, StreamingCLAM
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.checks import check_same_slides
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.tiling import TiledSlide


@pytest.fixture
def whole(tiny):
    """The tiny config, of slides instead of features."""

    def config():
        made = tiny()
        made.features, made.encoder = "", None
        made.grid.size_px = 32
        made.method = StreamingCLAM(
            trunk=ConvNeXtEncoder(blocks=(1,), width=8, stem=8, scale=1.0),
            tile_px=64,
            pool=4,
            width=8,
            attention=4,
            augment=Augment(probability=0.0),
        )
        made.train.batch, made.train.class_weights = 2, False
        made.train.steps, made.train.validate_every = 6, 3
        made.train.save_every = made.train.log_every = 3
        return made

    return config


def test_a_run_of_slides(whole, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "whole"
    report = experiment.run(whole(), folder)
    assert "Whole slides at 2 um/px, convnext trained end to end" in report.read_text()
    text = capsys.readouterr().out
    assert "streaming: a cell every 32 px sees" in text
    lines = by_slide(folder / "predictions.csv")
    assert len(lines) == 6
    slides = by_slide(folder / "slides.csv")
    assert {line["status"] for line in slides.values()} == {"streamed"}
    cost = read_json(folder / "cost.json")
    assert cost["slides"] == 20
    assert cost["tiles"] > 0
    assert cost["bytes_decoded"] > 0
    assert len(list((folder / "heatmaps").glob("*.png"))) == 2
    assert not (folder / "features").exists()

    predictor = wsi_jax.load(folder)
    for name in list(lines)[:2]:
        prediction = predictor.predict(slides[name]["path"])
        assert prediction.label == lines[name]["prediction"]
        p = float(lines[name]["p_tumor"])
        np.testing.assert_allclose(prediction.probabilities["tumor"], p, atol=1e-5)
        tiles = int(slides[name]["tiles"])
        assert len(prediction.attention) == len(prediction.yx) == tiles
        np.testing.assert_allclose(prediction.attention.sum(), 1, rtol=1e-5)
        assert prediction.cost["tiles"] > 0
    with pytest.raises(ValueError, match="no class 'cat', only normal, tumor"):
        predictor.draw_saliency(slides[name]["path"], folder / "x.png", "cat")

    out = folder / "predicted"
    argv = ["predict", "--run", str(folder), "--out", str(out), "--saliency"]
    argv += ["--devices", "all", slides[name]["path"]]
    cli.app(argv, standalone_mode=False)
    p = float(by_slide(out / "predictions.csv")[name]["p_tumor"])
    np.testing.assert_allclose(prediction.probabilities["tumor"], p, atol=1e-5)
    with Image.open(out / f"{name}_saliency.png") as drawn:
        assert np.asarray(drawn).std() > 5


FROZEN, GROUP = (Encoder(norm=norm) for norm in (NormKind.frozen, NormKind.group))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("grid.size_px", 64, r"size_px=64, and a cell has 32 px \(stride 8 .*pool=4\)"),
        ("method.tile_px", 60, r"tile_px=60 is no multiple of 32, the px .*; 64 is"),
        ("grid.overlap_px", 8, "do not overlap"),
        ("method.trunk", FROZEN, r"trunk\.norm=frozen .*trunk\.weights=FILE"),
        ("method.trunk.weights", "gone", r"method\.trunk\.weights=gone: no such file"),
        ("precomputed", ".", "StreamingCLAM reads"),
        ("features", "there", "no features are made"),
        ("method.trunk", GROUP, r"method\.trunk: Norm looks at a whole map at once"),
        ("method.trunk.blocks", (), r"a trunk of blocks=\(\), .*: one stage at least"),
        ("method.pool", 0, r"config\.method\.pool=0: 1 or more"),
        ("method.augment.probability", 3.0, r"augment\.probability=3\.0: from 0 to 1"),
        (
            "train.class_weights",
            True,
            r"config\.train\.balanced=True and --config\.train\.class_weights=True: .*"
            r"add --noconfig\.train\.class_weights",
        ),
        ("method.thaw.frozen", 6, r"train\.steps=6 end before --config.*thaw\.frozen="),
        ("encoder", Encoder(), "trunk of its own"),
        ("method", ABMIL(), "ABMIL wants an encoder"),
    ],
)
def test_a_config_that_cannot_stream_is_refused_at_once(
    whole, tmp_path, field, value, message
):
    config = whole()
    config.train.balanced = field == "train.class_weights"
    with pytest.raises(ValueError, match=message):
        experiment.run(with_field(config, field, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_published_splits_take_the_place_of_drawn_ones(manifest, tmp_path):
    names = {
        "train_0": ("normal_001", "tumor_001"),
        "val_0": ("normal_002",),
        "test": ("test_001", "test_002"),
    }
    for name, slides in names.items():
        lines = [f"{slide},{int('tumor' in slide)}\n" for slide in slides]
        (tmp_path / f"{name}.csv").write_text("slide,label\n" + "".join(lines))
    data = Camelyon16(root=str(manifest.parent), complete=False, splits=str(tmp_path))
    split_of = {row.slide_id: row.split for row in data.cohort().rows}
    assert split_of == {
        slide: name.removesuffix("_0")
        for name, slides in names.items()
        for slide in slides
    }
    with open(tmp_path / "test.csv", "a") as file:
        file.write("test_999,0\n")
    with pytest.raises(CohortError, match="test_999"):
        data.cohort()


def test_a_run_goes_on_with_its_own_slides_and_with_mended_ones(tmp_path):
    """Another file or tissue is refused by name; one that was refused may come back."""
    slides = [
        TiledSlide(Row(name, "", "", name, ""), np.array([[0, i]]), content=name)
        for i, name in enumerate(("a", "b"))
    ]
    path = tmp_path / "slides.json"
    check_same_slides(path, [slides[0], slides[1]._replace(reason="b: damaged")], "")
    check_same_slides(path, slides, "")
    check_same_slides(path, [slides[0], slides[1]._replace(reason="b: gone")], "")
    for other in ({"content": "another"}, {"yx": np.array([[1, 0]])}):
        with pytest.raises(RunError, match="another file or tissue of slide 'b'"):
            check_same_slides(path, [slides[0], slides[1]._replace(**other)], "")
