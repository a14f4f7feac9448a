"""The command that makes features: once, of labelled slides or not, good or bad."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from run_files import table, times

from wsi_jax.configs import streaming_clam
from wsi_jax.data.cohort import CohortError, Row
from wsi_jax.data.features import feature_shape
from wsi_jax.data.tile_batches import Reading
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.executor import Executor
from wsi_jax.run.extract import extract_command
from wsi_jax.run.run_folder import RunError
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Tissue

SIDE, TILES = 256, 64


@pytest.fixture
def slides(tmp_path):
    """A folder of slides whose left half is tissue, one in a folder below."""
    (tmp_path / "slides" / "more").mkdir(parents=True)
    pixels = np.full((SIDE, SIDE, 3), 240, np.uint8)
    pixels[:, : SIDE // 2] = (200, 80, 160)
    for name in ("more/s0", "s1", "s2"):
        Image.fromarray(pixels).save(tmp_path / "slides" / f"{name}.png")
    return tmp_path / "slides"


@pytest.fixture
def config(slides, tmp_path):
    return Experiment(
        data=Manifest(manifest=str(slides), mpp=1.0),
        grid=Grid(mpp=1.0, size_px=32),
        tissue=Tissue(mpp=8.0),
        encoder=Encoder(stages=1, width=8),
        reading=Reading(threads=2),
        encode_batch=8,
        features=str(tmp_path / "features"),
    )


def test_features_are_made_once_and_a_bad_slide_stops_nothing(
    config, slides, tmp_path, capsys
):
    (slides / "bad.png").write_text("no picture")
    run = tmp_path / "run"
    records = extract_command.run(config, run)
    extract_command.print_summary(records, run, config)
    bad, *good = table(run / "slides.csv")
    assert bad["status"] == "refused"
    assert [(one["slide_id"], one["status"]) for one in good] == [
        (f"s{i}", "encoded") for i in range(3)
    ]
    paths = sorted((tmp_path / "features").rglob("*.h5"))
    assert [feature_shape(path)[0] for path in paths] == [TILES] * 3
    printed = capsys.readouterr()
    assert f"refused: {bad['reason']}" in printed.err
    assert "3 of 4 slides have features" in printed.out
    assert "more were refused than --config.max_refused=0.1: a training" in printed.err
    with pytest.raises(SystemExit, match="1"):
        extract_command.print_summary(records[:1], run, config)

    paths[1].unlink()
    before = times(paths)
    extract_command.run(config, run)
    assert paths[1].exists()
    assert times(before) == before


def test_what_cannot_be_extracted_is_refused_first(config, tmp_path):
    with pytest.raises(RunError, match="StreamingCLAM reads slides"):
        extract_command.run(streaming_clam.get_config(), tmp_path)
    alone = dataclasses.replace(config, executor=Executor.dask)
    with pytest.raises(RunError, match=r"add --config.scheduler=tcp://HOST:8786"):
        extract_command.run(alone, tmp_path)


def test_slides_need_no_labels(slides, tmp_path):
    """In a folder or in a manifest; but a training asks for them."""
    (tmp_path / "list.csv").write_text(f"path\n{slides / 's1.png'}\n")
    named = Manifest(manifest=str(tmp_path / "list.csv"), mpp=1.0)
    (row,) = named.slides()
    in_folder = Manifest(manifest=str(slides), mpp=1.0).slides()
    assert in_folder[1] == row == Row("s1", str(slides / "s1.png"), "", "s1", "", 1.0)
    with pytest.raises(CohortError, match="no column 'label'"):
        named.cohort()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="no slide anywhere below"):
        Manifest(manifest=str(tmp_path / "empty")).slides()
