"""Features are the same whoever makes them, and made once, whoever dies meanwhile."""

import concurrent.futures
import csv
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from wsi_jax.configs import streaming_clam
from wsi_jax.data.cohort import Cohort, CohortError, Row
from wsi_jax.data.features import read_features
from wsi_jax.data.tiles import Reading
from wsi_jax.evals.cost import Meter
from wsi_jax.nets.encoder import Encoder
from wsi_jax.run import executor as workers
from wsi_jax.run import extract as extraction
from wsi_jax.run import extract_distributed as spreading
from wsi_jax.run import extract_features, run_experiment
from wsi_jax.run.config import Experiment, Manifest, RunError
from wsi_jax.run.executor import Executor
from wsi_jax.run.extract_distributed import WorkerError, spread, work
from wsi_jax.run.progress import progress
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Tissue
from wsi_jax.training.compile import make_mesh

ROOT = pathlib.Path(__file__).parent.parent.parent
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


@pytest.fixture
def config(slides):
    return small(slides)


def small(slides):
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
def wanted(slides, tmp_path_factory):
    """Features of all slides, by `pipeline.extract`."""
    folder, config = tmp_path_factory.mktemp("wanted"), small(slides)
    ready = extraction.Ready(config.tiling(), make_mesh())
    extraction.extract(
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


def test_any_executor_makes_the_same(config, slides, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(slides.parent)
    config.data.manifest = slides.name
    rows, meter = config.data.slides(), Meter()
    rows = (*rows, dataclasses.replace(rows[0], slide_id="gone", path="gone.svs"))
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        lines = spread(
            executor, rows, config.tiling(), tmp_path, batch=config.encode_batch,
            reading=config.reading, meter=meter, progress=progress,
        )  # fmt: skip
    same(features(tmp_path), wanted)
    assert [line["path"] for line in lines] == [row.path for row in rows]
    *good, gone = lines
    assert [line["slide_id"] for line in good] == [f"s{i}" for i in range(SLIDES)]
    assert {line["status"] for line in good} == {"encoded"}
    assert gone["status"] == "refused"
    assert "no file gone.svs" in gone["reason"]
    counted = meter.as_dict()
    assert counted["slides"] == SLIDES
    assert counted["tiles"] == TILES * SLIDES


def test_a_slide_that_kills_its_workers_is_refused_and_the_others_go_on(
    config, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    def extract(rows, *args, **how):
        if rows[0].slide_id == "s3":
            raise Killed("four workers died of it")
        return extraction.extract(rows, *args, **how)

    monkeypatch.setattr(spreading, "extract", extract)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        lines = spread(
            executor, config.data.slides()[2:5], config.tiling(), tmp_path,
            batch=config.encode_batch, reading=config.reading, meter=Meter(),
            progress=progress, lost=Killed,
        )  # fmt: skip
    assert [line["status"] for line in lines] == ["encoded", "refused", "encoded"]
    assert lines[1]["reason"] == "s3: four workers died of it"
    assert lines[0].keys() == lines[1].keys()
    assert {path.stem for path in tmp_path.rglob("*.h5")} == {"s2", "s4"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two worker processes, set as this one is; for one test."""
    distributed = pytest.importorskip("distributed")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        cluster.worker_settings = settings | {"PYTHONPATH": str(ROOT)}
        started = [
            start_worker(
                cluster, cluster.worker_settings, tmp_path_factory.mktemp("worker")
            )
            for _ in range(2)
        ]
        yield cluster
        for one in started:
            one.kill()
            one.wait()


def start_worker(cluster, settings, folder):
    """A worker process of a cluster, which works in a folder of its own."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker"]
    command += [cluster.scheduler_address, "--nthreads=1", "--no-nanny"]
    command += ["--no-dashboard", "--death-timeout=60"]
    return subprocess.Popen(command, cwd=folder, env=os.environ | settings)


def test_a_worker_that_is_killed_at_a_slide_loses_and_doubles_nothing(
    cluster, config, wanted, tmp_path
):
    import distributed

    config = across_workers(config, cluster, tmp_path)
    with (
        distributed.Client(cluster, set_as_default=False) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        client.wait_for_workers(2, timeout=120)
        pids = client.run(os.getpid)
        run = pool.submit(extract_features.run, config, tmp_path / "run")
        while not any((tmp_path / "features").rglob("*.h5")):
            assert not run.done(), run.result()
            time.sleep(0.01)
        killed = kill_one_at_work(client, pids)
        lines = run.result()
        assert set(client.run(os.getpid).values()) == {*pids.values()} - {killed}
    assert [line["slide_id"] for line in lines] == [f"s{i}" for i in range(SLIDES)]
    assert {line["status"] for line in lines} == {"encoded"}
    assert table(tmp_path / "run") == [{k: str(v) for k, v in s.items()} for s in lines]
    same(features(tmp_path / "features"), wanted)


def across_workers(config, cluster, folder):
    return dataclasses.replace(
        config,
        features=str(folder / "features"),
        executor=Executor.dask,
        scheduler=cluster.scheduler_address,
    )


def kill_one_at_work(client, pids):
    """Kills a worker that has a slide to do; its process."""
    while True:
        for address, pid in pids.items():
            os.kill(pid, signal.SIGSTOP)  # else it might end before it is killed
            if client.processing().get(address):
                os.kill(pid, signal.SIGKILL)
                return pid
            os.kill(pid, signal.SIGCONT)


def test_a_run_has_them_made_and_encodes_nothing_itself(
    cluster, config, wanted, tmp_path
):
    config = across_workers(config, cluster, tmp_path)
    found, meter = Cohort(config.data.slides(), ()), Meter()
    slides, _ = run_experiment.read_slides(
        config, found, tmp_path, make_mesh(), meter, check=lambda slides: None
    )
    assert {slide["status"] for slide in slides} == {"encoded"}
    same(features(tmp_path / "features"), wanted)
    counted = meter.as_dict()
    assert counted["tiles"] == TILES * SLIDES
    assert "span.tiling.wall_s" in counted
    assert "span.encode.wall_s" not in counted


def test_a_worker_without_the_weights_stops_it_and_says_where(tmp_path):
    tiling = Tiling(encoder=Encoder(weights=str(tmp_path / "gone.safetensors")))
    row = Row("a", str(tmp_path / "a.png"), "", "a", "")
    (tmp_path / "a.png").write_bytes(b"slide")
    with spreading.terms(tmp_path) as terms:
        ask = (row, 5, tiling, "settings", terms, 8, Reading())
        with pytest.raises(WorkerError, match=r"worker on \S+: .*weights=.*no such fi"):
            work(*ask)
        other = dataclasses.replace(tiling, encoder=Encoder())
        with pytest.raises(WorkerError, match="is another file than where the command"):
            work(row, 5, other, *ask[3:])
        nowhere = dataclasses.replace(row, path=str(tmp_path / "unmounted" / "a.png"))
        with pytest.raises(WorkerError, match=r"no folder .*unmounted; all machines m"):
            work(nowhere, *ask[1:])
        for size, path in ((6, row.path), (0, tmp_path / "gone.png")):
            unlike = dataclasses.replace(row, path=str(path))
            with pytest.raises(
                WorkerError, match=r"png cannot be read there, or is an"
            ):
                work(unlike, size, *ask[2:])


def test_a_worker_with_other_code_or_another_folder_stops_it(tmp_path):
    with spreading.terms(tmp_path) as terms:
        terms.check(str(tmp_path / "."), 0)
        older = terms._replace(code=terms.code | {"jax": "0.1.2"})
        here = terms.code["jax"]
        with pytest.raises(WorkerError, match=rf"jax {here} there, 0\.1\.2 here"):
            older.check(str(tmp_path), 0)
        elsewhere = terms._replace(secret="another folder's")
        with pytest.raises(WorkerError, match=r"is another folder there than where"):
            elsewhere.check(str(tmp_path), 0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(WorkerError, match=r"is another folder there than where"):
        terms.check(str(tmp_path), 0)
    # What an executor raises whose workers lack the package, or this class of it.
    for error in (ImportError("no wsi_jax"), AttributeError("Can't get attribute 'T'")):
        with pytest.raises(WorkerError, match="cannot load wsi_jax as it is here"):
            spreading.check_loaded(error)
    spreading.check_loaded(AttributeError("a mistake of ours"))


def test_a_slide_whose_file_does_not_arrive_is_refused(config, tmp_path, monkeypatch):
    def extract(rows, ready, folder, **how):
        lines = extraction.extract(rows, ready, folder, **how)
        if rows[0].slide_id == "s3":
            (folder / ready.folder / "s3.h5").unlink()
        return lines

    monkeypatch.setattr(spreading, "extract", extract)
    monkeypatch.setattr(spreading, "VISIBLE_S", 0.3)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        lines = spread(
            executor, config.data.slides()[2:5], config.tiling(), tmp_path,
            batch=config.encode_batch, reading=config.reading, meter=Meter(),
            progress=progress,
        )  # fmt: skip
    assert [line["status"] for line in lines] == ["encoded", "refused", "encoded"]
    assert re.search(
        r"s3: a worker on .* has made .*s3\.h5, and here it cannot be read",
        lines[1]["reason"],
    )
    assert "host" not in lines[0]


def test_workers_of_another_folder_or_version_stop_it_though_they_come_late(
    cluster, config, tmp_path, monkeypatch
):
    """Each sees another folder by one name: that of the process that looks."""
    import distributed

    config = across_workers(config, cluster, tmp_path)
    mine = pathlib.Path("/proc/self/cwd/shared")
    monkeypatch.chdir(tmp_path)
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=120)
        client.run(os.makedirs, mine, exist_ok=True)
        apart = dataclasses.replace(config, features=str(mine))
        with pytest.raises(
            WorkerError, match=r"worker on \S+: /proc/self/cwd/shared is"
        ):
            extract_features.run(apart, tmp_path / "apart")
        shutil.copytree(ROOT / "wsi_jax", tmp_path / "old" / "wsi_jax")
        with open(tmp_path / "old" / "wsi_jax" / "types.py", "a") as file:
            file.write("# older\n")
        settings = cluster.worker_settings | {"PYTHONPATH": str(tmp_path / "old")}
        late = start_worker(cluster, settings, tmp_path)
        try:
            client.wait_for_workers(len(client.nthreads()) + 1, timeout=120)
            with pytest.raises(
                WorkerError, match=r"other code .*wsi_jax \w+ there, \w+ "
            ):
                extract_features.run(config, tmp_path / "run")
        finally:
            late.kill()
            late.wait()


def test_without_dask_or_its_scheduler_one_line_says_what_to_do(
    config, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, executor=Executor.dask)
    with pytest.raises(RunError, match=r"add --config.scheduler=tcp://HOST:8786"):
        extract_features.run(config, tmp_path)
    config.scheduler = "tcp://127.0.0.1:9"  # nobody listens there
    monkeypatch.setattr(workers, "PATIENCE_S", 0.5)
    pytest.importorskip("distributed")
    with pytest.raises(WorkerError, match=r"scheduler=tcp://127.0.0.1:9: no scheduler"):
        extract_features.run(config, tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(WorkerError, match=r"pip install 'wsi_jax\[dask\]'"):
        extract_features.run(config, tmp_path)


def test_a_method_that_reads_slides_has_no_features(tmp_path):
    with pytest.raises(RunError, match="StreamingCLAM reads slides"):
        extract_features.run(streaming_clam.get_config(), tmp_path)


def test_slides_need_no_labels(slides, tmp_path):
    """In a folder or in a manifest; but a training asks for them."""
    (tmp_path / "list.csv").write_text(f"path\n{slides / 's1.png'}\n")
    named = Manifest(manifest=str(tmp_path / "list.csv"), mpp=1.0)
    (row,) = named.slides()
    found = Manifest(manifest=str(slides), mpp=1.0).slides()
    assert found[1] == row == Row("s1", str(slides / "s1.png"), "", "s1", "", 1.0)
    with pytest.raises(CohortError, match="no column 'label'"):
        named.cohort()
    with pytest.raises(CohortError, match="no slide anywhere below"):
        Manifest(manifest=str(tmp_path)).slides()


def test_bad_slides_stop_nothing_unless_all_are(config, slides, tmp_path, capsys):
    folder, run = tmp_path / "slides", tmp_path / "run"
    folder.mkdir()
    (folder / "bad.png").write_text("no picture")
    config.data = Manifest(manifest=str(folder), mpp=1.0)
    with pytest.raises(SystemExit, match="1"):
        extract_features.print_summary(extract_features.run(config, run), run, 0.1)
    (folder / "good.png").write_bytes((slides / "s1.png").read_bytes())
    extract_features.print_summary(extract_features.run(config, run), run, 0.1)
    bad, good = table(run)
    assert (bad["status"], good["status"]) == ("refused", "encoded")
    said = capsys.readouterr()
    assert f"refused: {bad['reason']}" in said.err
    assert "1 of 2 slides have features" in said.out
    assert "more were refused than --config.max_refused=0.1: a training" in said.err
