"""Many devices, many machines, a million slides: forecasts, and checks of them.

    python -m benchmarks.scaling --out FILE [--parts efficiency shards run collectives]

Nothing of it was measured on many devices. A part's rows replace those in FILE.

efficiency: a step of devices that have slides of their own, against one device alone
    that has as many (`benchmarks.scaling_efficiency`). step_s is of the compilers'
    seconds and an all-reduce of collective_bytes, the gradients. Slides are shared out
    among devices by size; as_drawn, as they come; like_sizes, 16 batches are made at a
    time, each of slides of like sizes. less_spread and more_spread are by size, the
    slides' tissue to a power of .8 and of 1.25. work: "own", a device's own slides are
    its work; "padded", all devices run one program.
collectives: a step compiled for the devices of `--chip`, and the results of what they
    send to each other; it needs the chip's compiler, and minutes for some methods.
run: a small extraction by shards on this machine, one of them killed: rates, in
    seconds, and forecast_s against measured_s. It takes minutes.
shards: 1,000,000 slides by a hundred workers, simulated (`benchmarks.shard_simulation`)
    by the rates of a run and, for the encoder, the compiler's.
"""

import json
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from benchmarks import record, scaling_efficiency, shard_run
from benchmarks.chips import CHIPS, described_devices
from benchmarks.compiled import compiled_row, kept
from benchmarks.compiled_programs import programs
from benchmarks.scaling_efficiency import RESULTS
from benchmarks.shard_simulation import HOUR_S, Faults, Rates, simulate
from wsi_jax.training.mesh import make_mesh

MACHINES = (("v5p", 8), ("v5p", 64), ("h200", 16))
STREAMED = (1, 2, 3, 4, 5, 6, 8)  # slides of a device
WORKERS, READERS = 100, 8  # and the threads of each that find tissue
TILE_MM, FEATURES = 0.128, 1024  # of tiles at .5 um/px; float16
DAILY = Faults(24 * HOUR_S, 600, 0.005, 0.01, 10, 0.05, 2)
HOURLY = DAILY._replace(between_kills=HOUR_S)
SCENARIOS = {  # shards, faults, how much slower a file is found
    "nothing fails": (100, Faults(), 1),
    "a kill a day": (100, DAILY, 1),
    "a kill every 6 hours": (100, DAILY._replace(between_kills=6 * HOUR_S), 1),
    "a kill an hour": (100, HOURLY, 1),
    "a kill an hour, 1,000 shards": (1000, HOURLY, 1),
    "a kill a day, files found 100 times slower": (100, DAILY, 100),
    "the same, 1,000 shards": (1000, DAILY, 100),
}


def efficiency_rows(quick: bool) -> Iterator[dict]:
    """All methods; StreamingCLAM with more and more slides for a device."""
    for chip, devices in MACHINES[1:2] if quick else MACHINES:
        for method, step, slides, cost in scaling_efficiency.costs(chip):
            streamed = method == "streaming_clam"
            work = {"work": "own" if streamed else "padded"}
            for n in STREAMED if streamed and not quick else (slides,):
                yield work | scaling_efficiency.efficiency_row(
                    chip, devices, method, step, n, cost
                )


def collective_rows(chip: str, devices: int, only: list[str]) -> Iterator[dict]:
    """The training step of some methods, of few tiles where there is a choice."""
    # What is compiled for a description cannot be read again.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh, steps = make_mesh(described_devices(chip, devices)), {}
    for one in programs():
        if "step" in one.program and any(text in one.method for text in only):
            steps.setdefault((one.method, one.program.partition(",")[0]), one)
    for program in steps.values():
        row, forecast = compiled_row(program, chip, mesh)
        sent, sizes = Counter(), Counter()
        for one in forecast.operations if forecast else ():
            if one.collective_bytes:
                sent[one.opcode] += one.trips
                sizes[one.opcode] += one.collective_bytes
        names = ("method", "program", "chip", "devices", "collectives", "error")
        yield {name: row.get(name) for name in names} | {
            "part": "collectives",
            "processes": -(-devices // CHIPS[chip].of_host),
            "step_s": row.get("roofline_s"),
            "collective_bytes": row.get("collective_bytes"),
            "kinds": ", ".join(f"{n} {k}: {sizes[k]:,} B" for k, n in sent.items()),
        }


def shard_rows(rates: dict, slides: int) -> Iterator[dict]:
    """Extraction of so many slides by workers of an H200 each."""
    report = json.loads((RESULTS / "compiled_h200.json").read_text("utf-8"))
    seconds = {row["program"]: row.get("roofline_s") for row in report["rows"]}
    tile_s = seconds["vit_l16, 256 x 224 px"] / 256
    area = scaling_efficiency.draw(np.random.default_rng(0), slides).area
    tiles = np.ceil(area / TILE_MM**2)
    start, row, tissue = rates["start"], rates["row"], rates["large_tissue"] / READERS
    for name, (shards, faults, slower) in SCENARIOS.items():
        scan = rates["scan"] * slower
        timed = Rates(start, row, scan, tissue, 0.0, tile_s)
        result = simulate(tiles, shards, WORKERS, timed, faults)
        yield {
            "part": "shards", "scenario": name, "slides": slides, "shards": shards,
            "workers": WORKERS, **result, "scan_s": scan * slides,
            "refused": faults.refused, "slow_slides": faults.slow_slides,
            "slide_factor": faults.slide_factor, "slow_starts": faults.slow_starts,
            "start_factor": faults.start_factor,
            "manifest_s": row * slides,
            "status_hours": rates["status"] * slides * slower / HOUR_S,
            "tissue_hours": tissue * slides / shards / HOUR_S,
            "memory_bytes": rates["large_bytes"] * slides / shards,
            "features_tb": 2 * FEATURES * float(tiles.sum()) / 1e12,
            "tiles": float(tiles.mean()), "tile_s": tile_s,
        }  # fmt: skip


def rows(args: record.Arguments) -> Iterator[dict]:
    """Rows of other parts that FILE has, then those of the chosen parts."""

    def anew(row):
        if row["part"] != "collectives" or row["part"] not in args.parts:
            return row["part"] in args.parts
        of_chip = row["chip"], row["devices"]
        named = any(text in row["method"] for text in args.only)
        return named and of_chip == (args.chip, args.devices)

    before = kept(args.out) or kept(RESULTS / "scaling.json")
    yield from (row for row in before if not anew(row))
    if "efficiency" in args.parts:
        yield from efficiency_rows(args.quick)
    if "collectives" in args.parts:
        yield from collective_rows(args.chip, args.devices, args.only)
    if "run" in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            before = [{"part": "run"} | shard_run.run_row(pathlib.Path(folder))]
        yield from before
    rates = next((row for row in before if row["part"] == "run"), None)
    if "shards" in args.parts:
        if rates is None:
            raise SystemExit("--parts shards: it needs the rates of a run: add run")
        yield from shard_rows(rates, 10_000 if args.quick else 1_000_000)


PARTS = ("efficiency", "shards", "run", "collectives")
OPTIONS = {
    "--parts": {"nargs": "+", "choices": PARTS, "default": list(PARTS[:2])},
    "--chip": {"choices": tuple(CHIPS), "default": "v5p", "help": "of collectives"},
    "--only": {
        "nargs": "+",
        "default": [""],
        "help": "methods with these in their name",
    },
    "--devices": {"type": int, "default": 64, "help": "of collectives"},
}

if __name__ == "__main__":
    record.main(__doc__, rows, OPTIONS)
