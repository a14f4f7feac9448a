"""Features are the same whoever makes them, and made once, whoever dies meanwhile."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from wsi_jax.data.cohort import Row
from wsi_jax.data.features import read_features
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.config import Experiment
from wsi_jax.run.executor import Executor, WorkerError, dask
from wsi_jax.run.extract import extract_distributed as distributed_module
from wsi_jax.run.extract.extract_cohort import extract_on_cluster
from wsi_jax.run.extract.extract_distributed import check_loaded, extract_distributed
from wsi_jax.run.extract.extract_worker import extract_slide, worker_check
from wsi_jax.run.extract.slide_features import Extractor, extract, find_tiles
from wsi_jax.run.progress import silent
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Tissue
from wsi_jax.training.mesh import make_mesh

ROOT = pathlib.Path(__file__).parent.parent.parent
SIDE, TILES, SLIDES = 256, 64, 8
BATCH, READING = 8, Reading(threads=2)
TILING = Tiling(
    grid=Grid(mpp=1.0, size_px=32),
    tissue=Tissue(mpp=8.0),
    encoder=Encoder(stages=1, width=8),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Slides whose left half is tissue."""
    folder, rows = tmp_path_factory.mktemp("slides"), []
    for i in range(SLIDES):
        rng = np.random.default_rng(i)
        pixels = np.full((SIDE, SIDE, 3), 240, np.uint8)
        pixels[:, : SIDE // 2] = rng.integers(
            (150, 60, 120), (220, 120, 200), (SIDE, SIDE // 2, 3)
        )
        Image.fromarray(pixels).save(folder / f"s{i}.png")
        rows.append(Row(f"s{i}", str(folder / f"s{i}.png"), "", f"s{i}", "", 1.0))
    return rows


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory):
    """Features of all slides, made by threads of this process."""
    folder = tmp_path_factory.mktemp("expected")
    options = {"reading": READING, "meter": Meter(), "progress": silent}
    records = find_tiles(rows, TILING, "encoded", **options)
    extract(records, Extractor(TILING, make_mesh()), folder, batch=BATCH, **options)
    features = all_features(folder)
    assert len(features) == SLIDES
    return features


def all_features(folder):
    """{name of the file: features} of everything below a folder."""
    return {
        str(path.relative_to(folder)): read_features(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same(features, expected):
    assert features.keys() == expected.keys()
    for name, one in features.items():
        assert len(one.x) == TILES
        np.testing.assert_array_equal(one.x, expected[name].x)
        np.testing.assert_array_equal(one.yx, expected[name].yx)
        assert one.attrs == expected[name].attrs


def distribute(executor, rows, folder, **options):
    return extract_distributed(
        executor, rows, TILING, folder, batch=BATCH, reading=READING, progress=silent,
        **{"meter": Meter()} | options,
    )  # fmt: skip


def test_any_executor_makes_the_same(rows, expected, tmp_path, monkeypatch):
    """Slides have relative names; one that is not there is refused."""
    monkeypatch.chdir(pathlib.Path(rows[0].path).parent)
    relative = [dataclasses.replace(row, path=f"{row.slide_id}.png") for row in rows]
    gone = dataclasses.replace(rows[0], slide_id="gone", path="gone.svs")
    meter = Meter()
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        records = distribute(executor, [*relative, gone], tmp_path, meter=meter)
    assert_same(all_features(tmp_path), expected)
    assert [record.row for record in records] == [*relative, gone]
    assert [record.status for record in records] == ["encoded"] * SLIDES + ["refused"]
    assert "no file gone.svs" in records[-1].reason
    assert [record.columns()["tiles"] for record in records] == [TILES] * SLIDES + [0]
    counted = meter.as_dict()
    assert counted["slides"] == SLIDES
    assert counted["tiles"] == TILES * SLIDES


class Killed(Exception):
    pass


class Losing(concurrent.futures.ThreadPoolExecutor):
    """Loses its workers at slide s1, and the feature file of s2."""

    def submit(self, job, row, *args):
        def run():
            if row.slide_id == "s1":
                raise Killed("four workers died of it")
            result = job(row, *args)
            if row.slide_id == "s2":
                result.record.features[0].unlink()
            return result

        return super().submit(run)


def test_a_slide_that_is_lost_on_the_way_is_refused_and_the_others_go_on(
    rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed_module, "VISIBLE_S", 0.3)
    with Losing(1) as executor:
        records = distribute(executor, rows[:4], tmp_path, lost=Killed)
    assert [r.status for r in records] == ["encoded", "refused", "refused", "encoded"]
    assert records[1].reason == "s1: four workers died of it"
    assert records[0].columns().keys() == records[1].columns().keys()
    assert re.search(
        r"s2: a worker on .* has made .*s2\.h5, and here it cannot be read",
        records[2].reason,
    )
    assert {path.stem for path in tmp_path.rglob("*.h5")} == {"s0", "s3"}


def test_a_worker_without_the_weights_or_the_slides_stops_it(tmp_path):
    tiling = Tiling(encoder=Encoder(weights=str(tmp_path / "gone.safetensors")))
    row = Row("a", str(tmp_path / "a.png"), "", "a", "")
    (tmp_path / "a.png").write_bytes(b"slide")
    with worker_check(tmp_path) as check:
        options = check, 8, Reading()
        with pytest.raises(WorkerError, match=r"worker on \S+: .*weights=.*no such fi"):
            extract_slide(row, 5, tiling, "settings", *options)
        other = dataclasses.replace(tiling, encoder=Encoder())
        with pytest.raises(WorkerError, match="is another file than where the command"):
            extract_slide(row, 5, other, "settings", *options)
        with pytest.raises(WorkerError, match=r"no folder .*unmounted; all machines m"):
            check.check(str(tmp_path / "unmounted" / "a.png"), 5)
        for size, path in ((6, row.path), (0, str(tmp_path / "gone.png"))):
            with pytest.raises(WorkerError, match="png cannot be read there, or is an"):
                check.check(path, size)


def test_a_worker_with_other_code_or_another_folder_stops_it(tmp_path):
    with worker_check(tmp_path) as check:
        check.check(str(tmp_path / "."), 0)
        older = check._replace(code=check.code | {"jax": "0.1.2"})
        here = check.code["jax"]
        with pytest.raises(WorkerError, match=rf"jax {here} there, 0\.1\.2 here"):
            older.check(str(tmp_path), 0)
        elsewhere = check._replace(secret="another folder's")
        with pytest.raises(WorkerError, match=r"is another folder there than where"):
            elsewhere.check(str(tmp_path), 0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(WorkerError, match=r"is another folder there than where"):
        check.check(str(tmp_path), 0)
    # What an executor raises whose workers lack the package, or this class of it.
    for error in (ImportError("no wsi_jax"), AttributeError("Can't get attribute 'T'")):
        with pytest.raises(WorkerError, match="cannot load wsi_jax as it is here"):
            check_loaded(error)
    check_loaded(AttributeError("a mistake of ours"))


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two worker processes, set as this one is."""
    distributed = pytest.importorskip("distributed")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker"]
        command += [cluster.scheduler_address, "--nthreads=1", "--no-nanny"]
        command += ["--no-dashboard", "--death-timeout=60"]
        workers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            workers.append(
                subprocess.Popen(
                    command, cwd=tmp_path / name, env=os.environ | settings
                )
            )
        yield cluster
        for worker in workers:
            worker.kill()
            worker.wait()


@pytest.mark.long
def test_a_worker_that_is_killed_at_a_slide_loses_and_doubles_nothing(
    cluster, rows, expected, tmp_path, monkeypatch
):
    """And workers that see another folder by the same name stop it."""
    import distributed

    config = Experiment(
        grid=TILING.grid, tissue=TILING.tissue, encoder=TILING.encoder,
        reading=READING, encode_batch=BATCH, executor=Executor.dask,
        scheduler=cluster.scheduler_address,
    )  # fmt: skip
    features = tmp_path / "features"
    with (
        distributed.Client(cluster, set_as_default=False) as client,
        concurrent.futures.ThreadPoolExecutor(1) as thread,
    ):
        client.wait_for_workers(2, timeout=120)
        apart = pathlib.Path("/proc/self/cwd/shared")  # of each process, its own
        monkeypatch.chdir(tmp_path)
        client.run(os.makedirs, apart, exist_ok=True)
        with pytest.raises(
            WorkerError, match=r"worker on \S+: /proc/self/cwd/shared is"
        ):
            extract_on_cluster(config, rows, apart, Meter())
        pids = client.run(os.getpid)
        run = thread.submit(extract_on_cluster, config, rows, features, Meter())
        while not any(features.rglob("*.h5")):
            assert not run.done(), run.result()
            time.sleep(0.01)
        killed = kill_one_at_work(client, pids)
        records = run.result()
        assert set(client.run(os.getpid).values()) == {*pids.values()} - {killed}
    assert [record.row for record in records] == rows
    assert {record.status for record in records} == {"encoded"}
    assert_same(all_features(features), expected)


def kill_one_at_work(client, pids):
    """Kills a worker that has a slide to do; its process."""
    while True:
        for address, pid in pids.items():
            os.kill(pid, signal.SIGSTOP)  # else it might end before it is killed
            if client.processing().get(address):
                os.kill(pid, signal.SIGKILL)
                return pid
            os.kill(pid, signal.SIGCONT)


def test_without_dask_or_its_scheduler_one_line_gives_the_mend(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("wsi_jax.run.executor.TIMEOUT_S", 0.5)
    nobody = "tcp://127.0.0.1:9"
    with pytest.raises(WorkerError, match=r"scheduler=tcp://127.0.0.1:9: no scheduler"):
        dask(nobody).__enter__()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(WorkerError, match=r"pip install 'wsi_jax\[dask\]'"):
        dask(nobody).__enter__()
