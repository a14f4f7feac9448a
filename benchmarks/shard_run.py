"""A small extraction by shards, run here, with a shard killed; and the rates it has.

Rates that a simulation needs follow from shards of few and of many slides, each run
twice: again, only what every start repeats is left to do.
"""

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.extract import write_slides
from benchmarks.shard_simulation import HOUR_S, Faults, Rates, simulate
from wsi_jax import configs
from wsi_jax.data.cohort import Row, read_manifest
from wsi_jax.data.features import feature_shape
from wsi_jax.files import sweep
from wsi_jax.run.config_file import read_config
from wsi_jax.run.tiling import tile_slide
from wsi_jax.slides.pyramid_writer import write_pyramid

SLIDES, SHARDS, WORKERS, KILLED = 200, 8, 2, 3
FEW, MANY = 2, SLIDES // SHARDS  # slides of the shards by which rates are known
SIDE_PX, LISTED = 1536, 20_000
COMMAND = "from wsi_jax.cli import app; app()"
LARGE_MM, LARGE_MPP = (54, 24), 4.0  # as scanned glass of CAMELYON16


def attempt(
    folder: pathlib.Path, run: str, shard: str, kill_after: float | None = None
) -> float:
    """Seconds of the process of a shard, to its end or until it is killed."""
    words = (
        *("extract", "--method=abmil:quick", f"--manifest={folder / 'slides'}"),
        *(f"--config.shard={shard}", f"--config.run_dir={folder / run}"),
    )
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *words], **pipes)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    else:
        if process.returncode:
            raise RuntimeError(f"shard {shard}: {errors.strip()[-500:]}")
    return time.perf_counter() - began


def shard_rates(folder: pathlib.Path) -> Rates:
    """Seconds of what a shard does while each worker has one."""

    def seconds(slides):
        shards = [f"{i}/{SLIDES // slides}" for i in range(WORKERS)]
        one = lambda shard: attempt(folder, f"shards_of_{slides}", shard)
        with ThreadPoolExecutor(WORKERS) as pool:
            return float(np.mean(list(pool.map(one, shards))))

    seconds(1)  # keeps what is compiled
    few, few_again, many, many_again = map(seconds, (FEW, FEW, MANY, MANY))
    per_slide = lambda more: max(0.0, more / (MANY - FEW))
    tissue = per_slide(many_again - few_again)
    slide = per_slide((many - many_again) - (few - few_again))
    return Rates(few - FEW * (tissue + slide), 0.0, 0.0, tissue, slide)


def run_seconds(folder: pathlib.Path, kill_after: float) -> float:
    """Seconds of all shards by the workers; one is killed, and begun again behind the
    others."""
    waiting, killed = list(range(SHARDS)), []

    def work(_):
        while waiting:
            shard = waiting.pop(0)
            first = shard == KILLED and not killed
            killed.extend([shard] * first)
            limit = kill_after if first else None
            attempt(folder, "all", f"{shard}/{SHARDS}", limit)
            waiting.extend([shard] * first)

    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    return time.perf_counter() - began


def run_row(folder: pathlib.Path) -> dict:
    """The rates, and the run: what was forecast of it, and what it took."""
    write_slides(folder / "slides", SLIDES, SIDE_PX)
    rates, none = shard_rates(folder), np.zeros(SLIDES)
    kill_after = rates.start + MANY * (rates.tissue + rates.slide / 2)
    faults = Faults(kills={KILLED: kill_after})
    forecast = simulate(none, SHARDS, WORKERS, rates, faults)
    measured_s = run_seconds(folder, kill_after)
    made = sorted((folder / "all").rglob("*.h5"))
    return rates._asdict() | file_rates(folder) | {
        "status": _seconds(lambda: [feature_shape(f) for f in made]) / len(made),
        "slides": SLIDES, "shards": SHARDS, "workers": WORKERS, "kills": 1,
        "whole": len(made), "measured_s": measured_s,
        "forecast_s": forecast["hours"] * HOUR_S,
    }  # fmt: skip


def file_rates(folder: pathlib.Path) -> dict:
    """Seconds for each file, line and large slide, by one thread of this process."""
    (folder / "names").mkdir()
    for i in range(LISTED):
        (folder / "names" / f"slide_{i}.h5").touch()
    table = folder / "slides.csv"
    lines = (f"slide_{i},slide_{i}.tif\n" for i in range(LISTED))
    table.write_text("slide_id,path\n" + "".join(lines), "utf-8")
    h, w = (round(1000 * mm / LARGE_MPP) for mm in LARGE_MM)
    image, tissue = np.full((h, w, 3), 240, np.uint8), (h // 3, w // 3, 1)
    rough = np.random.default_rng(0).integers(-40, 40, tissue)
    image[: h // 3, : w // 3] = np.array((170, 80, 140)) + rough
    path = folder / "large.tif"
    write_pyramid(path, image, LARGE_MPP)
    config = read_config(configs.config_path("abmil:quick"), "Experiment")
    config.grid = dataclasses.replace(config.grid, mpp=LARGE_MPP, size_px=32)
    row, tiled = Row("large", str(path), "", "", "", LARGE_MPP), []
    seconds = _seconds(lambda: tiled.append(tile_slide(row, config.tiling())))
    kept = *tiled[0].picture, tiled[0].yx
    return {
        "scan": _seconds(lambda: sweep(folder / "names")) / LISTED,
        "row": _seconds(lambda: read_manifest(table, labelled=False)) / LISTED,
        "large_tissue": seconds,
        "large_bytes": sum(array.nbytes for array in kept),
    }


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
