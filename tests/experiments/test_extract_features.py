"""Features are the same whoever makes them, and made once, whoever dies meanwhile."""

import concurrent.futures
import csv
import dataclasses
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from experiments import extract_features
from experiments.experiment import Experiment
from experiments.progress import progress
from experiments.workers import Executor
from wsi_jax import pipeline
from wsi_jax.data.features import read_features
from wsi_jax.data.tiles import Reading
from wsi_jax.evals.cost import Meter
from wsi_jax.nets.encoder import Encoder
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Tissue
from wsi_jax.spread import spread
from wsi_jax.train.compile import make_mesh

SIDE, TILES, SLIDES = 256, 64, 8


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A folder of slides whose left half is tissue, one in a folder below."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "more").mkdir()
    for i in range(SLIDES):
        rng = np.random.default_rng(i)
        pixels = np.full((SIDE, SIDE, 3), 240, np.uint8)
        pixels[:, : SIDE // 2] = rng.integers(
            (150, 60, 120), (220, 120, 200), (SIDE, SIDE // 2, 3)
        )
        where = folder / "more" if i == 0 else folder
        Image.fromarray(pixels).save(where / f"s{i}.png")
    return folder


@pytest.fixture(scope="module")
def config(slides):
    made = Experiment(
        grid=Grid(mpp=1.0, size_px=32),
        tissue=Tissue(mpp=8.0),
        encoder=Encoder(stages=1, width=8),
        reading=Reading(threads=2),
        encode_batch=8,
    )
    made.data.manifest, made.data.mpp = str(slides), 1.0
    return made


@pytest.fixture(scope="module")
def wanted(config, tmp_path_factory):
    """Features of all slides, by `pipeline.extract`."""
    folder = tmp_path_factory.mktemp("wanted")
    ready = pipeline.Ready(config.tiling(), make_mesh())
    pipeline.extract(
        config.data.slides(), ready, folder, batch=config.encode_batch,
        reading=config.reading, meter=Meter(), progress=progress,
    )  # fmt: skip
    found = features(folder)
    assert len(found) == SLIDES
    return found


def features(folder):
    """{name of the file: features} of everything below a folder."""
    return {
        str(path.relative_to(folder)): read_features(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        assert len(one.x) == TILES
        np.testing.assert_array_equal(one.x, wanted[name].x)
        np.testing.assert_array_equal(one.yx, wanted[name].yx)
        assert one.attrs == wanted[name].attrs


def table(folder):
    with open(folder / "slides.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_threads_make_what_the_pipeline_makes_and_make_it_once(
    config, wanted, tmp_path
):
    config = dataclasses.replace(config, features=str(tmp_path / "features"))
    lines = extract_features.run(config, tmp_path / "run")
    assert [line["status"] for line in lines] == ["encoded"] * SLIDES
    assert [line["slide_id"] for line in table(tmp_path / "run")] == [
        f"s{i}" for i in range(SLIDES)
    ]
    same(features(tmp_path / "features"), wanted)
    paths = sorted((tmp_path / "features").rglob("*.h5"))
    paths[3].unlink()
    made = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    extract_features.run(config, tmp_path / "run")
    same(features(tmp_path / "features"), wanted)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_any_executor_makes_the_same(config, wanted, tmp_path):
    rows, meter = config.data.slides(), Meter()
    rows = (*rows, dataclasses.replace(rows[0], slide_id="gone", path="gone.svs"))
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        lines = spread(
            executor, rows, config.tiling(), tmp_path, batch=config.encode_batch,
            reading=config.reading, meter=meter, progress=progress,
        )  # fmt: skip
    same(features(tmp_path), wanted)
    *good, gone = lines
    assert [line["slide_id"] for line in good] == [f"s{i}" for i in range(SLIDES)]
    assert {line["status"] for line in good} == {"encoded"}
    assert gone["status"] == "refused"
    assert "no file gone.svs" in gone["reason"]
    counted = meter.as_dict()
    assert counted["slides"] == SLIDES
    assert counted["tiles"] == TILES * SLIDES


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two worker processes, set as this one is: the same devices and optimisation."""
    distributed = pytest.importorskip("distributed")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, env=settings
    ) as cluster:
        yield cluster


def test_a_worker_that_is_killed_at_a_slide_loses_and_doubles_nothing(
    cluster, config, wanted, tmp_path
):
    import distributed

    config = dataclasses.replace(
        config,
        features=str(tmp_path / "features"),
        executor=Executor.dask,
        scheduler=cluster.scheduler_address,
        encode_batch=8,
    )
    with (
        distributed.Client(cluster, set_as_default=False) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        pids = client.run(os.getpid)
        run = pool.submit(extract_features.run, config, tmp_path / "run")
        while not any((tmp_path / "features").rglob("*.h5")):
            assert not run.done(), run.result()
            time.sleep(0.01)
        killed = kill_one_at_work(client, pids)
        lines = run.result()
        assert killed not in client.run(os.getpid).values()
    assert [line["slide_id"] for line in lines] == [f"s{i}" for i in range(SLIDES)]
    assert {line["status"] for line in lines} == {"encoded"}
    assert table(tmp_path / "run") == [{k: str(v) for k, v in s.items()} for s in lines]
    same(features(tmp_path / "features"), wanted)


def kill_one_at_work(client, pids):
    """Kills a worker that has a slide to do; its process."""
    while True:
        for address, pid in pids.items():
            os.kill(pid, signal.SIGSTOP)  # else it might end before it is killed
            if client.processing().get(address):
                os.kill(pid, signal.SIGKILL)
                return pid
            os.kill(pid, signal.SIGCONT)
